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
        weights: which trained weights: one for the curves, all of them for the sweep.
        limit: iterations after which the sweep gives up.
        noises: s^2 of the sweep over the AR-GRU.
        lorenz_length: T of Lorenz-96.
        lorenz_seeds: starts on its attractor.
        lorenz_noises: s^2 of the sweep over it.
        passes: of ours, for its curve.
        resets: of the undamped methods on Lorenz-96.
    """

    length: int
    weights: tuple[int, ...]
    limit: int
    noises: tuple[float, ...]
    lorenz_length: int
    lorenz_seeds: tuple[int, ...]
    lorenz_noises: tuple[float, ...]
    passes: int
    resets: tuple[str, ...] = ("nan_to_num", "none")


# The noises and lengths of the authors' scripts `fig7.py` and `fig8_top.py`; they take
# 15 draws and 10 starts.
FULL = Sizes(
    length=10_000,
    weights=(0, 1, 2, 3, 4),
    limit=2_000,
    noises=(1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 3e7, 1e8, 3e8),
    lorenz_length=1_000,
    lorenz_seeds=(0, 1, 2),
    lorenz_noises=(3e-1, 1e1, 3e1, 1e2, 3e2, 1e3, 3e3, 1e4, 1e5, 1e6),
    passes=60,
)
SMALL = Sizes(
    length=300,
    weights=(0,),
    limit=300,
    noises=(1e2, 1e6),
    lorenz_length=200,
    lorenz_seeds=(0,),
    lorenz_noises=(1e1, 3e2),
    passes=20,
    resets=("none",),
)


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
    worst = float(np.max(curve.largest[1:]))
    return {
        "problem": problem.name,
        "D": problem.state_dim,
        "T": problem.length,
        "method": name,
        "s^2": noise,
        "iterations": count,
        "depth over T": deep,
        "largest error on the way": worst if np.isfinite(worst) else "not finite",
        "error at the end": float(curve.largest[-1]),
        "curve": {
            "iteration": kept.tolist(),
            "MAD": [_number(curve.mad[i]) for i in kept],
            "largest": [_number(curve.largest[i]) for i in kept],
        },
    }


def _number(value: Any) -> float | None:
    return float(f"{value:.3g}") if np.isfinite(value) else None


def compare(
    known: Case, noises: dict[str, float], passes: int, resets: Sequence[str]
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
    ours = follow_ours(known, our_method(), passes)
    return [*rows, _row(known, OURS, ours, "-", BLOCK), *_defaults(known)]


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
    for problem in (untrained, trained):
        rows += compare(case(problem), noises, sizes.passes, ("nan_to_num",))
    return rows


def lorenz(sizes: Sizes) -> list[Row]:
    """Figure 8, bottom: Lorenz-96, D = 5; the noises of the authors' `fig8_bot.py`."""
    problem = problems.make("lorenz96", sizes.lorenz_length, sizes.lorenz_seeds[0])
    known = case(problem._replace(name="Lorenz-96"))
    noises = {"elk": 3e2, "quasi_elk": 1e1}
    passes = sizes.lorenz_length // BLOCK + 1
    return compare(known, noises, passes, sizes.resets)


def sensitivity(sizes: Sizes) -> dict[str, list[Row]]:
    """Figures 7 and 8, top: iterations to MAD < 0.1 for each constant noise."""
    trained = [
        case(problems.make(f"argru_seed{seed}", sizes.length, 1))
        for seed in sizes.weights
    ]
    flows = [
        case(problems.make("lorenz96", sizes.lorenz_length, seed))
        for seed in sizes.lorenz_seeds
    ]
    lorenz_limit = sizes.lorenz_length
    return {
        "AR-GRU, trained": _sweep(trained, sizes.noises, sizes.limit),
        "Lorenz-96": _sweep(flows, sizes.lorenz_noises, lorenz_limit),
    }


def _sweep(members: list[Case], noises: Sequence[float], limit: int) -> list[Row]:
    grid, rows = jnp.asarray(noises, jnp.float32), []
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
