"""Every public entry point, compiled for the H100 that is only described.

D = 1 to 128, float32 and float64, T = 1,000. A compilation runs in a process of its own
and is given up after `TIME_LIMIT` seconds of a processor, which counts as a failure.

    python -m benchmarks.gpu_counts --entry-points       # all of them, hours
    python -m benchmarks.gpu_counts --entry-points --only "D = 32, float32"
    python -m benchmarks.gpu_entry_points NAME D DTYPE   # one, here; prints seconds
"""

from __future__ import annotations

import itertools
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import elk_ssm as elk
from benchmarks import harness
from benchmarks.gpu_program import compile_for_h100
from benchmarks.harness import Row
from elk_ssm.interop import cells

LENGTH, SIZES, DTYPES = 1_000, (1, 4, 32, 128), ("float32", "float64")
TIME_LIMIT = 600
NOISE = 1e2
Program = tuple[Callable, tuple]


class Entry(NamedTuple):
    """An entry point at one size."""

    name: str
    size: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}, D = {self.size}, {self.dtype}"


def step(weights: jax.Array) -> Callable:
    """A vanilla RNN."""
    return lambda x, u: jnp.tanh(weights @ x + u)


def series(size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights, x_0 and inputs, in the dtype that is the default now."""
    return 0.5 * jnp.eye(size), jnp.zeros(size), jnp.ones((LENGTH, size))


def evaluating(method: Any = None, **options: Any) -> Callable[[int], Program]:
    def build(size: int) -> Program:
        def run(weights: Any, start: Any, inputs: Any) -> Any:
            how: Any = {"method": method} | options
            return elk.evaluate(step(weights), start, inputs, **how)

        return run, series(size)

    return build


def differentiated(method: Any = None, twice: bool = False) -> Callable[[int], Program]:
    def build(size: int) -> Program:
        run, arguments = evaluating(method)(size)
        gradient = jax.grad(lambda *args: jnp.sum(run(*args).states ** 2))
        if not twice:
            return gradient, arguments

        def along_itself(weights: Any, *rest: Any) -> Any:
            return jax.jvp(lambda w: gradient(w, *rest), (weights,), (weights,))[1]

        return along_itself, arguments

    return build


def batched(size: int) -> Program:
    run, (weights, start, inputs) = evaluating()(size)
    return jax.vmap(run, (None, None, 0)), (weights, start, jnp.stack([inputs] * 4))


def on_series(call: Callable) -> Callable[[int], Program]:
    """A call of `(f, start, inputs)`."""

    def build(size: int) -> Program:
        return lambda w, x, u: call(step(w), x, u), series(size)

    return build


def scanned(f: Callable, start: Any, inputs: Any) -> Any:
    return elk.scan(lambda c, u: (f(c, u), c), start, inputs)


def linear(call: Callable) -> Callable[[int], Program]:
    """A call of `(model, emissions)`, of a dense linear-Gaussian model."""

    def build(size: int) -> Program:
        weights, start, emissions = series(size)
        eye = jnp.eye(size)
        model = elk.LGSSM(start, eye, weights, eye, eye, eye)
        return call, (model, emissions)

    return build


def nonlinear(call: Callable) -> Callable[[int], Program]:
    """A call of `(model, emissions)`, of a nonlinear model."""

    def build(size: int) -> Program:
        one = elk.ScaledIdentity(1.0)

        def run(weights: Any, start: Any, emissions: Any) -> Any:
            parts: Any = one, step(weights), one, lambda z, u: z, one
            model = elk.NonlinearSSM(
                start, parts[0], lambda z, u: parts[1](z, 0.0), *parts[2:]
            )
            return call(model, emissions)

        return run, series(size)

    return build


def likelihood_gradient(model: elk.LGSSM, emissions: jax.Array) -> Any:
    return jax.grad(lambda y: jnp.sum(elk.lgssm_log_likelihood(model, y)))(emissions)


def fitted(size: int) -> Program:
    def run(start: Any, emissions: Any) -> Any:
        one = elk.ScaledIdentity(1.0)

        def build(log_noise: Any) -> elk.NonlinearSSM:
            noise: Any = elk.ScaledIdentity(jnp.exp(log_noise))
            return elk.NonlinearSSM(start, one, lambda z, u: z, noise, None, one)

        return elk.fit(build, jnp.zeros(()), emissions, num_steps=3).params

    return run, series(size)[1:]


def diagonal_cell(size: int) -> Program:
    cell = cells.init_diagonal_gru(jax.random.key(0), size, size, forget_length=20)

    def run(cell: Any, inputs: Any) -> Any:
        return elk.evaluate(*cells.diagonal_gru(cell), inputs)

    return run, (cell, series(size)[2])


def linen_cell(size: int) -> Program:
    from flax import linen

    cell, (_, start, inputs) = linen.GRUCell(size), series(size)
    variables = cell.init(jax.random.key(0), start, inputs[0])

    def run(variables: Any, inputs: Any) -> Any:
        return elk.evaluate(*cells.from_cell(cell, variables, start), inputs)

    return run, (variables, inputs)


METHODS = {
    "auto": None,
    "deer": elk.deer(),
    "quasi_deer": elk.quasi_deer(),
    "elk": elk.elk(NOISE),
    "quasi_elk": elk.quasi_elk(NOISE),
    "picard": elk.picard(),
    "jacobi": elk.jacobi(block_size=64),
}
PROGRAMS: dict[str, Callable[[int], Program]] = {
    **{f"evaluate, {name}": evaluating(m) for name, m in METHODS.items()},
    "evaluate, last state": evaluating(keep="last"),
    "evaluate, batch": batched,
    "gradient, auto": differentiated(),
    "gradient, deer": differentiated(elk.deer()),
    "gradient, quasi_deer": differentiated(elk.quasi_deer()),
    "second derivative, auto": differentiated(twice=True),
    "second derivative, deer": differentiated(elk.deer(), twice=True),
    "scan": on_series(scanned),
    "sequential": on_series(elk.sequential),
    "iterates": on_series(lambda *args: elk.iterates(*args, num_iters=3)),
    "sweep_noise": on_series(elk.sweep_noise),
    "diagnose": on_series(elk.diagnose),
    "linearize": on_series(
        lambda f, x, u: elk.linearize(f, u, u, initial_state=x, noise=1.0).smooth()
    ),
    "lgssm_filter": linear(elk.lgssm_filter),
    "lgssm_filter, square root": linear(
        lambda model, y: elk.lgssm_filter(model, y, form="square_root")
    ),
    "lgssm_smoother": linear(elk.lgssm_smoother),
    "lgssm_log_likelihood": linear(elk.lgssm_log_likelihood),
    "lgssm_log_likelihood, gradient": linear(likelihood_gradient),
    "lgssm_predict": linear(lambda model, y: elk.lgssm_predict(model, y, 10)),
    "lgssm_sample": linear(
        lambda model, y: elk.lgssm_sample(model, jax.random.key(0), y)
    ),
    "smooth": nonlinear(elk.smooth),
    "extended_smoother": nonlinear(elk.extended_smoother),
    "log_prob": nonlinear(lambda model, y: elk.log_prob(model, y, y)),
    "sample": nonlinear(
        lambda model, y: elk.sample(model, jax.random.key(0), len(y)).emissions
    ),
    "diagonal_gru": diagonal_cell,
}
if find_spec("optax"):
    PROGRAMS["fit"] = fitted
if find_spec("flax"):
    PROGRAMS["linen cell"] = linen_cell
ALL = tuple(
    Entry(name, size, dtype)
    for dtype, size, name in itertools.product(DTYPES, SIZES, PROGRAMS)
)
FEW = (Entry("scan", 4, "float64"),)


def compile_here(entry: Entry) -> float:
    """Seconds that one takes to compile."""
    with jax.enable_x64(entry.dtype == "float64"):
        function, arguments = PROGRAMS[entry.name](entry.size)
        return compile_for_h100(function, *arguments).seconds


def compile_apart(entry: Entry) -> Row:
    """Compile one in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu_entry_points"]
    command += [entry.name, str(entry.size), entry.dtype]
    row: Row = {"name": entry.name, "D": entry.size, "dtype": entry.dtype}
    done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True)
    if done.returncode in (-signal.SIGKILL, -signal.SIGXCPU):
        return row | {"failed": f"takes more than {TIME_LIMIT} CPU-s, or all memory"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        return row | {"failed": lines[-1][:200]}
    return row | {"compile s": float(done.stdout.split()[-1])}


def measure(entries: Iterable[Entry]) -> Iterator[Row]:
    """Compile them all, and say of each how it went."""
    for entry in entries:
        row = compile_apart(entry)
        print(row, flush=True)
        yield row


def by_key(rows: Iterable[Row]) -> dict[Entry, Row]:
    """Rows of the table by their entry."""
    return {Entry(row["name"], row["D"], row["dtype"]): row for row in rows}


def failures(rows: Iterable[Row]) -> list[str]:
    """What does not compile, a line each."""
    return [
        f"{entry}: {row['failed']}"
        for entry, row in by_key(rows).items()
        if "failed" in row
    ]


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (TIME_LIMIT, TIME_LIMIT))
    print(compile_here(Entry(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
