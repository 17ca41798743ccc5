"""The world's second gate: what cannot be told from honest goods is not told by the champion.

Controls are injected alone into an honest world of another seed and scored by the champion. A
control is told if its scans rank above honest scans of the same operation: an AUC of 0.5 means
that nothing leaks. Two rank a little higher by right, and must not be worth an alert: 0.6-0.8 of a
route's usual time lies in the lower tail of what lorries do, and a diverted box parts from the
boxes that left with it more often than others do.
"""

CONTROLS = (
    "fake_in_quota",
    "dup_whole_box",
    "order_below_skew",
    "jump_long_rest",
)

CODE = """
import json
from pathlib import Path
import numpy as np
from intake.columns import to_scans
from intake.master import read_registry, read_sites
from models.bundle import Bundle
from pipelines.measures.ranking import places
from pipelines.label import targets
from trail.facts import Context
from trail.features import encode
from world.simulate import Options, simulate
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
honest = ~touched[scans.epc]
evidence = np.full(len(scans.codes), 2**62)
seen = truth.evidence
np.minimum.at(evidence, done.scans.epc[seen], done.scans.time_us[seen])
found = {}
for i, subtype in enumerate(SUBTYPES):
    if not subtype.control:
        continue
    mine = truth.cause[order] & (truth.subtype[order] == i)
    mine &= scans.time_us < evidence[scans.epc]
    k, place, caught = int(subtype.anomaly), [], []
    for op in np.unique(scans.op[mine]):
        here, there = mine & (scans.op == op), honest & (scans.op == op)
        place.append(places(score[here, k], score[there, k]))
        caught.append(score[here, k] > np.quantile(score[there, k], 0.99))
    lots = np.concatenate([scans.lot[mine & (scans.op == op)] for op in np.unique(scans.op[mine])])
    place, caught = np.concatenate(place), np.concatenate(caught)
    _, lot = np.unique(lots, return_inverse=True)
    total, number = np.bincount(lot, place), np.bincount(lot)
    rng = np.random.default_rng(0)
    draw = rng.multinomial(len(number), np.full(len(number), 1 / len(number)), size=2000)
    low, high = np.quantile((draw @ total) / (draw @ number), [0.025, 0.975])
    found[subtype.name] = {
        "scans": len(place), "lots": len(number), "auc": place.mean(), "low": low, "high": high,
        "recall_at_fpr1": caught.mean(),
    }
print("FOUND" + json.dumps(found))
"""
