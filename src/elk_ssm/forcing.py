r"""Generalised teacher forcing: a recurrence that is pulled towards data at every step.

    x_t = f((1 - alpha) x_{t-1} + alpha d_{t-1}, u_t),      d_0 = x_0

`alpha = 0` is the free run, `alpha = 1` predicts one step ahead of the data. Every
Jacobian is multiplied by 1 - alpha, so the products of Jacobians that make a chaotic
recurrence hard to evaluate, and its gradient explode, contract for an alpha that is
large enough (Hess et al. 2023, arXiv 2306.04406, equations 5 to 9): with a Lyapunov
exponent of lambda per step, alpha > 1 - exp(-lambda).

In Kalman terms the datum is an observation of the state with a fixed gain alpha, taken
in before the transition. Like any observation it may be missing: NaN pulls nothing.

Index convention: data hold d_1, ..., d_T at positions 0, ..., T - 1, as states do. The
transition into step t takes d_{t-1}, so `inputs` shifts them by one, and d_T is unused.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._failing import NamedMistakeError
from elk_ssm._jax import is_traced
from elk_ssm._recurrence import check_callable, check_length
from elk_ssm._trees import describe, is_float
from elk_ssm._types import Array, Dynamics, PyTree
from elk_ssm.solve.nodes import shift

_PAIRS = (
    "A forced recurrence takes pairs (data, inputs), which its method "
    "`inputs(initial_state, data, inputs)` makes"
)


@dataclass(frozen=True, eq=False)
class Forced:
    """A recurrence whose state is pulled towards data; made by `forced`.

    Called with a state and a pair (datum, input), it is again a recurrence, so that
    `evaluate`, `scan`, `sequential`, `diagnose`, `linearize` and `vmap` take it as they
    take f. The pairs come from `inputs`.

    Attributes:
        f: What is forced: `f(state, input)`.
        alpha: The pull, 0 to 1: a scalar, an array that broadcasts to a state, or a
            pytree whose leaves do so for the leaves of the state below them.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> g = elk.forced(lambda x, u: 2.0 * x + u, alpha=0.5)
        >>> float(g(jnp.array(1.0), (jnp.array(3.0), jnp.array(0.25))))
        4.25
    """

    f: Dynamics
    alpha: PyTree

    def __call__(self, state: PyTree, entry: PyTree) -> PyTree:
        """Pull the state towards the datum, then apply f to it and the input."""
        if not (isinstance(entry, tuple) and len(entry) == 2):
            raise NamedMistakeError(f"{_PAIRS}; got {describe(entry)}.")
        datum, user_input = entry
        leaves = jax.tree.leaves(state)
        tree: Any = jax.tree.structure(state)
        data = _data(datum, state)
        moved = [_pull(*each) for each in zip(leaves, data, self._pulls(state))]
        return self.f(jax.tree.unflatten(tree, moved), user_input)

    def inputs(
        self,
        initial_state: PyTree,
        data: PyTree,
        inputs: PyTree = None,
        *,
        initial_datum: PyTree = None,
    ) -> tuple[PyTree, PyTree]:
        """Pair the data with the inputs, each datum one step later.

        Args:
            initial_state: x_0, as for `evaluate`.
            data: d_1, ..., d_T: the state with a leading time axis of length T on every
                leaf. NaN entries are missing, and None in the place of a leaf leaves
                that leaf free, as leaves that are not floating point always are.
            inputs: u_1, ..., u_T, as for `evaluate`.
            initial_datum: d_0, shaped like the initial state. Default is x_0 itself:
                nothing pulls before the first step.

        Returns:
            The pair (d_0, ..., d_{T-1}; u_1, ..., u_T), the inputs of this recurrence.

        Raises:
            ValueError: The data do not fit the state, or are not as long as the inputs;
                the message names both shapes.

        Example:
            >>> import jax.numpy as jnp
            >>> import elk_ssm as elk
            >>> g = elk.forced(lambda x, _: 3.0 * x, alpha=1.0)
            >>> pairs = g.inputs(jnp.array(1.0), jnp.array([2.0, 5.0, 9.0]))
            >>> elk.evaluate(g, jnp.array(1.0), pairs).states.tolist()
            [3.0, 6.0, 15.0]
        """
        first = initial_state if initial_datum is None else initial_datum
        leaves, tree = jax.tree.flatten(jax.tree.map(jnp.asarray, initial_state))
        expected = jax.tree.unflatten(tree, leaves)
        starts = _up_to(tree, first, "initial_datum", expected)
        series = _up_to(tree, data, "data", expected)
        lengths = {_length(x, leaf, expected) for x, leaf in zip(series, leaves)}
        if not (lengths := lengths - {None}):
            raise ValueError(
                "Nothing is forced: data have no leaf for a floating-point leaf of the "
                f"state {describe(expected)}."
            )
        if jax.tree.leaves(inputs):
            lengths.add(check_length(jax.tree.map(jnp.asarray, inputs), None))
        if len(lengths) > 1:
            raise ValueError(
                f"data and inputs must have the same number of steps: data are "
                f"{describe(data)}, d_1 to d_T without d_0 (initial_datum), and inputs "
                f"{describe(inputs)}."
            )
        before = [_before(*each) for each in zip(leaves, starts, series)]
        return jax.tree.unflatten(tree, before), inputs

    def _pulls(self, state: PyTree) -> list[Any]:
        """One alpha for every leaf of the state."""
        try:
            return jax.tree.leaves(jax.tree.broadcast(self.alpha, state))
        except ValueError as error:
            raise NamedMistakeError(
                "alpha must be a number, an array, or a pytree that the state extends; "
                f"alpha is {describe(self.alpha)} and the state {describe(state)}."
            ) from error


def forced(f: Dynamics, alpha: PyTree) -> Forced:
    r"""Generalised teacher forcing: x_t = f((1 - alpha) x_{t-1} + alpha d_{t-1}, u_t).

    A chaotic or slowly forgetting recurrence contracts when it is pulled towards data,
    and is then evaluated in parallel in few passes, with gradients that stay bounded.
    `diagnose(...).least_alpha` estimates the smallest alpha that does. Hess et al.
    (2023), arXiv 2306.04406, equation 5. With respect to alpha, the data, the inputs
    and all that f closes over the result is differentiable.

    Args:
        f: `f(state, input)`, the recurrence, or the step of `scan`, which returns
            `(carry, y)`.
        alpha: The pull, from 0 (the free run, to the bit) to 1 (one step ahead of the
            data: no state depends on another). A scalar; an array that broadcasts to
            the shape of the state, one entry a dimension; or a pytree of such that the
            state extends. It may be traced, and then nothing checks its range.

    Returns:
        A `Forced`: a recurrence whose inputs are pairs, made by its method
        `inputs(initial_state, data, inputs)`.

    Raises:
        TypeError: f is not callable, or alpha is not a number.
        ValueError: alpha is outside 0 to 1. Where the recurrence is evaluated: alpha
            does not broadcast to the state.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> logistic = lambda x, _: 3.9 * x * (1 - x)
        >>> x0 = jnp.array([0.3])
        >>> data = elk.sequential(logistic, x0, length=500).states
        >>> g = elk.forced(logistic, alpha=0.6)
        >>> sol = elk.evaluate(g, x0, g.inputs(x0, data), method=elk.deer())
        >>> int(sol.num_iters) < 10
        True
    """
    check_callable(f, "forced(f, alpha)")
    if not jax.tree.leaves(alpha):
        raise TypeError(f"alpha must be a number from 0 to 1; got {alpha!r}.")
    return Forced(f, jax.tree.map(_checked, alpha))


def _checked(alpha: Any) -> Array:
    """Return a pull as an array, so that another number compiles nothing again."""
    try:
        found = jnp.asarray(alpha)
    except TypeError as error:
        raise TypeError(f"alpha must be a number; got {alpha!r}.") from error
    if jnp.issubdtype(found.dtype, jnp.complexfloating):
        raise TypeError(f"alpha must be real; got {found.dtype.name}.")
    if not is_traced(found):
        values = np.asarray(found)
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError(f"alpha must be from 0 to 1; got {values.tolist()}.")
    return found


def _pull(state: Any, datum: Any, alpha: Array) -> Array:
    """(1 - alpha) x + alpha d where there is a datum, exactly x where there is none."""
    state = jnp.asarray(state)
    if datum is None or not is_float(state):
        return state
    if not _fits(jnp.shape(alpha), state.shape):
        raise NamedMistakeError(
            f"alpha of shape {jnp.shape(alpha)} does not broadcast to a state of shape "
            f"{state.shape}: give a number, or one entry for each dimension."
        )
    datum, alpha = jnp.asarray(datum, state.dtype), jnp.asarray(alpha, state.dtype)
    # A free run looks at no datum, and zero times inf would be NaN.
    missing = jnp.isnan(datum) | (jnp.isinf(datum) & (alpha == 0))
    # Both are replaced: NaN times zero would be NaN, in the derivatives too.
    weight = jnp.where(missing, 0, alpha)
    return (1 - weight) * state + weight * jnp.where(missing, 0, datum)


def _data(datum: PyTree, state: PyTree) -> list[Any]:
    """Leaves of a datum, one or None for each leaf of the state."""
    leaves = jax.tree.leaves(state)
    tree: Any = jax.tree.structure(state)
    try:
        data = tree.flatten_up_to(datum)
        fit = all(map(_is_datum, data, leaves))
    except ValueError:
        fit = False
    if not fit:
        raise NamedMistakeError(
            f"{_PAIRS}; got a datum {describe(datum)} for the state {describe(state)}."
        )
    return data


def _is_datum(datum: Any, leaf: Any) -> bool:
    alone = jax.tree_util.all_leaves([datum])
    return datum is None or (alone and _fits(jnp.shape(datum), jnp.shape(leaf)))


def _fits(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether an array of a shape broadcasts to the target without enlarging it."""
    pairs = zip(reversed(shape), reversed(target))
    return len(shape) <= len(target) and all(n in (1, m) for n, m in pairs)


def _up_to(tree: Any, given: PyTree, what: str, state: PyTree) -> list[Any]:
    """Leaves of what has the structure of the state, None in the place of one too."""
    try:
        found = tree.flatten_up_to(given)
    except ValueError as error:
        raise ValueError(
            f"{what} must have the structure of the state, {describe(state)}; got "
            f"{describe(given)}."
        ) from error
    if any(len(jax.tree.leaves(x)) > 1 for x in found):
        raise ValueError(
            f"{what} must have one array for each leaf of the state, "
            f"{describe(state)}; got {describe(given)}."
        )
    return found


def _length(data: Any, leaf: Array, state: PyTree) -> int | None:
    """T of the data of one leaf; None where it is not forced."""
    if data is None or not is_float(leaf):
        return None
    shape = jnp.shape(data)
    if len(shape) != leaf.ndim + 1 or shape[1:] != leaf.shape:
        raise ValueError(
            f"data need shape (T, {', '.join(map(str, leaf.shape))}) for a leaf of "
            f"shape {leaf.shape} of the state {describe(state)}; got {shape}."
        )
    return shape[0]


def _before(leaf: Array, start: Any, data: Any) -> Any:
    """Data of one leaf, each one step later."""
    if data is None or not is_float(leaf):
        return None
    first = jnp.asarray(leaf if start is None else start, leaf.dtype)
    if first.shape != leaf.shape:
        raise ValueError(
            f"initial_datum needs shape {leaf.shape}, as the initial state; got "
            f"{first.shape}."
        )
    data = jnp.asarray(data, leaf.dtype)
    if not is_traced(data) and len(data.sharding.device_set) > 1:
        # Outside of a program the result would be gathered on every device.
        return jax.jit(shift, out_shardings=data.sharding)(first, data)
    return shift(first, data)
