r"""Lyapunov exponents: the mean rates at which a recurrence stretches and shrinks.

Along a trajectory, k orthonormal directions are pushed through the Jacobians and made
orthonormal again after every step (Benettin et al. 1980, Meccanica 15, 9),

    J_t Q_{t-1} = Q_t R_t,        lambda_i = mean over t of log R_t[i, i].

They say how fast errors grow (lambda_1), how many directions grow (the unstable ones),
and how much of the past is kept. In what unit: per step of the recurrence; a flow that
is integrated with steps of dt has exponents lambda / dt per unit of time.

Gram and Schmidt's recursion, twice, in place of a factorisation: k is small, and a
batch is to call no LAPACK.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._closures import HoistedFunction
from elk_ssm._forward_mode import forward_mode
from elk_ssm._jax import deliberate_nans
from elk_ssm._options import check_tolerance
from elk_ssm._recurrence import Recurrence, canonicalize
from elk_ssm._showing import arrays, number, show
from elk_ssm._types import Array, Dynamics, PyTree
from elk_ssm._values import check_count
from elk_ssm.evaluation import sequential
from elk_ssm.solve.nodes import shift

_BATCHES = 10
_UNROLLED = 8


class LyapunovSpectrum(NamedTuple):
    """What `lyapunov_spectrum` found, in units of the recurrence's step.

    Attributes:
        exponents: Mean logarithmic growth per step, largest first, shape `(k,)`.
        errors: Their standard errors from the means over ten stretches of time, NaN for
            fewer than twenty steps, shape `(k,)`.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> found = elk.LyapunovSpectrum(jnp.array([0.9, 0.0, -14.6]), jnp.zeros(3))
        >>> round(float(found.kaplan_yorke_dimension), 2)
        2.06
    """

    exponents: Array
    errors: Array

    def __repr__(self) -> str:
        return show(
            "LyapunovSpectrum",
            exponents=arrays(self.exponents),
            range=number(self.exponents),
        )

    def per_time(self, dt: float) -> "LyapunovSpectrum":
        """The same per unit of time, for a flow integrated with steps of dt.

        Raises:
            ValueError: dt is not a positive number.
        """
        if dt is None:
            raise ValueError("dt must be a positive number; got None.")
        check_tolerance("dt", dt, zero=False)
        return LyapunovSpectrum(self.exponents / dt, self.errors / dt)

    @property
    def kaplan_yorke_dimension(self) -> Array:
        """Dimension of the attractor by Kaplan and Yorke (1979), from all exponents.

        j + (lambda_1 + ... + lambda_j) / |lambda_{j+1}|, where j is the largest number
        of exponents with a sum that is not negative; k where their sum never is.
        """
        sums = jnp.cumsum(self.exponents)
        count = jnp.sum(jnp.cumprod((sums >= 0).astype(jnp.int32)))
        kept = jnp.where(count > 0, sums[jnp.maximum(count - 1, 0)], 0)
        last = self.exponents.shape[0] - 1
        next_one = jnp.abs(self.exponents[jnp.minimum(count, last)])
        part = jnp.where(next_one > 0, kept / jnp.where(next_one > 0, next_one, 1), 0)
        return count + jnp.where(count > last, 0, part)

    @property
    def entropy(self) -> Array:
        """Sum of the positive exponents: Pesin's bound on the entropy rate, in nats."""
        return jnp.sum(jnp.maximum(self.exponents, 0))


def lyapunov_spectrum(
    f: Dynamics,
    initial_state: PyTree,
    inputs: PyTree = None,
    *,
    length: int | None = None,
    num_exponents: int | None = None,
    burn_in: int = 0,
) -> LyapunovSpectrum:
    """Find the Lyapunov exponents of a recurrence along its trajectory.

    Evaluates it step by step and pushes k directions along, O(T k (D + k)) numbers in
    time and O(T (D + k)) in memory. Chaotic trajectories want float64.

    Args:
        f: The recurrence, as for `evaluate`.
        initial_state: As for `evaluate`.
        inputs: As for `evaluate`.
        length: As for `evaluate`.
        num_exponents: Largest exponents k to follow; all D by default.
        burn_in: First steps that do not count: the trajectory reaches its attractor and
            the directions turn to those that grow.

    Returns:
        A `LyapunovSpectrum`. An exponent is -inf where a Jacobian is singular; what
        shrinks in one step by more than the dtype resolves is rounding.

    Raises:
        TypeError: `num_exponents` or `burn_in` is no integer.
        ValueError: `num_exponents` is not from 1 to D, or `burn_in` is not below T.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> rates = jnp.array([3.0, 0.5])
        >>> found = elk.lyapunov_spectrum(
        ...     lambda x, _: rates * x % 1.0, jnp.ones(2) / 7, length=200
        ... )
        >>> [round(float(x), 1) for x in found.exponents]
        [1.1, -0.7]
    """
    check_count("burn_in", burn_in, 0)
    if num_exponents is not None:
        check_count("num_exponents", num_exponents, 1)
    recurrence, states = trajectory_of(f, initial_state, inputs, length)
    steps, size = states.shape
    count = size if num_exponents is None else num_exponents
    if not 1 <= count <= size:
        raise ValueError(
            f"num_exponents must be from 1 to the {size} dimensions of the state; got "
            f"{num_exponents}."
        )
    if not 0 <= burn_in < steps:
        raise ValueError(
            f"burn_in must be from 0 to T - 1 = {steps - 1}; got {burn_in}."
        )
    rates = stretching(recurrence.function, count, recurrence.primals, states)
    return summarize_rates(rates[burn_in:])


def trajectory_of(
    f: Dynamics, initial_state: PyTree, inputs: PyTree, length: int | None
) -> tuple[Recurrence, Array]:
    """Evaluate step by step; the canonical recurrence and its states `(T, D)`."""
    states = sequential(f, initial_state, inputs, length=length).states
    recurrence = canonicalize(f, initial_state, inputs, length)
    return recurrence, recurrence.flatten_states(states, "states")


@partial(jax.jit, static_argnums=(0, 1))
def stretching(
    function: HoistedFunction, count: int, primals: tuple, states: Array
) -> Array:
    """Log R_t[i, i] at every step along the states, shape `(T, k)`."""
    consts, initial, inputs = primals
    step = partial(forward_mode(function), consts)
    size = states.shape[1]
    random = np.random.default_rng(0).normal(size=(size, count))
    frame = jnp.asarray(np.linalg.qr(random)[0].T, states.dtype)

    def body(frame: Array, entry: tuple) -> tuple[Array, Array]:
        state, user_input = entry
        tangent = jax.linearize(lambda x: step(x, user_input), state)[1]
        return orthonormalize(jax.vmap(tangent)(frame))

    return jax.lax.scan(body, frame, (shift(initial, states), inputs))[1]


def orthonormalize(rows: Array) -> tuple[Array, Array]:
    """Make rows `(k, D)` orthonormal in turn; the log of what was left of each."""
    if rows.shape[0] > _UNROLLED:
        return _orthonormalize_in_a_loop(rows)
    basis: list[Array] = []
    norms = []
    for row in rows:
        for _ in range(2):  # What the first projection leaves of rounding.
            parts = [jnp.sum(unit * row) * unit for unit in basis]
            row = row - sum(parts) if parts else row
        unit, norm = _unit_of(row)
        norms.append(norm)
        basis.append(unit)
    return jnp.stack(basis), jnp.stack(norms)


def _orthonormalize_in_a_loop(rows: Array) -> tuple[Array, Array]:
    def one(basis: Array, entry: tuple) -> tuple[Array, Array]:
        index, row = entry
        for _ in range(2):
            row = row - jnp.matmul(basis @ row, basis, precision="highest")
        unit, norm = _unit_of(row)
        return basis.at[index].set(unit), norm

    indices = jnp.arange(rows.shape[0])
    return jax.lax.scan(one, jnp.zeros_like(rows), (indices, rows))


def _unit_of(row: Array) -> tuple[Array, Array]:
    """A row of norm one, and the log of its norm, without squares that overflow."""
    largest = jnp.max(jnp.abs(row))
    scaled = row / jnp.where(largest > 0, largest, 1)
    norm = jnp.sqrt(jnp.sum(scaled * scaled))
    unit = scaled / jnp.where(norm > 0, norm, 1)
    return unit, jnp.log(largest) + jnp.where(norm > 0, jnp.log(norm), 0)


def summarize_rates(rates: Array) -> LyapunovSpectrum:
    """Means over time, largest first, and their standard errors by batch means."""
    exponents = jnp.mean(rates, axis=0)
    order = jnp.argsort(-exponents)
    size = rates.shape[0] // _BATCHES
    with deliberate_nans():
        errors = jnp.full_like(exponents, jnp.nan)
    if size >= 2:
        whole = rates[: size * _BATCHES].reshape(_BATCHES, size, -1)
        errors = jnp.std(jnp.mean(whole, axis=1), axis=0, ddof=1) / _BATCHES**0.5
    with deliberate_nans():
        return LyapunovSpectrum(exponents[order], errors[order])
