"""Lyapunov exponents against the published ones of the `dysts` collection.

    python -m benchmarks.lyapunov             # measure, write the results
    python -m benchmarks.lyapunov --small     # three systems, for CI

Gilpin (2021, arXiv 2110.05266) lists chaotic flows with two estimates of their largest
exponent: by itself (`maximum_lyapunov_estimated`) and as the first of a spectrum
(`lyapunov_spectrum_estimated`). The data are in the package; nothing is downloaded.
Every flow is a recurrence here: one step of the classical Runge-Kutta method of ten
times the collection's `dt`, five hundred to its period, in float64.

Every second of the flows by name that are autonomous, without delay, of at most four
dimensions and not Hamiltonian, and have a published exponent.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from benchmarks import harness
from benchmarks.harness import Row

DTS_PER_STEP, STEPS_PER_PERIOD, LARGEST = 10, 500, 4
PERIODS, BURN_IN = 300, 50
SMALL, SMALL_PERIODS = ("Lorenz", "Rossler", "Halvorsen"), 40
OUTLIER = 0.5


def flows() -> Any:
    """Import the collection's vector fields; it warns where numba is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import dysts.flows
    return dysts.flows


def published() -> dict[str, Row]:
    """What the collection says of its flows, by name."""
    path = Path(flows().__file__).parent / "data" / "chaotic_attractors.json"
    return json.loads(path.read_text())


def suitable(row: Row) -> bool:
    """Whether a flow is one that a fixed step of a plain function can follow."""
    start = np.asarray(row["initial_conditions"])
    others = row["delay"] or row["nonautonomous"] or row["hamiltonian"]
    known = row["maximum_lyapunov_estimated"] and row["lyapunov_spectrum_estimated"]
    return bool(not others and known and start.ndim == 1 and start.size <= LARGEST)


def chosen() -> tuple[str, ...]:
    """Every second suitable flow, in alphabetical order."""
    return tuple(sorted(n for n, row in published().items() if suitable(row)))[::2]


def runge_kutta(field: Callable, dt: float) -> Callable:
    """One step of the classical method of fourth order, as a recurrence."""

    def f(x: jax.Array, _: None) -> jax.Array:
        a = field(x)
        b = field(x + dt / 2 * a)
        c = field(x + dt / 2 * b)
        return x + dt / 6 * (a + 2 * b + 2 * c + field(x + dt * c))

    return f


def recurrence(name: str) -> tuple[Callable, jax.Array, float]:
    """A flow as a recurrence, its start, and the length of a step.

    It is traced while `jax.numpy` stands for `numpy`: see `measure_one`.
    """
    system = getattr(flows(), name)()
    dt = DTS_PER_STEP * float(system.dt)
    f = runge_kutta(lambda x: jnp.stack(jnp.broadcast_arrays(*system.rhs(x, 0.0))), dt)
    return f, jnp.asarray(system.ic, jnp.float64), dt


def measure_one(name: str, periods: int = PERIODS, burn_in: int = BURN_IN) -> Row:
    """All exponents of one flow, per unit of time."""
    with mock.patch.object(flows(), "np", jnp):
        f, start, dt = recurrence(name)
        found = elk.lyapunov_spectrum(
            f,
            start,
            length=STEPS_PER_PERIOD * (periods + burn_in),
            burn_in=STEPS_PER_PERIOD * burn_in,
        ).per_time(dt)
    known = published()[name]
    largest, expected = float(found.exponents[0]), known["maximum_lyapunov_estimated"]
    return {
        "system": name,
        "D": start.size,
        "dt": dt,
        "largest": largest,
        "error of the mean": float(found.errors[0]),
        "published": expected,
        "first of the published spectrum": known["lyapunov_spectrum_estimated"][0],
        "spectrum": [float(x) for x in found.exponents],
        "published spectrum": known["lyapunov_spectrum_estimated"],
        "dimension": float(found.kaplan_yorke_dimension),
        "published dimension": known["kaplan_yorke_dimension"],
        "relative error": abs(largest - expected) / abs(expected),
    }


def measure(names: tuple[str, ...], periods: int, burn_in: int) -> list[Row]:
    """Some flows; one that cannot be traced is a row without numbers."""
    rows = []
    for name in names:
        try:
            rows.append(measure_one(name, periods, burn_in))
        except (TypeError, ValueError, jax.errors.JAXTypeError) as error:
            rows.append({"system": name, "not run": str(error).splitlines()[0][:80]})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def places(stored: dict[str, Any]) -> dict[str, str]:
    """What `docs/lyapunov.md` has places for."""
    rows = [row for row in stored["rows"] if "largest" in row]
    finite = [row for row in rows if np.isfinite(row["largest"])]
    own = [_ratio(row["first of the published spectrum"], row) for row in finite]
    ours = [_ratio(row["largest"], row) for row in finite]
    better = [min(x, _ratio(row["largest"], row, True)) for x, row in zip(ours, finite)]
    far = [row for row in finite if row["relative error"] > OUTLIER]
    columns = ["system", "D", "largest", "error of the mean", "published"]
    columns += ["first of the published spectrum", "relative error"]
    return {
        "table": harness.table(rows, columns),
        "number": str(len(finite)),
        "not_run": str(len(stored["rows"]) - len(finite)),
        "median": f"{np.median([row['relative error'] for row in finite]):.1%}",
        "median_better": f"{np.median(better) - 1:.1%}",
        "own": f"{np.median(own) - 1:.1%}",
        "outliers": ", ".join(row["system"] for row in far),
        "number_of_outliers": str(len(far)),
    }


def _ratio(value: float, row: Row, to_spectrum: bool = False) -> float:
    """By which factor a value differs from a published exponent; at least 1."""
    name = "first of the published spectrum" if to_spectrum else "published"
    if value * row[name] <= 0:
        return np.inf
    return max(value / row[name], row[name] / value)


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    jax.config.update("jax_enable_x64", True)
    if "--small" in arguments:
        measure(SMALL, SMALL_PERIODS, 10)
        return 0
    machine = harness.hardware("float64")
    harness.write("lyapunov", measure(chosen(), PERIODS, BURN_IN), machine)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
