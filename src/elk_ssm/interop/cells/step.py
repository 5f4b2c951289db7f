"""A cell as a recurrence: what every adapter returns, and the diagonal it may know.

Index convention: `f(state, input)` maps the state at t-1 and the input at t to the
state at t, both without batch and time axes.
"""

from collections.abc import Callable
from dataclasses import dataclass

from elk_ssm._types import PyTree
from elk_ssm.surrogate.jacobians import DiagonalJacobian, UserJacobian
from elk_ssm.surrogate.linearization import Linearization


@dataclass(frozen=True, eq=False)
class CellStep:
    """The recurrence `f(state, input) -> state` of a cell.

    Attributes:
        step: `step(state, input) -> state`.
        jacobian_diagonal: `jacobian_diagonal(state, input)`, entry by entry df_i/dx_i
            as a pytree like the state, or None where no closed form is known.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.interop import cells
        >>> f = cells.CellStep(
        ...     lambda x, u: jnp.tanh(x + u), lambda x, u: 1 - jnp.tanh(x + u) ** 2
        ... )
        >>> f(jnp.zeros(2), jnp.zeros(2)).tolist()
        [0.0, 0.0]
        >>> type(cells.diagonal(f)).__name__
        'UserJacobian'
    """

    step: Callable[[PyTree, PyTree], PyTree]
    jacobian_diagonal: Callable[[PyTree, PyTree], PyTree] | None = None

    def __call__(self, state: PyTree, inputs: PyTree) -> PyTree:
        """Evaluate one step."""
        return self.step(state, inputs)


def diagonal(f: Callable[[PyTree, PyTree], PyTree]) -> Linearization:
    """Return the exact diagonal of a cell's Jacobian as a linearisation.

    By closed form where the cell has one, which costs about one more step of the cell;
    by D tangents of f otherwise. Both are the diagonal of the same matrix:

        f, h0 = cells.from_linen(cell, variables)
        elk.quasi_deer(linearization=cells.diagonal(f))

    Args:
        f: A recurrence, made by one of the adapters of this package or not.

    Returns:
        A `UserJacobian` for a closed form, a `DiagonalJacobian` otherwise.

    Raises:
        TypeError: f is not callable; the pair (f, initial_state) was passed perhaps.

    Example:
        >>> import jax
        >>> from elk_ssm.interop import cells
        >>> params = cells.init_diagonal_gru(jax.random.key(0), 2, 3, forget_length=9)
        >>> f, h0 = cells.diagonal_gru(params)
        >>> cells.diagonal(f).kind
        'diagonal'
    """
    if not callable(f):
        raise TypeError(
            "diagonal takes the recurrence f, the first of the pair that the adapters "
            f"return; got {type(f).__name__}."
        )
    known = getattr(f, "jacobian_diagonal", None)
    return DiagonalJacobian() if known is None else UserJacobian(known, "diagonal")
