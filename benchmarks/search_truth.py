r"""What the random search holds a solution against, and what it calls a failure.

The truth x_t is `lax.scan` of the same f in float64; a float32 run may as well be the
float32 scan, and their difference d_t widens the bound. With s_t the largest magnitude
of a dimension within the last 64 steps, and a perturbation of x_j by +- 8 tol s_j at a
single step j (in all dimensions, the signs such that their effects add up),

    a_t = max over j <= i <= t of |x_i perturbed - x_i| / (8 tol s_i)       at least 1
    |x_t - found_t| <= 10 tol s_t a_t + d_t              in every dimension, at every t

is what `converged` claims. Scale and amplification of a dimension are its own, and
those of a step know nothing of later ones. Discontinuities count where a perturbation
meets them. Every j is followed for one step; to the end are x_0, the steps where f
amplifies most, those where a state is largest, and random ones.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import elk_ssm as elk

WINDOW, FLOOR = 64, 1e-12
ALLOWED, STRUCK = 10, 8
_STEEPEST, _RANDOM = 8, 7
# Past this relative uncertainty two right programs may part.
_PARTED = 0.1


class Truth(NamedTuple):
    """Everything `(T, D)`; `own` is the scan in the dtype of the run, the rest float64.

    `apart` is the largest difference of the scans within the last 64 steps.
    """

    states: np.ndarray
    own: np.ndarray
    apart: np.ndarray
    scale: np.ndarray
    amplification: np.ndarray


class Found(NamedTuple):
    """A solution: its states `(n, D)` at steps `times`, status and failed step."""

    states: np.ndarray
    times: np.ndarray
    status: int
    failed_step: int


class Failure(NamedTuple):
    """Which claim fell, by how much (error over bound), and the numbers."""

    claim: str
    ratio: float
    detail: str


def running_maximum(x: Any) -> Any:
    """Largest entry of the last `WINDOW` rows, this one included."""
    reach = 1
    while reach < WINDOW:
        before = jnp.concatenate([jnp.zeros_like(x[:reach]), x[:-reach]])[: len(x)]
        x = jnp.maximum(x, before)
        reach *= 2
    return x


def flat(f: Callable, p: Any, x0: Any) -> tuple[Callable, Any]:
    """Return the recurrence on vectors, and x_0 as one."""
    start, unravel = ravel_pytree(x0)
    return lambda x, u: ravel_pytree(f(p, unravel(x), u))[0], start


def trajectory(f: Callable, p: Any, x0: Any, inputs: Any) -> Any:
    """States by `lax.scan`, `(T, D)`."""
    step, start = flat(f, p, x0)

    def body(x: Any, u: Any) -> Any:
        x = step(x, u)
        return x, x

    return jax.lax.scan(body, start, inputs)[1]


def _moves(tol: Any, size: Any) -> Any:
    """Perturbations of one dimension at a time, up and down, `(2, D, D)`."""
    return STRUCK * tol * jnp.stack([jnp.diag(size), -jnp.diag(size)])


def _largest(deviation: Any) -> Any:
    """Largest deviation over the signs of the perturbations; those add up linearly."""
    deviation = jnp.where(jnp.isfinite(deviation), jnp.abs(deviation), 0)
    return jnp.sum(jnp.max(deviation, axis=-3), axis=-2)


def _one_step(step: Any, full: Any, inputs: Any, scale: Any, tol: Any) -> Any:
    """Amplification by every single step, `(T, D)`."""

    def grown(x: Any, u: Any, size: Any, size_after: Any) -> Any:
        moved = jax.vmap(jax.vmap(lambda x: step(x, u)))(x + _moves(tol, size))
        return _largest(moved - step(x, u)) / (STRUCK * tol * size_after)

    return jax.vmap(grown)(full[:-1], inputs, scale[:-1], scale[1:])


def _many_steps(
    step: Any, full: Any, inputs: Any, scale: Any, tol: Any, times: Any
) -> Any:
    """Largest amplification of perturbations at one of `times`, `(T, D)`."""
    places = times[:, None, None, None]

    def body(x: Any, entry: Any) -> Any:
        number, u, before, size, true, size_after = entry
        struck = before + jnp.where(places == number, _moves(tol, size), 0)
        x = jnp.where(places >= number, struck, x)
        x = jax.vmap(jax.vmap(jax.vmap(lambda x: step(x, u))))(x)
        deviation = _largest(x - true) / (STRUCK * tol * size_after)
        return x, jnp.max(deviation, axis=0)

    dimension = full.shape[1]
    start = jnp.zeros((len(times), 2, dimension, dimension), full.dtype)
    numbers = jnp.arange(len(inputs))
    entries = numbers, inputs, full[:-1], scale[:-1], full[1:], scale[1:]
    return jax.lax.scan(body, start, entries)[1]


@cache
def truth_program(f: Callable) -> Callable:
    """Compile `(p, x0, inputs, tol, random, own) -> Truth`."""

    @jax.jit
    def run(p: Any, x0: Any, inputs: Any, tol: Any, random: Any, own: Any) -> Truth:
        step, start = flat(f, p, x0)
        states = trajectory(f, p, x0, inputs)
        full = jnp.concatenate([start[None], states])
        size = jnp.where(jnp.isfinite(full), jnp.abs(full), 0)
        scale = jnp.maximum(running_maximum(size), FLOOR)
        growth = _one_step(step, full, inputs, scale, tol)
        most = min(_STEEPEST, len(inputs))
        steepest = jax.lax.top_k(jnp.max(growth, axis=1), most)[1]
        largest = jnp.argmax(scale[:-1], axis=0)
        times = jnp.concatenate([jnp.zeros(1, int), steepest, largest, random])
        later = _many_steps(step, full, inputs, scale, tol, times)
        grown = jax.lax.cummax(jnp.maximum(growth, later))
        grown = jnp.maximum(grown, 1.0)
        apart = jnp.abs(states - own)
        apart = running_maximum(jnp.where(jnp.isfinite(apart), apart, 0))
        return Truth(states, own, apart, scale[1:], grown)

    return run


@cache
def scan_program(f: Callable) -> Callable:
    """Compile `(p, x0, inputs) -> states`."""
    return jax.jit(lambda p, x0, inputs: trajectory(f, p, x0, inputs))


def find_truth(
    f: Callable, p: Any, x0: Any, inputs: Any, tol: float, seed: int, exact: bool
) -> Truth:
    """Evaluate by scans. Arrays in the dtype of the run; `exact` switches a_t off."""
    with jax.enable_x64(inputs.dtype == np.float64):
        own = np.asarray(scan_program(f)(p, x0, inputs))
    rng = np.random.default_rng([seed, 1])
    random = rng.integers(0, len(own), _RANDOM)
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), (p, x0, inputs))
    with jax.enable_x64(True):
        found = truth_program(f)(*double, tol, random, own.astype(np.float64))
    truth = Truth(*map(np.asarray, found))
    if exact:
        truth = truth._replace(amplification=np.ones_like(truth.scale))
    return truth._replace(own=own)


def first_nonfinite(states: np.ndarray) -> int:
    """First row that is not finite, T for none."""
    broken = ~np.isfinite(states).all(axis=1)
    return int(np.argmax(broken)) if broken.any() else len(states)


def bound_of(truth: Truth, tol: float) -> np.ndarray:
    """What `converged` allows, `(T, D)`."""
    return ALLOWED * tol * truth.scale * truth.amplification + truth.apart


def judge(truth: Truth, found: Found, tol: float) -> tuple[float, list[Failure]]:
    """Return the largest error over its bound, and the claims that fell."""
    bound = bound_of(truth, tol)
    ratio, failures = _accuracy(truth, found, bound)
    if not np.isfinite(found.states).all():
        failures.append(Failure("finite states", np.inf, "non-finite states returned"))
    failures += _breaks(truth, found, bound)
    return ratio, failures


def _accuracy(
    truth: Truth, found: Found, bound: np.ndarray
) -> tuple[float, list[Failure]]:
    finite = min(first_nonfinite(truth.states), first_nonfinite(truth.own))
    at = found.times[found.times < finite]
    if found.status != elk.Status.converged or not len(at):
        return 0.0, []
    states = found.states[: len(at)].astype(np.float64)
    own = truth.own[at].astype(np.float64)
    error = np.minimum(np.abs(states - truth.states[at]), np.abs(states - own))
    ratio = np.where(np.isfinite(error), error / bound[at], np.inf)
    worst = float(ratio.max())
    if worst <= 1:
        return worst, []
    claim, place = _worst(ratio, _decayed(truth)[at])
    row, column = at[place[0]], place[1]
    text = (
        f"x[{row}, {column}] = {states[place]:.9g}, the scan's is "
        f"{truth.states[row, column]:.9g}; error {error[place]:.3g}, allowed "
        f"{bound[row, column]:.3g} (amplification "
        f"{truth.amplification[row, column]:.3g})"
    )
    return worst, [Failure(claim, float(ratio[place]), text)]


def _decayed(truth: Truth) -> np.ndarray:
    """Where a dimension is below the rounding of what it was, `(T, D)`."""
    was = np.maximum.accumulate(truth.scale)
    return truth.scale <= np.finfo(truth.own.dtype).eps * was


def _worst(ratio: np.ndarray, decayed: np.ndarray) -> tuple[str, tuple]:
    """Claim and place of the largest ratio, states that did not decay first."""
    claim, lively = "accuracy", np.where(decayed, 0, ratio)
    if lively.max() <= 1:
        claim, lively = "accuracy after decay", ratio
    return claim, tuple(np.unravel_index(np.argmax(lively), ratio.shape))


def _breaks(truth: Truth, found: Found, bound: np.ndarray) -> list[Failure]:
    """Statuses and failed steps against the first non-finite step of the scans."""
    own, double = first_nonfinite(truth.own), first_nonfinite(truth.states)
    first, length = min(own, double), len(bound)
    if (bound[:first] > _PARTED * truth.scale[:first]).any():
        return []
    said = found.status == elk.Status.nonfinite
    if own == length and (said or found.failed_step >= 0):
        text = f"status {found.status}, failed_step {found.failed_step}; all is finite"
        return [Failure("nonfinite", np.inf, text)]
    if own < length and found.status == elk.Status.converged:
        return [Failure("missed", np.inf, f"converged; the scan breaks at {own}")]
    if own < length and said and not first <= found.failed_step <= own:
        text = f"failed_step {found.failed_step}, the scan breaks at {own}"
        return [Failure("failed step", np.inf, text)]
    return []
