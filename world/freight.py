"""Tails of legs and stays, fitted on real freight: `python -m world.freight --help`.

Cargo 2000 (UCI 382) has, for each transport leg, planned and effective minutes. `RCF` is the leg
from departure to arrival, `DEP` the stay from check-in to departure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

Float64 = npt.NDArray[np.float64]

SHIPMENT_PARTS: Final = ("i1", "i2", "i3", "o")
HOPS: Final = (1, 2, 3)
TRAINING_SHARE: Final = 0.7
_IN_LOG: Final = "Student-t of the logarithm"


@dataclass(frozen=True)
class Fit:
    """One family fitted to one quantity.

    Attributes:
        family: gamma, lognormal, or Student-t of the logarithm.
        parameters: shape, location and scale as scipy has them.
        log_likelihood: mean on the held-out rows.
        distance: Kolmogorov-Smirnov distance on the held-out rows.
    """

    family: str
    parameters: tuple[float, ...]
    log_likelihood: float
    distance: float


def read(path: Path) -> dict[str, Float64]:
    """Quantities of a Cargo 2000 file.

    Returns:
        "leg": effective over planned minutes of RCF; "stay": effective hours of DEP over their
        mean.

    Raises:
        ValueError: the file has not the columns of Cargo 2000.
    """
    table = csv.read_csv(path)
    leg = _pairs(table, "rcf", path)
    stay = _pairs(table, "dep", path)
    hours = stay[:, 1] / 60.0
    return {"leg": leg[:, 1] / leg[:, 0], "stay": hours / hours.mean()}


def _pairs(table: pa.Table, what: str, path: Path) -> Float64:
    """Planned and effective minutes where both are there, (n, 2)."""
    rows = []
    for part in SHIPMENT_PARTS:
        for hop in HOPS:
            names = [f"{part}_{what}_{hop}_{kind}" for kind in ("p", "e")]
            missing = [n for n in names if n not in table.column_names]
            if missing:
                raise ValueError(
                    f"{path} lacks the column {missing[0]!r}; give c2k.csv of UCI data set 382"
                )
            columns = [pc.cast(table[name], pa.float64()).to_numpy() for name in names]
            both = np.stack(columns, axis=1)
            rows.append(both[(both > 0).all(axis=1)])
    return np.concatenate(rows)


def fit(values: Float64) -> list[Fit]:
    """The three families on a random 70 %, judged on the rest, the best likelihood first."""
    from scipy import stats

    order = np.random.default_rng(0).permutation(len(values))
    cut = int(TRAINING_SHARE * len(values))
    train, held = values[order[:cut]], values[order[cut:]]
    fits = []
    for family, model in (("gamma", stats.gamma), ("lognormal", stats.lognorm)):
        parameters = model.fit(train, floc=0)
        likelihood = float(model.logpdf(held, *parameters).mean())
        distance = float(stats.kstest(held, model.cdf, parameters).statistic)
        fits.append(Fit(family, tuple(map(float, parameters)), likelihood, distance))
    parameters = stats.t.fit(np.log(train))
    likelihood = float((stats.t.logpdf(np.log(held), *parameters) - np.log(held)).mean())
    distance = float(stats.kstest(np.log(held), stats.t.cdf, parameters).statistic)
    fits.append(Fit(_IN_LOG, tuple(map(float, parameters)), likelihood, distance))
    return sorted(fits, key=lambda one: -one.log_likelihood)


def survival(one: Fit, at: Float64) -> Float64:
    """Share of values beyond `at` under a fit."""
    from scipy import stats

    if one.family == _IN_LOG:
        return np.asarray(stats.t.sf(np.log(at), *one.parameters))
    model = stats.gamma if one.family == "gamma" else stats.lognorm
    return np.asarray(model.sf(at, *one.parameters))


def draw(values: dict[str, Float64], fits: dict[str, list[Fit]], path: Path) -> None:
    """Plot the share beyond each value, data and fits."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    titles = {
        "leg": "leg: effective / planned minutes (RCF)",
        "stay": "stay: effective minutes / mean (DEP)",
    }
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        data = np.sort(values[name])
        beyond = 1.0 - (np.arange(len(data)) + 0.5) / len(data)
        axis.loglog(data, beyond, ".", color="0.6", markersize=3, label="Cargo 2000")
        at = np.geomspace(max(data[0], 0.05), data[-1], 200)
        for one in fits[name]:
            axis.loglog(at, survival(one, at), label=f"{one.family} (KS {one.distance:.3f})")
        axis.set(title=title, ylim=(1e-4, 1.2), xlabel="value", ylabel="share beyond")
        axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, print, plot; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m world.freight",
        description="Fit the tails of legs and stays on real freight (Cargo 2000, UCI 382).",
        epilog="example: python -m world.freight --cargo c2k.csv",
    )
    parser.add_argument("--cargo", type=Path, required=True, metavar="FILE", help="c2k.csv")
    parser.add_argument(
        "--plot", type=Path, default=Path("docs/img/world_freight.png"), metavar="FILE"
    )
    given = parser.parse_args(arguments)
    try:
        values = read(given.cargo)
    except (ValueError, OSError, pa.ArrowInvalid) as error:
        print(f"world.freight: {error}", file=sys.stderr)
        return 2
    fits = {name: fit(column) for name, column in values.items()}
    for name, column in values.items():
        print(f"{name}: {len(column):,} values, median {np.median(column):.3f}")
        for one in fits[name]:
            numbers = ", ".join(f"{p:.3f}" for p in one.parameters)
            print(
                f"  {one.family:<27} ({numbers})  held-out log-likelihood "
                f"{one.log_likelihood:.3f}  KS {one.distance:.3f}"
            )
    draw(values, fits, given.plot)
    print(f"plot -> {given.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
