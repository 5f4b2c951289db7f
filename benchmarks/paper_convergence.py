"""Figures 4, 7 and 8 of arXiv 2407.19115: who converges, how fast, at which noise.

Called by `benchmarks.paper`; how errors are measured is in `benchmarks.paper_curves`.

One unit of "iterations" is a pass over all of time. A pass over blocks of C steps is
C + 2 log2(T / C) operations deep, one of a method without blocks 2 log2(T) + 1; so each
count is given as a depth as well, in the T steps of one sequential evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import elk_ssm as elk
from benchmarks import convergence, paper_curves, problems, train_argru
from benchmarks.harness import Row
from benchmarks.paper_curves import Case, Curve, case, follow, follow_ours

BLOCK = 32
POINTS = 80  # of a stored curve

LABELS = {
    "deer": "DEER",
    "quasi_deer": "quasi-DEER",
    "elk": "ELK",
    "quasi_elk": "quasi-ELK",
}
OURS = f"ours: Newton over blocks of {BLOCK}, gate"


class Sizes(NamedTuple):
    """How much of the three figures is run.

    Attributes:
        length: T of the AR-GRU.
        sweep_length: the same for the sweep, which gives up after as many iterations.
        weights: which trained weights: one for the curves, all of them for the sweep.
        noises: s^2 of the sweep over the AR-GRU.
        lorenz_length: T of Lorenz-96.
        lorenz_seeds: starts on its attractor: the first for the curves.
        lorenz_noises: s^2 of the sweep over it.
        passes: of ours, for its curve.
        brief: leave out the untrained network, the runs with resets, the defaults and
            the sweep over Lorenz-96.
    """

    length: int
    sweep_length: int
    weights: tuple[int, ...]
    noises: tuple[float, ...]
    lorenz_length: int
    lorenz_seeds: tuple[int, ...]
    lorenz_noises: tuple[float, ...]
    passes: int
    brief: bool = False


# The noises of the authors' scripts `fig7.py` and `fig8_top.py`, which take 15 draws at
# T = 10,000, and 10 starts at T = 1,000.
FULL = Sizes(
    length=10_000,
    sweep_length=1_000,
    weights=(0, 1, 2, 3, 4),
    noises=(1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 3e7, 1e8, 3e8),
    lorenz_length=1_000,
    lorenz_seeds=(1, 0, 2),
    lorenz_noises=(3e-1, 1e1, 3e1, 1e2, 3e2, 1e3, 3e3, 1e4, 1e5, 1e6),
    passes=60,
)
SMALL = Sizes(
    length=300,
    sweep_length=300,
    weights=(0,),
    noises=(1e2, 1e6),
    lorenz_length=200,
    lorenz_seeds=(0,),
    lorenz_noises=(1e1, 3e2),
    passes=20,
    brief=True,
)


NOT_FINITE = "not finite"
RESETS = {"nan_to_num": "NaN set to 0", "none": "no reset"}


def our_method(noise: float | None = None) -> Any:
    """What `auto` goes on with on an accelerator: Newton over blocks, gated."""
    gate = elk.Gate()
    if noise is None:
        return elk.deer(block_size=BLOCK, gate=gate)
    return elk.elk(noise, block_size=BLOCK, gate=gate)


def _row(known: Case, name: str, curve: Curve, noise: float | str, block: int) -> Row:
    """Counts and errors of one run, and its curve thinned for a picture."""
    problem, count = known.problem, paper_curves.reached(curve)
    last = curve.mad.size - 1
    kept = np.unique(np.geomspace(1, max(last, 1), POINTS).astype(int))
    deep = None if count is None else paper_curves.depth(count, problem.length, block)
    return {
        "problem": problem.name,
        "D": problem.state_dim,
        "T": problem.length,
        "method": name,
        "s^2": noise,
        "iterations": count,
        "depth over T": deep,
        "largest error on the way": _said(np.max(curve.largest[1:])),
        "error at the end": _said(curve.largest[-1]),
        "curve": {
            "iteration": kept.tolist(),
            "MAD": [_number(curve.mad[i]) for i in kept],
            "largest": [_number(curve.largest[i]) for i in kept],
        },
    }


def _number(value: Any) -> float | None:
    """Three digits; None is what JSON has for a number that is not finite."""
    return float(f"{value:.3g}") if np.isfinite(value) else None


def _said(value: Any) -> float | str:
    number = _number(value)
    return NOT_FINITE if number is None else number


def compare(
    known: Case,
    noises: dict[str, float],
    passes: int,
    resets: Sequence[str],
    brief: bool = False,
) -> list[Row]:
    """All published methods, with each reset of the undamped ones, and ours."""
    rows = []
    for method, label in LABELS.items():
        if method in noises:
            curve = follow(known, method, noises[method])
            rows.append(_row(known, label, curve, noises[method], 1))
            continue
        for reset in resets:
            curve = follow(known, method, reset=reset)
            rows.append(_row(known, f"{label}, {RESETS[reset]}", curve, "-", 1))
    rows.append(_row(known, OURS, follow_ours(known, our_method(), passes), "-", BLOCK))
    return rows if brief else [*rows, *_defaults(known)]


def _defaults(known: Case) -> list[Row]:
    """What `elk.evaluate` does with no method, to its own tolerance."""
    rows = []
    for name in ("auto (CPU)", "auto (accelerator)"):
        method = convergence.METHODS[name]()
        found = convergence.run(known.problem, name, method, None)
        size = float(jnp.max(jnp.abs(known.reference)))
        kept = {key: found[key] for key in ("problem", "D", "T", "depth over T")}
        kept |= {"method": f"ours: {name}", "s^2": "-", "status": found["status"]}
        kept |= {"iterations": found["iterations"]}
        rows.append(kept | {"error at the end": found["error"] * size})
    return rows


def autoregressive(sizes: Sizes) -> list[Row]:
    """Figure 4: the AR-GRU, untrained and trained; noises of the authors' `fig4.py`."""
    params = train_argru.init_params(jax.random.key(0))
    plain = {key: np.asarray(value, np.float32) for key, value in params.items()}
    untrained = problems.argru("AR-GRU, untrained", plain, sizes.length, 1)
    name = f"argru_seed{sizes.weights[0]}"
    trained = problems.make(name, sizes.length, 1)._replace(name="AR-GRU, trained")
    noises = {"elk": 1e6, "quasi_elk": 1e2}
    rows = []
    for problem in (trained,) if sizes.brief else (untrained, trained):
        known, resets = case(problem), ("nan_to_num",)
        rows += compare(known, noises, sizes.passes, resets, sizes.brief)
    return rows


def lorenz(sizes: Sizes) -> list[Row]:
    """Figure 8, bottom: Lorenz-96, D = 5; the noises of the authors' `fig8_bot.py`."""
    problem = problems.make("lorenz96", sizes.lorenz_length, sizes.lorenz_seeds[0])
    known = case(problem._replace(name="Lorenz-96"))
    noises = {"elk": 3e2, "quasi_elk": 1e1}
    passes = sizes.lorenz_length // BLOCK + 1
    resets = ("none",) if sizes.brief else tuple(RESETS)
    return compare(known, noises, passes, resets, sizes.brief)


def sensitivity(sizes: Sizes) -> dict[str, list[Row]]:
    """Figures 7 and 8, top: iterations to MAD < 0.1 for each constant noise."""
    trained = [
        case(problems.make(f"argru_seed{seed}", sizes.sweep_length, 1))
        for seed in sizes.weights
    ]
    found = {"AR-GRU, trained": _sweep(trained, sizes.noises)}
    if sizes.brief:
        return found
    flows = [
        case(problems.make("lorenz96", sizes.lorenz_length, seed))
        for seed in sizes.lorenz_seeds
    ]
    return found | {"Lorenz-96": _sweep(flows, sizes.lorenz_noises)}


def _sweep(members: list[Case], noises: Sequence[float]) -> list[Row]:
    """Iterations of all methods, at most T."""
    grid, rows = jnp.asarray(noises, jnp.float32), []
    limit = members[0].problem.length
    for method in ("elk", "quasi_elk"):
        found = [paper_curves.counts(known, method, grid, limit) for known in members]
        rows += _medians(LABELS[method], noises, found, limit)
    ours = [_our_counts(known, grid) for known in members]
    return rows + _medians(f"{OURS}, and damped", noises, ours, limit)


def _our_counts(known: Case, noises: jax.Array) -> np.ndarray:
    """Passes to a relative tolerance of 1e-3, which is tighter than a MAD of 0.1."""
    problem = known.problem
    found = elk.sweep_noise(
        problem.f,
        problem.initial_state,
        problem.inputs,
        noises,
        method=our_method(1.0),
        length=problem.length,
        tol=1e-3,
    )
    return np.where(found.converged, found.num_iters, -1)


def _medians(
    name: str, noises: Sequence[float], found: list[np.ndarray], limit: int
) -> list[Row]:
    """Median over members, one that did not arrive counted as the limit."""
    rows = []
    for i, noise in enumerate(noises):
        own = [int(member[i]) for member in found]
        middle = float(np.median([count if count >= 0 else limit for count in own]))
        row = {"method": name, "s^2": noise, "runs": len(own), "limit": limit}
        late = sum(count < 0 for count in own)
        rows.append(row | {"median iterations": middle, "did not arrive": late})
    return rows
