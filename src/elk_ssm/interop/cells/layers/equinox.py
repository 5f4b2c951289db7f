"""RNN layers for equinox, which has cells but no layer over time.

The call is that of `flax.linen.RNN`: batch axes are optional, so that `jax.vmap` over
single sequences, equinox's habit, works as well.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from elk_ssm._types import Array, PyTree
from elk_ssm.interop.cells.equinox import zero_state
from elk_ssm.interop.cells.layers.sequences import Direction, check_axes, run_cell
from elk_ssm.solve.auto import Auto
from elk_ssm.solve.method import Method


def _first_leaf(state: PyTree) -> Array:
    return jax.tree.leaves(state)[0]


def _concatenate(a: Array, b: Array) -> Array:
    return jnp.concatenate([a, b], axis=-1)


class RNN(eqx.Module):
    """A cell of equinox over time, evaluated in parallel.

    Args:
        cell: A module called as `cell(input, state) -> state`.
        time_major: Whether time is the first axis of inputs and outputs.
        return_carry: Whether to return (final state, outputs).
        reverse: Whether to run from the last valid step to the first.
        keep_order: Whether reversed outputs are put back in the inputs' order.
        output: What of a state is the output; default is its first leaf, the hidden
            state of both cells of equinox.
        method: See `elk.evaluate`; None is the default method.

    Example:
        >>> import equinox as eqx
        >>> import jax, jax.numpy as jnp
        >>> from elk_ssm.interop.cells.layers import equinox as layers
        >>> layer = layers.RNN(eqx.nn.GRUCell(2, 3, key=jax.random.key(0)))
        >>> layer(jnp.ones((50, 2))).shape, layer(jnp.ones((4, 50, 2))).shape
        ((50, 3), (4, 50, 3))
    """

    cell: eqx.Module
    method: Method | Auto | None
    direction: Direction = eqx.field(static=True)
    output: Callable[[PyTree], Array] = eqx.field(static=True)

    def __init__(
        self,
        cell: eqx.Module,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        output: Callable[[PyTree], Array] = _first_leaf,
        method: Method | Auto | None = None,
    ):
        self.cell = cell
        self.method = method
        self.direction = Direction(time_major, return_carry, reverse, keep_order)
        self.output = output

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: PyTree = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        key: Array | None = None,
    ) -> Any:
        """Apply the cell along the time axis.

        Args:
            inputs: `(*batch, T, C)`, or `(T, *batch, C)`.
            initial_carry: State with batch axes; default is zeros.
            seq_lengths: Valid steps `(*batch)`.
            return_carry: Overrides the constructor's option, as the next three do.
            time_major: See the constructor.
            reverse: See the constructor.
            keep_order: See the constructor.
            key: Ignored; equinox passes one to every layer.

        Returns:
            Outputs, or (final state, outputs) with `return_carry`.

        Raises:
            ValueError: The cell does not say what its state is and none was given.
        """
        direction = self.direction.override(
            return_carry=return_carry,
            time_major=time_major,
            reverse=reverse,
            keep_order=keep_order,
        )
        if initial_carry is None:
            axes = check_axes(inputs, 1, direction.time_major, None)
            first = 1 if direction.time_major else 0
            batch = inputs.shape[first : first + axes]
            initial_carry = jax.tree.map(
                lambda x: jnp.broadcast_to(x, (*batch, *x.shape)), zero_state(self.cell)
            )

        def step(state: PyTree, value: Array) -> tuple[PyTree, Array]:
            state = self.cell(value, state)  # type: ignore[operator]
            return state, self.output(state)

        return run_cell(
            step,
            initial_carry,
            inputs,
            direction,
            seq_lengths=seq_lengths,
            method=self.method,
        )


class Bidirectional(eqx.Module):
    """Two layers over the same inputs, one forwards and one backwards in time.

    Args:
        forward_rnn: Layer that reads from the first step on.
        backward_rnn: Layer that reads from the last valid step back.
        merge_fn: Joins the outputs of both; default concatenates the last axis.
        time_major: Whether time is the first axis.
        return_carry: Whether to return ((forward, backward) final states, outputs).

    Example:
        >>> import equinox as eqx
        >>> import jax, jax.numpy as jnp
        >>> from elk_ssm.interop.cells.layers import equinox as layers
        >>> make = lambda s: layers.RNN(eqx.nn.GRUCell(2, 3, key=jax.random.key(s)))
        >>> layers.Bidirectional(make(0), make(1))(jnp.ones((50, 2))).shape
        (50, 6)
    """

    forward_rnn: RNN
    backward_rnn: RNN
    merge_fn: Callable[[Array, Array], Array] = eqx.field(
        static=True, default=_concatenate
    )
    time_major: bool = eqx.field(static=True, default=False)
    return_carry: bool = eqx.field(static=True, default=False)

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: tuple[PyTree, PyTree] | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        key: Array | None = None,
    ) -> Any:
        """Apply both layers; see `RNN.__call__`."""
        carries = (None, None) if initial_carry is None else initial_carry
        shared: dict[str, Any] = {
            "seq_lengths": seq_lengths,
            "return_carry": True,
            "time_major": self.time_major if time_major is None else time_major,
        }
        forward, ahead = self.forward_rnn(
            inputs, initial_carry=carries[0], reverse=False, **shared
        )
        backward, back = self.backward_rnn(
            inputs, initial_carry=carries[1], reverse=True, keep_order=True, **shared
        )
        outputs = jax.tree.map(self.merge_fn, ahead, back)
        wanted = self.return_carry if return_carry is None else return_carry
        return ((forward, backward), outputs) if wanted else outputs
