"""Models of series against statsmodels: likelihoods, optima, and times side by side.

    python -m benchmarks.series            # write results/series.json
    python -m benchmarks.series --small    # a minute or so, no files

A fit is the search and the standard errors, both starting from a series alone. Ours is
one compiled program, timed once with its compilation and then in turns with
statsmodels'. The likelihoods are compared at our optimum, and the optima by
statsmodels' likelihood.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from benchmarks import harness
from benchmarks.harness import Row
from benchmarks.series_cases import (
    APPROXIMATE,
    TREND,
    WEEKLY,
    WEEKLY_OPTIONS,
    Case,
    cases,
    factor,
    load,
    quarterly,
    structural,
    wide,
)
from elk_ssm.models.descent import Search, climb

MANY, STEPS = 100, 120
MANY_MODEL = "trend + seasonal(4)"


def timed(function: Any, *arguments: Any) -> tuple[float, Any]:
    """Return seconds, and what came."""
    start = time.perf_counter()
    found = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start, found


def in_turns(functions: tuple, rounds: int) -> tuple[list[float], list[Any]]:
    """Return the median seconds of each, taking turns, and what came last."""
    seconds: list[list[float]] = [[] for _ in functions]
    found: list[Any] = [None] * len(functions)
    for _ in range(rounds):
        for i, function in enumerate(functions):
            spent, found[i] = timed(function)
            seconds[i].append(spent)
    return [float(np.median(x)) for x in seconds], found


def fit_theirs(model: Any) -> Any:
    """Fit by statsmodels, with standard errors."""
    found = model.fit(disp=0, maxiter=500)
    return found, found.bse


def measure_case(case: Case, rounds: int) -> Row:
    """Fit a series both ways, and compare likelihoods and times."""
    y = jnp.asarray(case.y)
    run = jax.jit(lambda y: elk.fit(case.ours, y))
    first, _ = timed(run, y)
    theirs = case.theirs(case.y)
    both = (lambda: run(y)), (lambda: fit_theirs(theirs))
    (ours_s, theirs_s), (fitted, (found, _)) = in_turns(both, rounds)
    at = theirs.loglike(case.vector(fitted.parameters))
    row = {
        "series and model": case.name,
        "T": len(case.y),
        "D": case.ours.lgssm().state_dim,
        "ours, s": ours_s,
        "statsmodels, s": theirs_s,
        "over statsmodels": ours_s / theirs_s,
        "ours with compiling, s": first,
        "difference at our parameters": float(
            fitted.log_likelihood - at - case.constant
        ),
        "gain at our optimum": float(at - found.llf),
        "ours converged": "yes" if bool(fitted.converged) else "no",
        "theirs converged": "yes" if found.mle_retvals["converged"] else "no",
    }
    print(row, flush=True)
    return row


def measure_factor(rounds: int) -> Row:
    """The same of one factor of several series, whose model is written by hand."""
    pair = factor()
    y = jnp.asarray(pair.y)

    def value(x: Any) -> Any:
        return elk.lgssm_log_likelihood(pair.lgssm(pair.constrained(x)), y)

    run = jax.jit(lambda x: climb(value, x, Search()))
    start = jnp.asarray(pair.unconstrained(pair.theirs.start_params))
    first, _ = timed(run, start)
    both = (lambda: run(start)), (lambda: fit_theirs(pair.theirs))
    (ours_s, theirs_s), (ours, (found, _)) = in_turns(both, rounds)
    at = pair.theirs.loglike(np.asarray(pair.constrained(ours.x)))
    row = {
        "series and model": "growth, a factor of four",
        "T": len(pair.y),
        "D": 1,
        "ours, s": ours_s,
        "statsmodels, s": theirs_s,
        "over statsmodels": ours_s / theirs_s,
        "ours with compiling, s": first,
        "difference at our parameters": float(ours.value - at),
        "gain at our optimum": float(at - found.llf),
        "ours converged": "yes" if ours.status == elk.Status.converged else "no",
        "theirs converged": "yes" if found.mle_retvals["converged"] else "no",
    }
    print(row, flush=True)
    return row


def measure_many(count: int, steps: int) -> Row:
    """Fit many series at once, and one after the other by statsmodels."""
    ys = quarterly(count, steps)
    model = elk.models.parse(MANY_MODEL)
    run = jax.jit(jax.vmap(lambda y: elk.fit(model, y)))
    first, _ = timed(run, jnp.asarray(ys))
    ours_s, fitted = timed(run, jnp.asarray(ys))
    make = structural(level="lltrend", seasonal=4)
    theirs_s, found = timed(lambda: [fit_theirs(make(y))[0].llf for y in ys])
    gains = np.asarray(fitted.log_likelihood) - np.asarray(found)
    row = {
        "series": count,
        "T": steps,
        "D": model.lgssm().state_dim,
        "ours, s": ours_s,
        "ours with compiling, s": first,
        "statsmodels, s": theirs_s,
        "over statsmodels": ours_s / theirs_s,
        "with compiling, over statsmodels": first / theirs_s,
        "ours converged": int(fitted.converged.sum()),
        "least gain": float(gains.min()),
        "largest gain": float(gains.max()),
    }
    print(row, flush=True)
    return row


def measure_diffuse(y: np.ndarray) -> list[Row]:
    """The likelihood of the weekly series, by every way of saying `diffuse`."""
    names = (*TREND, "seasonal.variance")
    vector = np.array([0.09, 0.0076, 5e-8, 6e-5])
    model = elk.models.parse(WEEKLY).replace(**dict(zip(names, vector)))
    data = jnp.asarray(y)[:, None]
    matrices = model.lgssm()
    size = matrices.state_dim
    rows = []

    def add(what: str, ours: Any, theirs: Any) -> None:
        gap = "" if theirs is None else float(ours) - float(theirs)
        theirs = "" if theirs is None else float(theirs)
        rows.append({"first state": what, "ours": float(ours)})
        rows[-1] |= {"statsmodels": theirs, "difference": gap}
        print(rows[-1], flush=True)

    exact = structural(**WEEKLY_OPTIONS)(y).loglike(vector)
    add("diffuse, one filter with a regression", model.log_likelihood(data), exact)
    apart = elk.lgssm_log_likelihood(matrices, model.centred(data))
    add("diffuse, the first state kept apart", apart, exact)
    rough = wide(**WEEKLY_OPTIONS)(y)
    vague = matrices._replace(
        initial_covariance=elk.Diagonal(jnp.full(size, APPROXIMATE))
    )
    approximate = elk.lgssm_log_likelihood(vague, data)
    add(f"variance {APPROXIMATE:.0e}", approximate, rough.loglike(vector))
    limit = approximate + size / 2 * np.log(APPROXIMATE)
    add(f"the same, times {APPROXIMATE:.0e}^({size}/2)", limit, exact)
    return rows


def places(stored: dict[str, Any]) -> dict[str, str]:
    """What `docs/series.md` has places for."""
    found = stored["rows"]
    fits = sorted(found["fits"], key=lambda row: -row["over statsmodels"])
    times = ["series and model", "T", "D", "ours, s", "statsmodels, s"]
    times += ["over statsmodels", "ours with compiling, s"]
    optima = ["series and model", "difference at our parameters"]
    optima += ["gain at our optimum", "ours converged", "theirs converged"]
    weekly = next(row for row in fits if row["series and model"].startswith("co2"))
    many = found["many"]
    return {
        "times": harness.table(fits, times),
        "optima": harness.table(fits, optima),
        "many": harness.table(many, list(many[0])),
        "diffuse": harness.table(
            [
                {k: f"{v:,.6f}" if isinstance(v, float) else v for k, v in row.items()}
                for row in found["diffuse"]
            ],
            list(found["diffuse"][0]),
        ),
        "weekly": f"{weekly['over statsmodels']:.2f}",
        "weekly_seconds": f"{weekly['ours, s']:.2f}",
        "many_share": f"{many[0]['over statsmodels']:.3f}",
        "many_compiling": f"{many[0]['with compiling, over statsmodels']:.2f}",
    }


def measure(small: bool) -> dict[str, list[Row]]:
    """Measure all of it, in float64 as statsmodels."""
    with jax.enable_x64(True):
        chosen = cases()[:1] if small else cases()
        fits = [measure_case(case, 1 if small else 3) for case in chosen]
        if not small:
            fits.append(measure_factor(3))
        many = [measure_many(*((2, 24) if small else (MANY, STEPS)))]
        weekly = load("co2")["co2"].to_numpy(float)
        diffuse = measure_diffuse(weekly[:150] if small else weekly)
    return {"fits": fits, "many": many, "diffuse": diffuse}


def main(arguments: list[str]) -> int:
    """Run the command line of this benchmark."""
    small = "--small" in arguments
    machine = harness.hardware("float64")
    rows = measure(small)
    if not small:
        harness.write("series", rows, machine)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
