"""A whole grid of damping strengths in one compiled, mapped call."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from elk_ssm._options import concrete_method
from elk_ssm._recurrence import canonicalize
from elk_ssm._showing import arrays, known, named, number, show
from elk_ssm._types import Array, ArrayLike, Dynamics, PyTree
from elk_ssm.evaluation import evaluate
from elk_ssm.parallel.backend import Backend
from elk_ssm.solution import Status
from elk_ssm.solve.method import Method
from elk_ssm.surrogate.jacobians import DiagonalJacobian
from elk_ssm.surrogate.noise import Constant
from elk_ssm.surrogate.policy import check_positive


class NoiseSweep(NamedTuple):
    """What each noise did.

    Attributes:
        noises: s^2, shape `(N,)`.
        num_iters: Iterations, integer array `(N,)`.
        residual_norm: Largest residual that the last iteration saw, `(N,)`.
        status: Values of `Status`, `(N,)`.
        history: Residuals over iterations, `(N, n)`, or None when not asked for.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> sweep = elk.NoiseSweep(
        ...     noises=jnp.array([1.0, 1e2]),
        ...     num_iters=jnp.array([40, 9]),
        ...     residual_norm=jnp.zeros(2),
        ...     status=jnp.array([0, 0]),
        ... )
        >>> float(sweep.noises[sweep.best])
        100.0
    """

    noises: Array
    num_iters: Array
    residual_norm: Array
    status: Array
    history: Array | None = None

    @property
    def converged(self) -> Array:
        """Whether each noise converged, boolean, of the shape of `status`."""
        return self.status == Status.converged

    def __repr__(self) -> str:
        best = int(self.best) if known(self.status) is not None else -1
        return show(
            "NoiseSweep",
            noises=arrays(self.noises),
            status=named(self.status, Status),
            num_iters=number(self.num_iters),
            best=number(self.noises[best]) if best >= 0 else None,
        )

    @property
    def best(self) -> Array:
        """Position of the converged noise with the fewest iterations, -1 if none."""
        converged = self.status == Status.converged
        cost = jnp.where(converged, self.num_iters, jnp.iinfo(self.num_iters.dtype).max)
        return jnp.where(jnp.any(converged), jnp.argmin(cost), -1)


def sweep_noise(
    f: Dynamics,
    initial_state: PyTree,
    inputs: PyTree = None,
    noises: ArrayLike | Sequence[float] = (1e-2, 1e0, 1e2, 1e4, 1e6, jnp.inf),
    *,
    method: Method | None = None,
    history: int = 0,
    length: int | None = None,
    guess: PyTree = None,
    tol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_iters: int | None = None,
    backend: Backend = "auto",
) -> NoiseSweep:
    """Run a method with every one of a grid of constant noises s^2.

    One compilation serves the grid, and another grid of the same length; all runs go
    side by side until the slowest has stopped, so a `max_iters` is worth giving.

    Args:
        f: The recurrence, as for `evaluate`.
        initial_state: As for `evaluate`.
        inputs: As for `evaluate`.
        noises: s^2 > 0, shape `(N,)`; `inf` is the undamped method.
        method: Its linearisation, estimate, gate and blocks are used. Default is
            quasi-ELK.
        history: Record the residuals of this many first iterations.
        length: T, needed when there are no inputs.
        guess: First iterate, as for `evaluate`.
        tol: Relative tolerance.
        atol: Absolute tolerance.
        max_iters: Largest number of iterations.
        backend: Which scans to use.

    Returns:
        A `NoiseSweep`. The trajectories are not kept: a converged one does not depend
        on the noise, and its derivative with respect to the noise is zero.

    Raises:
        TypeError: The noises are no numbers, or the method is an `Auto`.
        ValueError: A noise is not positive, or their array has more than one axis.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> sweep = elk.sweep_noise(
        ...     lambda x, u: jnp.tanh(x + u), jnp.zeros(2), jnp.ones((9, 2)), [1.0, 9.0]
        ... )
        >>> sweep.num_iters.shape
        (2,)
    """
    if isinstance(noises, str):
        raise TypeError(f"noises must be numbers; got {noises!r}.")
    grid = jnp.atleast_1d(jnp.asarray(noises))
    if grid.ndim != 1:
        raise ValueError(f"noises must be one-dimensional; got shape {grid.shape}.")
    check_positive("noises", grid)
    recurrence = canonicalize(f, initial_state, inputs, length)
    base = Method(DiagonalJacobian()) if method is None else method
    concrete_method(base, recurrence, "sweep_noise")
    grid = grid.astype(recurrence.initial.dtype)

    def run(noise: Array) -> tuple[Array, Array, Array, Array | None]:
        damped = replace(base, noise=Constant(noise))
        solution = evaluate(
            f,
            initial_state,
            inputs,
            length=length,
            method=damped,
            guess=guess,
            tol=tol,
            atol=atol,
            max_iters=max_iters,
            history=history,
            backend=backend,
        )
        seen = solution.history
        return (
            solution.num_iters,
            solution.residual_norm,
            solution.status,
            None if seen is None else seen.residual_norm,
        )

    return NoiseSweep(grid, *jax.vmap(run)(grid))
