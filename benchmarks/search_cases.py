r"""What the random search draws from: recurrences, methods, programs and their cases.

Every recurrence is f(p, x, u) with parameters p, a state x of shape `(D,)` (but for
`units`) and inputs u of shape `(W,)`.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import fuzz_patchwork as patchwork
from benchmarks import search_draws as draws
from benchmarks.fuzz_methods import MORE_METHODS
from benchmarks.search_draws import Draw, series


class Kind(NamedTuple):
    """A family of cases.

    Attributes:
        f: The recurrence.
        draw: `draw(rng, D, T)`.
        dimensions: D to choose from.
        exact: Whether amplification counts: without, the bound is the tolerance's.
    """

    f: Callable
    draw: Callable[[np.random.Generator, int, int], Draw]
    dimensions: tuple[int, ...] = (1, 3)
    exact: bool = False


def linear(p, x, u):
    return u[-1] * (p["A"] @ x) + p["b"] + u[:-1]


def stopped(p, x, u):
    seen = p["m"] * x + jax.lax.stop_gradient((1 - p["m"]) * x)
    return u[-1] * (p["A"] @ seen) + p["b"] + u[:-1]


def rnn(p, x, u):
    return p["s"] * jnp.tanh(p["W"] @ (x / p["s"]) + u)


def gru(p, x, u):
    h = x / p["s"]
    reset, update = jax.nn.sigmoid(p["W"][:2] @ h + p["b"][:, None] + u)
    proposal = jnp.tanh(p["W"][2] @ (reset * h) + u)
    return p["s"] * ((1 - update) * proposal + update * h)


def units(p, x, u):
    pressure = p["a"] * x["pressure"] + p["c"] * u[:2]
    return {"age": x["age"] + p["d"], "pressure": pressure}


def double_well(p, x, u):
    return x + p["h"] * (x - x**3) + p["c"] * u


def floor_count(p, x, u):
    return jnp.floor(x) + p["b"]


def rounded(p, x, u):
    return jnp.round(p["a"] * x + u) + p["b"]


def sign_walk(p, x, u):
    return x + p["h"] * jnp.sign(u - x)


def threshold(p, x, u):
    return jnp.where(x > p["at"], p["a"] * x, p["b"] * x) + u


def winner(p, x, u):
    best = jnp.argmax(p["W"] @ x + u)
    return p["a"] * x + jax.nn.one_hot(best, x.size, dtype=x.dtype)


def modulo(p, x, u):
    return jnp.mod(x + p["b"], p["m"])


def latch(p, x, u):
    return jnp.where(u > p["at"], u, p["a"] * x)


def catch(p, x, u):
    return jnp.where(jnp.abs(x) > p["at"], x, p["a"] * x + u)


def relu_sqrt(p, x, u):
    return jnp.stack([jax.nn.relu(p["a"] * x[0] + u[0]), jnp.sqrt(x[0])])


def root(p, x, u):
    return p["a"] * jnp.sqrt(x) + jnp.abs(u)


def inverse_root(p, x, u):
    return p["a"] / jnp.sqrt(x) + jnp.abs(u)


def logarithm(p, x, u):
    return jnp.log(p["a"] + x) + jnp.abs(u)


def reciprocal(p, x, u):
    return p["a"] / x + jnp.abs(u)


def square(p, x, u):
    return p["k"] * x * x + p["c"] * u


def exponential(p, x, u):
    return p["k"] * jnp.exp(x) + p["c"] * u


def signed_zero(p, x, u):
    return jnp.stack([p["a"] * x[0], jnp.arctan2(x[0], p["c"])])


# Every f with the kinds of numbers that it is run with.
KINDS = {
    "integrator": Kind(linear, draws.integrator, (1, 2, 5)),
    "drift beside large": Kind(linear, draws.drift_beside, (2, 5)),
    "slow decay": Kind(linear, draws.slow_decay, (1, 2, 5)),
    "rotation": Kind(linear, draws.rotation, (1, 2, 5)),
    "mixed scales": Kind(linear, draws.mixed_scales, (2, 5)),
    "outlier": Kind(linear, draws.outlier, (1, 2, 5)),
    "outlier, uneven": Kind(linear, draws.uneven_outlier, (1, 2, 5)),
    "far start": Kind(linear, draws.far_start, (1, 2, 5)),
    "late growth": Kind(linear, draws.late_growth, (1, 2, 5)),
    "late overflow": Kind(linear, draws.overflow, (1, 2, 5)),
    "stopped integrator": Kind(stopped, draws.stopping(draws.integrator)),
    "stopped decay": Kind(stopped, draws.stopping(draws.slow_decay)),
    "stopped rotation": Kind(stopped, draws.stopping(draws.rotation)),
    "stopped growth": Kind(stopped, draws.stopping(draws.late_growth)),
    "rnn": Kind(rnn, draws.cell, (2, 5)),
    "rnn, mixed scales": Kind(rnn, draws.scaled_cell, (2, 5)),
    "rnn, outlier": Kind(rnn, draws.struck_cell, (2, 5)),
    "gru": Kind(gru, draws.gated_cell, (2, 5)),
    "units": Kind(units, draws.in_units, (3,)),
    "slow well": Kind(double_well, draws.slow_well),
    "floor": Kind(floor_count, draws.counting),
    "round": Kind(rounded, draws.rounding),
    "sign": Kind(sign_walk, draws.walking),
    "threshold": Kind(threshold, draws.switching),
    "winner": Kind(winner, draws.choosing, (3,)),
    "modulo": Kind(modulo, draws.wrapping),
    "latch": Kind(latch, draws.latching),
    "catch": Kind(catch, draws.catching),
    "relu and root": Kind(relu_sqrt, draws.relu_root, (2,)),
    "root": Kind(root, draws.positive),
    "inverse root": Kind(inverse_root, draws.positive),
    "logarithm": Kind(logarithm, draws.above_one),
    "reciprocal": Kind(reciprocal, draws.positive),
    "square": Kind(square, draws.blowing_up),
    "exponential": Kind(exponential, draws.exploding),
    "signed zero": Kind(signed_zero, draws.zeros_of_a_sign, (2,), exact=True),
    "patchwork": Kind(patchwork.patchwork, patchwork.draw),
}

# Expressions, because a failure prints its own; `noise` and `slope` are drawn.
USER = (
    "elk.quasi_deer(linearization=elk.UserJacobian(lambda x, u: "
    "jax.tree.map(lambda leaf: jnp.full_like(leaf, slope), x)))"
)
METHODS = {
    "auto": "elk.auto()",
    "newton": 'elk.auto(strategy="newton")',
    "short blocks": 'elk.auto(strategy="short_blocks")',
    "forgetful": 'elk.auto(strategy="forgetful", block_size=16)',
    "deer": "elk.deer()",
    "quasi_deer": "elk.quasi_deer()",
    "elk": "elk.elk(noise)",
    "elk, gated": "elk.elk(noise, gate=elk.Gate())",
    "elk, annealed": "elk.elk(elk.Annealed(1.0, 4.0))",
    "elk, smoother": 'elk.elk(noise, estimate="smoother")',
    "quasi_elk": "elk.quasi_elk(noise)",
    "quasi_elk, gain ratio": "elk.quasi_elk(elk.GainRatio(1.0))",
    "picard": "elk.picard()",
    "jacobi": "elk.jacobi()",
    "user": USER,
    "deer, blocks": "elk.deer(block_size=8)",
    "deer, gated blocks": "elk.deer(block_size=16, gate=elk.Gate())",
    "quasi_deer, gated blocks": "elk.quasi_deer(block_size=32, gate=elk.Gate())",
    "jacobi, blocks": "elk.jacobi(block_size=16)",
    "elk, gated blocks": "elk.elk(noise, block_size=16, gate=elk.Gate())",
}
MAX_ITERS = 100
NOISES, SLOPES = (1e2, 1e6), (0.0, 0.5, 1.0)


def lengths(method: str) -> tuple[int, ...]:
    """T to choose from; the default runs in blocks from T = 2,000 only."""
    if method == "auto":
        return 2_500, 2_500, 2_500, 10_000
    if method in ("newton", "forgetful", "short blocks"):
        return 300, 2_500
    return (60, 60, 300) if "smoother" in method else (60, 300, 300, 2_500)


class Program(NamedTuple):
    """What is compiled once."""

    f: Callable
    method: str
    length: int
    dimension: int
    dtype: str
    keep: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def expression(self) -> str:
        """The method as it is written."""
        return (METHODS | MORE_METHODS)[self.method]


class Case(NamedTuple):
    """One run: a program and its numbers."""

    program: Program
    kind: str
    draw: Draw
    tol: float
    noise: float
    slope: float
    seed: int


def kinds_of(f: Callable, names: Any) -> list[str]:
    """Names of the kinds that run f."""
    return [name for name in names if KINDS[name].f is f]


def plan(
    rng: np.random.Generator, kinds: list[str], methods: list[str]
) -> Iterator[Program]:
    """Draw programs without end; an f with many kinds comes more often."""
    functions = list(dict.fromkeys(KINDS[name].f for name in kinds))
    weights = [-(-len(kinds_of(f, kinds)) // 3) for f in functions]
    repeated = np.repeat(np.arange(len(functions)), weights)
    pairs = [(i, method) for i in repeated for method in methods]
    while True:
        for place in rng.permutation(len(pairs)):
            number, method = pairs[place]
            yield _program(rng, functions[number], method, kinds)


def _program(rng: Any, f: Callable, method: str, kinds: list[str]) -> Program:
    dimensions = KINDS[kinds_of(f, kinds)[0]].dimensions
    return Program(
        f,
        method,
        int(rng.choice(lengths(method))),
        int(rng.choice(dimensions)),
        str(rng.choice(["float32", "float32", "float64"])),
        str(rng.choice(["all", "all", "all", "all", "last", "boundaries"])),
    )


def draw_case(program: Program, kinds: list[str], seed: int) -> Case:
    """Draw the numbers of one run."""
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(kinds_of(program.f, kinds)))
    draw = KINDS[kind].draw(rng, program.dimension, program.length)
    default = 1e-5 if program.dtype == "float32" else 1e-12
    tol = float(rng.choice([default, default, 1e-2, 1e-3]))
    noise, slope = float(rng.choice(NOISES)), float(rng.choice(SLOPES))
    return Case(program, kind, draw, tol, noise, slope, seed)


def arrays(case: Case) -> tuple[Any, Any, np.ndarray]:
    """Parameters, x_0 and inputs in the dtype of the run."""
    values = case.draw.p, case.draw.x0, series(**case.draw.recipe)
    return jax.tree.map(lambda x: np.asarray(x, case.program.dtype), values)
