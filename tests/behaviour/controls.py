"""The world's second gate: what cannot be told from honest goods is not told by the champion.

Controls are injected alone into an honest world of another seed, scored by the champion, and
compared with honest scans that were read alike, movements with those that took as long: an AUC of
0.5 means that nothing leaks.
"""

CONTROLS = (
    "fake_in_quota",
    "order_below_skew",
    "loc_box_diverted",
    "dup_whole_box",
    "jump_plausible",
    "jump_long_rest",
)

CODE = """
import json
from dataclasses import asdict
from pathlib import Path
import numpy as np
from intake.columns import to_scans
from intake.master import read_registry, read_sites
from models.bundle import Bundle
from pipelines.parts import pace_of
from pipelines.measures.controls import matched_auc, moved_alike, read_alike
from trail.facts import Context
from trail.features import encode
from world.simulate import Options, simulate
from trail.scan import Anomaly
from world.tampering import SUBTYPES, tamper

bundle = Bundle(Path("work/bundle"))
world = simulate(Options(seed=4711, scans=SCANS, natural_share=0.0))
intake = to_scans(world.scans, read_sites(bundle.folder / "sites.csv"))
names = [s.name for s in SUBTYPES if s.control]
done = tamper(intake.scans, intake.sites, share=0.06, seed=5, subtypes=names)
registry = read_registry(bundle.folder / "registry.csv")
encoded = encode(done.scans, Context(intake.sites, bundle.network, registry))
order, truth = encoded.trails.order, done.truth
score = bundle.probabilities(encoded.features, encoded.offsets)
scans = encoded.trails.scans
touched = np.zeros(len(scans.codes), bool)
touched[done.scans.epc[truth.subtype >= 0]] = True
evidence = np.full(len(scans.codes), 2**62)
np.minimum.at(evidence, done.scans.epc[truth.evidence], done.scans.time_us[truth.evidence])
alike = read_alike(scans.op, scans.epc.astype(np.int64), scans.lot, scans.time_us)
moved = moved_alike(alike, pace_of(encoded.features))
found = {}
for i, subtype in enumerate(SUBTYPES):
    if subtype.control:
        mine = truth.cause[order] & (truth.subtype[order] == i)
        mine &= scans.time_us < evidence[scans.epc]
        column = score[:, int(subtype.anomaly)]
        auc = matched_auc(
            column,
            mine,
            ~touched[scans.epc],
            moved if subtype.anomaly == Anomaly.JUMP else alike,
            scans.lot,
            scans.epc,
            2000,
            0,
        )
        found[subtype.name] = asdict(auc) | {"lots": len(np.unique(scans.lot[mine]))}
print("FOUND" + json.dumps(found))
"""
