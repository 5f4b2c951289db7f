"""Smoothers timed against dynamax and cuthbert, and their errors in float32.

    python -m benchmarks.kalman            # measure, write results/kalman.json
    python -m benchmarks.kalman --small    # seconds, no files
    python -m benchmarks.kalman --compile  # measure the CPU time of compiling anew

Compile time is apart from run time; within a cell the candidates take turns, and the
medians are compared. Every candidate returns smoothed means and covariances of the
same float32 model. The parallel smoothers of dynamax and cuthbert compile for minutes
and can hang, so they run in a subprocess of their own with NPROC=16 and a time limit,
in a few cells only. cuthbert takes part where it is installed (`pip install cuthbert`):
nothing else here needs it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import harness
from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.kalman.smoothing import lgssm_smoother
from elk_ssm.linalg.structure import Diagonal, ScaledIdentity

RESULTS = harness.RESULTS / "kalman.json"
DIMENSIONS, LENGTHS = (2, 4, 8, 16, 32), (10_000, 100_000)
GAPS = 0.05
MANY, MANY_DIMENSIONS, MANY_LENGTH = (10, 100), 10, 2_000
LONG = 1_000_000
ISOLATED_CELLS = ((4, 10_000),)
LEAST = "the least algebra of a step"
TIME_LIMIT = 75
SECONDS_PER_CELL = 3.0

Arrays = dict[str, np.ndarray]


def case(D: int, T: int) -> Arrays:
    """A dense model with spectral radius 0.99, diagonal noises, and data from it."""
    rng = np.random.default_rng(D)
    F = rng.normal(size=(D, D))
    F *= 0.99 / np.abs(np.linalg.eigvals(F)).max()
    H = rng.normal(size=(D, D)) / np.sqrt(D)
    x, ys = np.zeros(D), np.empty((T, D))
    for t in range(T):
        x = F @ x + rng.normal(size=D)
        ys[t] = H @ x + np.sqrt(0.5) * rng.normal(size=D)
    return {"F": np.float32(F), "H": np.float32(H), "y": np.float32(ys)}


def ours(
    backend: Any, diagonal: bool = False, gaps: bool = False, period: int | None = None
) -> Callable:
    """Our smoother; `period` is that of dynamics that vary, all of which may differ."""

    def build(arrays: Arrays) -> tuple[Callable, tuple]:
        D, E = arrays["F"].shape[0], arrays["H"].shape[0]
        one, half = Diagonal(jnp.ones(D)), Diagonal(jnp.full(E, 0.5))
        F = Diagonal(jnp.full(D, 0.99)) if diagonal else jnp.asarray(arrays["F"])
        if period is not None:
            rng = np.random.default_rng(1)
            rates = rng.uniform(0.5, 1, period)[np.arange(len(arrays["y"])) % period]
            F = jnp.asarray(np.float32(rates)[:, None, None] * arrays["F"])
        H = one if diagonal else jnp.asarray(arrays["H"])
        model = LGSSM(jnp.zeros(D), one, F, one, H, half)
        y = np.array(arrays["y"])
        if gaps:
            y[np.random.default_rng(0).random(len(y)) < GAPS] = np.nan

        def smooth(model: LGSSM, y: jax.Array) -> tuple:
            found = lgssm_smoother(model, y, backend=backend)
            return found.smoothed_means, found.smoothed_covariances[0]

        return smooth, (model, jnp.asarray(y))

    return build


def dynamax(parallel: bool) -> Callable:
    def build(arrays: Arrays) -> tuple[Callable, tuple]:
        import dynamax.linear_gaussian_ssm as dyn

        from elk_ssm.interop.dynamax import to_dynamax

        # Importing dynamax raises the global precision; the others do not depend on it.
        D, one = arrays["F"].shape[0], ScaledIdentity(1.0)
        noise = ScaledIdentity(0.5)
        model = LGSSM(jnp.zeros(D), one, arrays["F"], one, arrays["H"], noise)
        run = dyn.parallel_lgssm_smoother if parallel else dyn.lgssm_smoother

        def smooth(params: Any, y: jax.Array) -> tuple:
            found = run(params, y)
            return found.smoothed_means, found.smoothed_covariances

        return smooth, (to_dynamax(model), jnp.asarray(arrays["y"]))

    return build


def cuthbert(parallel: bool) -> Callable:
    def build(arrays: Arrays) -> tuple[Callable, tuple]:
        from cuthbert import filter as run_filter
        from cuthbert import smoother as run_smoother
        from cuthbert.gaussian import kalman

        def smooth(F: jax.Array, H: jax.Array, y: jax.Array) -> tuple:
            D = F.shape[0]
            eye, zero = jnp.eye(D), jnp.zeros(D)

            # cuthbert starts one step earlier, so step 0 keeps the initial state.
            def dynamics(t):
                return jnp.where(t == 0, eye, F), zero, jnp.where(t == 0, 0 * eye, eye)

            def observe(t):
                return H, zero, jnp.sqrt(0.5) * eye, y[t]

            filter_ = kalman.build_filter(zero, eye, dynamics, observe)
            start, steps = filter_.init_prepare(), jnp.arange(len(y))
            states = run_filter(filter_, steps, start, parallel=parallel)
            smoother_ = kalman.build_smoother(dynamics)
            found = run_smoother(smoother_, states, parallel=parallel)
            roots = found.chol_cov[1:]
            covs = jnp.einsum("tij,tkj->tik", roots, roots, precision="highest")
            return found.mean[1:], covs

        return smooth, tuple(jnp.asarray(arrays[k]) for k in "FHy")

    return build


def least_algebra(arrays: Arrays) -> tuple[Callable, tuple]:
    """What the recursions are made of where matrices all differ, and no more.

    F P F', H P, H P H', K S K' and E P E', E F P: eight products a step, two factors
    and three triangular solves, each of a matrix of its own and of the step before.
    """
    D, T = arrays["F"].shape[0], len(arrays["y"])
    turned = jnp.asarray(np.linalg.qr(arrays["F"])[0])
    matrices = jnp.broadcast_to(turned, (T, D, D)) + jnp.zeros((T, 1, 1))

    def step(X: jax.Array, F: jax.Array) -> tuple[jax.Array, jax.Array]:
        for _ in range(8):
            X = jnp.matmul(F, X, precision="highest")
        for _ in range(2):
            S = jnp.eye(D) + 1e-3 * jnp.abs(X)
            root = jnp.linalg.cholesky(S, symmetrize_input=False)
            X = jax.scipy.linalg.solve_triangular(root, X, lower=True)
        X = jax.scipy.linalg.solve_triangular(root, X, lower=True, trans=1)
        return X, X

    def run(matrices: jax.Array) -> tuple:
        found = lax.scan(step, turned, matrices)[1]
        return found[:, 0], found

    return run, (matrices,)


CANDIDATES = {
    "ours, sequential": ours("sequential"),
    "ours, 5 % of the steps missing": ours("sequential", gaps=True),
    "ours, dynamics of twelve months": ours("sequential", period=12),
    "ours, dynamics that all differ": ours("sequential", period=10_000),
    LEAST: least_algebra,
    "ours, associative": ours("associative"),
    "ours, diagonal model": ours("sequential", diagonal=True),
    "dynamax, sequential": dynamax(parallel=False),
    "dynamax, parallel": dynamax(parallel=True),
    "cuthbert, sequential": cuthbert(parallel=False),
    "cuthbert, parallel": cuthbert(parallel=True),
}
VARYING = (
    "ours, 5 % of the steps missing",
    "ours, dynamics of twelve months",
    "ours, dynamics that all differ",
)
OTHER_MODELS = (*VARYING, LEAST, "ours, diagonal model")
ISOLATED = ("dynamax, parallel", "cuthbert, parallel")


def is_run(name: str, D: int, T: int) -> bool:
    if name.startswith("cuthbert") and find_spec("cuthbert") is None:
        return False
    if name == "ours, associative":
        return D <= 4
    if name == "cuthbert, sequential":
        return T <= 10_000 and D <= 16
    if name in VARYING[1:]:
        return T <= 10_000
    if name == LEAST:
        return T <= 10_000 and D >= 16
    return name not in ISOLATED


def compiled(name: str, arrays: Arrays) -> tuple[Callable[[], Any], dict[str, Any]]:
    smooth, arguments = CANDIDATES[name](arrays)
    start = time.perf_counter()
    lowered = jax.jit(smooth).lower(*arguments)
    program = lowered.compile()
    row = {
        "compile_s": time.perf_counter() - start,
        "temp_mb": program.memory_analysis().temp_size_in_bytes / 1e6,
    }
    return lambda: jax.block_until_ready(program(*arguments)), row


def compile_cpu() -> dict[str, float]:
    """CPU seconds to compile at D = 4, T = 1e4, which other programs do not stretch."""
    arrays, found = case(4, 10_000), {}
    for backend in ("sequential", "associative"):
        start = time.process_time()
        compiled(f"ours, {backend}", arrays)
        found[backend] = time.process_time() - start
    return found


def measure(names: list[str], D: int, T: int) -> list[dict[str, Any]]:
    """Compile all, then let them take turns for a few seconds; medians."""
    arrays = case(D, T)
    expected = reference(arrays) if T <= 10_000 else None
    programs = {name: compiled(name, arrays) for name in names}
    results = {name: run() for name, (run, _) in programs.items()}
    rows = []
    for name, row in take_turns(programs).items():
        row |= {"candidate": name, "D": D, "T": T}
        if expected is not None and name not in OTHER_MODELS:
            row["max_error"] = float(
                np.abs(results[name][0] - expected).max() / np.abs(expected).max()
            )
        rows.append(row)
    return rows


def take_turns(programs: dict[str, tuple]) -> dict[str, dict[str, Any]]:
    """Run all of them in turn for a few seconds; medians, in what was known of each."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    begun, rounds = time.perf_counter(), 0
    for run, _ in programs.values():
        run()
    while rounds < 3 or (
        time.perf_counter() - begun < SECONDS_PER_CELL and rounds < 25
    ):
        for name, (run, _) in programs.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
        rounds += 1
    return {
        name: row
        | {
            "run_ms": np.median(times[name]),
            "quartiles_ms": list(np.percentile(times[name], [25, 75])),
        }
        for name, (_, row) in programs.items()
    }


def many() -> list[dict[str, Any]]:
    """Ten dimensions seen by ten emissions, and by a hundred."""
    rows = []
    for E in MANY:
        rng = np.random.default_rng(E)
        arrays = case(MANY_DIMENSIONS, MANY_LENGTH)
        arrays["H"] = np.float32(rng.normal(size=(E, MANY_DIMENSIONS)))
        arrays["y"] = np.float32(rng.normal(size=(MANY_LENGTH, E)))
        names = ("ours, sequential", "dynamax, sequential")
        found = take_turns({name: compiled(name, arrays) for name in names})
        rows += [row | {"candidate": name, "E": E} for name, row in found.items()]
    return rows


def long() -> dict[str, float]:
    """The smoother of a million steps of one dimension beside a sum over the series."""
    arrays = case(1, LONG)
    series = jnp.asarray(arrays["y"])
    total = jax.jit(lambda y: jnp.cumsum(y, axis=0)).lower(series).compile()
    programs = {
        "ours, sequential": compiled("ours, sequential", arrays),
        "cumsum": (lambda: jax.block_until_ready(total(series)), {}),
    }
    return {name: row["run_ms"] for name, row in take_turns(programs).items()}


def reference(arrays: Arrays) -> np.ndarray:
    """Smoothed means in NumPy float64."""
    from tests.kalman import oracle

    D = arrays["F"].shape[0]
    parts = (arrays["F"], np.eye(D), arrays["H"], 0.5 * np.eye(D), arrays["y"])
    return oracle.rts(*(np.float64(part)[None] for part in parts))[2][0]


def isolated(name: str, D: int, T: int) -> dict[str, Any]:
    """Measure in a process of its own, killed at the time limit."""
    command = [sys.executable, "-m", "benchmarks.kalman", "--one", name, str(D), str(T)]
    environment = os.environ | {"NPROC": "16"}
    row = {"candidate": name, "D": D, "T": T}
    try:
        done = subprocess.run(
            command, cwd=harness.ROOT, env=environment, timeout=TIME_LIMIT,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return row | {"failed": f"no result within {TIME_LIMIT} s"}
    except subprocess.CalledProcessError as error:
        return row | {"failed": error.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def accuracy() -> list[dict[str, Any]]:
    """Float32 errors at T = 10,000 over the promised grid, ours and dynamax's."""
    import dynamax.linear_gaussian_ssm as dyn
    from tests.kalman import test_accuracy as grids

    from elk_ssm.interop.dynamax import to_dynamax

    rows = []
    for structure in ("dense", "partial", "diagonal"):
        found, expected = grids.errors_of(structure, 10_000, "sequential")
        rows += error_rows(f"ours, {structure}", found, expected)
    cases = grids.grid("dense", 10_000)
    names = ("filtered_means", "smoothed_means", "filtered_covariances")
    names += ("smoothed_covariances", "marginal_loglik")

    @jax.jit
    def run(F, Q, H, R, y):
        params = to_dynamax(LGSSM(jnp.zeros(len(F)), jnp.eye(len(F)), F, Q, H, R))
        posterior = dyn.lgssm_smoother(params, y)
        return [getattr(posterior, name) for name in names]

    each = [run(*(jnp.float32(part[i]) for part in cases)) for i in range(len(cases.F))]
    found = [np.array(part, np.float64) for part in zip(*each)]
    _, expected = grids.errors_of("dense", 10_000, "sequential")
    return rows + error_rows("dynamax, dense", found, expected)


def error_rows(name: str, found: Any, expected: Any) -> list[dict[str, Any]]:
    from tests.kalman import test_accuracy as grids

    fm, sm, fP, sP, ll = found
    rfm, _, rsm, _, rll = expected
    lowest = [
        np.linalg.eigvalsh((P + P.swapaxes(-1, -2)) / 2).min((-1, -2)) for P in (fP, sP)
    ]
    filtered, smoothed = grids.relative(fm, rfm), grids.relative(sm, rsm)
    return [
        {
            "candidate": name, "noise": noise, "radius": radius,
            "filter": filtered[i], "smoother": smoothed[i],
            "likelihood": abs(ll[i] - rll[i]) / abs(rll[i]),
            "eigenvalue": min(low[i] for low in lowest),
        }
        for i, (noise, radius) in enumerate(grids.CASES)
    ]  # fmt: skip


def ratios(rows: list[harness.Row], wide: list[harness.Row]) -> list[harness.Row]:
    """Our times over those of dynamax's sequential smoother, the worst first."""
    at = {(r["candidate"], r["D"], r["T"]): r for r in rows}
    found = []

    def add(what: str, asked: float, above: Any, below: Any, key: str) -> None:
        found.append(
            {"what": what, "asked": asked, "measured": above[key] / below[key]}
        )

    for D in DIMENSIONS:
        for T in LENGTHS:
            theirs = at["dynamax, sequential", D, T]
            for name in ("ours, sequential", *VARYING):
                asked = 0.3 if name in VARYING else 0.1
                if not is_run(name, D, T):
                    continue
                cell = f"{name.removeprefix('ours, ')}, D = {D}, T = {T}"
                add(cell, asked, at[name, D, T], theirs, "run_ms")
    for D, asked in ((4, 1.0), (16, 1.5)):
        ours, theirs = (at[f"{k}, sequential", D, 10_000] for k in ("ours", "dynamax"))
        add(f"compile, D = {D}", asked, ours, theirs, "compile_s")
    by = {(r["candidate"], r["E"]): r for r in wide}
    ours, theirs = (by[f"{k}, sequential", MANY[-1]] for k in ("ours", "dynamax"))
    add(f"D = 10, E = {MANY[-1]}, T = 2,000", 0.1, ours, theirs, "run_ms")
    add(
        "E = 100 over E = 10, both ours",
        2.0,
        ours,
        by["ours, sequential", 10],
        "run_ms",
    )
    return sorted(found, key=lambda row: -row["measured"] / row["asked"])


def places(stored: dict[str, Any]) -> dict[str, str]:
    """What `docs/kalman.md` has places for."""
    machine = stored["hardware"]
    long = stored["long"]
    smoothers = [_smoother(row) for row in stored["smoothers"]]
    accuracy = [_accuracy(row) for row in stored["accuracy"]]
    return {
        "machine": f"{machine['cpu']}, {machine['cores']} cores, jax {machine['jax']}, "
        f"Python {machine['python']}, {machine['dtype']}. Load average at the start "
        f"{stored['load_start']:.1f}, at the end {stored['load_end']:.1f}",
        "promises": _promises(stored["ratios"]),
        "compile_cpu": ", ".join(
            f"{name} {value:.1f} s" for name, value in stored["compile_cpu"].items()
        ),
        "least": _least(stored["smoothers"]),
        "long": f"{long['ours, sequential'] / long['cumsum']:.0f}",
        "smoothers": harness.table(smoothers, list(smoothers[0])),
        "time_limit": str(TIME_LIMIT),
        "accuracy": harness.table(accuracy, list(accuracy[0])),
    }


def _least(rows: list[harness.Row]) -> str:
    """The least algebra of a step over dynamax's whole smoother, by D."""
    at = {(r["candidate"], r["D"]): r for r in rows if r["T"] == 10_000}
    found = {D: row["run_ms"] for (name, D), row in at.items() if name == LEAST}
    theirs = {D: at["dynamax, sequential", D]["run_ms"] for D in found}
    return ", ".join(f"{ms / theirs[D]:.2f} at D = {D}" for D, ms in found.items())


def _promises(rows: list[harness.Row]) -> str:
    named = [
        {
            "what": row["what"],
            "ratio asked, at most": row["asked"],
            "ratio measured": row["measured"],
        }
        for row in rows
    ]
    return harness.table(named, list(named[0]))


def _smoother(row: harness.Row) -> harness.Row:
    return {
        **{name: row[name] for name in ("D", "T", "candidate")},
        "run, ms": row.get("failed", row.get("run_ms")),
        "compile, s": f"{row['compile_s']:.2g}" if "compile_s" in row else "",
        "temporary, MB": row.get("temp_mb", ""),
        "error": f"{row['max_error']:.0e}" if "max_error" in row else "",
    }


def _accuracy(row: harness.Row) -> harness.Row:
    return {
        "candidate": row["candidate"],
        "noise": f"{row['noise']:.0e}",
        "spectral radius": row["radius"],
        "filter": f"{row['filter']:.0e}",
        "smoother": f"{row['smoother']:.0e}",
        "log-likelihood": f"{row['likelihood']:.0e}",
        "smallest eigenvalue": f"{row['eigenvalue']:.2g}",
    }


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--one"]:
        name, D, T = arguments[1], int(arguments[2]), int(arguments[3])
        print(json.dumps(measure([name], D, T)[0]))
        return
    if "--small" in arguments:
        names = ["ours, sequential", "ours, diagonal model", "dynamax, sequential"]
        print(harness.table(measure(names, 2, 100), ["candidate", "run_ms"]))
        return
    if arguments == ["--compile"]:
        found = harness.read("kalman") | {"compile_cpu": compile_cpu()}
    else:
        found = run_all()
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def run_all() -> dict[str, Any]:
    start, rows = os.getloadavg()[0], []
    for D in DIMENSIONS:
        for T in LENGTHS:
            rows += measure([n for n in CANDIDATES if is_run(n, D, T)], D, T)
            if (D, T) in ISOLATED_CELLS:
                names = ISOLATED if find_spec("cuthbert") else ISOLATED[:1]
                rows += [isolated(name, D, T) for name in names]
            print(f"D = {D}, T = {T} done", flush=True)
    wide = many()
    return {
        "hardware": harness.hardware(),
        "load_start": start, "load_end": os.getloadavg()[0],
        "compile_cpu": compile_cpu(), "long": long(),
        "ratios": ratios(rows, wide), "smoothers": rows, "many": wide,
        "accuracy": accuracy(),
    }  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
