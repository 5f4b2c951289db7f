"""haiku cores: transformed functions of (input, state), giving (output, state)."""

from collections.abc import Callable, Mapping
from typing import Any

from elk_ssm._types import PyTree
from elk_ssm.interop.cells.detect import CLOSURE_HINT, framework_of
from elk_ssm.interop.cells.step import CellStep


def from_haiku(
    core: Any, params: Mapping[str, Any], state: PyTree = None
) -> tuple[CellStep, PyTree]:
    """Turn a haiku RNN core into `(f, initial_state)`.

    Args:
        core: Either `hk.transform(lambda x, state: hk.GRU(D)(x, state))`, or the
            function `lambda: hk.GRU(D)` that makes the core, which is then transformed
            in that way.
        params: The parameters that the transform's `init` returned.
        state: Initial state without batch axis. Default is the core's own
            `initial_state(None)`, where `core` is the function that makes it.

    Returns:
        f (its diagonal by autodiff) and the initial state.

    Raises:
        TypeError: `core` is neither of the two.
        ValueError: A transform without an initial state.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> import haiku as hk
        >>> from elk_ssm.interop import cells
        >>> core = hk.transform(lambda x, state: hk.GRU(3)(x, state))
        >>> params = core.init(jax.random.key(0), jnp.zeros(2), jnp.zeros(3))
        >>> f, h0 = cells.from_haiku(lambda: hk.GRU(3), params)
        >>> elk.evaluate(f, h0, jnp.ones((50, 2))).states.shape
        (50, 3)
    """
    import haiku as hk

    if isinstance(core, hk.Transformed):
        apply = core.apply
        if state is None:
            raise ValueError(
                "A transform does not tell its initial state; pass it as "
                "from_haiku(transformed, params, state)."
            )
    elif callable(core) and framework_of(core) is None:
        apply = hk.transform(lambda x, s: core()(x, s)).apply
        state = _initial_state(core) if state is None else state
    else:
        raise TypeError(
            "from_haiku takes hk.transform(lambda x, state: core(x, state)) or the "
            f"function that makes the core; got {type(core).__name__}. {CLOSURE_HINT}"
        )

    def step(state: PyTree, inputs: PyTree) -> PyTree:
        return apply(params, None, inputs, state)[1]

    return CellStep(step), state


def _initial_state(make_core: Callable[[], Any]) -> PyTree:
    import haiku as hk

    transformed = hk.transform(lambda: make_core().initial_state(None))
    return transformed.apply({}, None)
