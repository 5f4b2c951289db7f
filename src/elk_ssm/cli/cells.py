"""The recurrent cells of the command line, in plain JAX.

Index convention: `step(state, input)` maps the state at t-1 and the input at t to the
state at t. Weights are drawn as flax draws them by default: input kernels LeCun
normal, recurrent kernels orthogonal; biases start at zero, so they are left out. One
product per gate, because split gates run faster than one fused product and slices,
and full precision, because in TF32 a step would round differently inside and outside
`vmap`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

CELL_NAMES = ("gru", "lstm", "rnn")


class Cell(NamedTuple):
    """A recurrence and the state it starts from.

    The state is an array `(D,)`, for the LSTM a tuple (memory `(D,)`, hidden `(D,)`).
    """

    step: Callable[[Any, Float[Array, " C"]], Any]
    initial_state: Any


class _Gate(NamedTuple):
    """The kernels of one gate."""

    from_input: Float[Array, "C D"]
    from_state: Float[Array, "D D"]

    def __call__(
        self, hidden: Float[Array, " D"], value: Float[Array, " C"]
    ) -> Float[Array, " D"]:
        return _dot(value, self.from_input) + _dot(hidden, self.from_state)


def make_cell(name: str, state_size: int, input_size: int, seed: int) -> Cell:
    """Draw a cell with the weights that belong to `seed`.

    Args:
        name: one of `CELL_NAMES`.
        state_size: D, the length of the hidden state.
        input_size: C, the length of the input at one time.
        seed: seed of the weights.

    Raises:
        ValueError: if `name` is unknown.
    """
    if name not in CELL_NAMES:
        raise ValueError(f"cell must be one of {', '.join(CELL_NAMES)}; got {name!r}.")
    build, num_gates = {"gru": (_gru, 3), "lstm": (_lstm, 4), "rnn": (_rnn, 1)}[name]
    keys = jax.random.split(jax.random.key(seed), num_gates)
    gates = [_draw_gate(key, state_size, input_size) for key in keys]
    return build(gates, jnp.zeros(state_size))


def hidden_states(states: Any) -> Float[Array, "T D"]:
    """Return the hidden states of a trajectory (the LSTM keeps its memory apart)."""
    return states[1] if isinstance(states, tuple) else states


@partial(jax.jit, static_argnums=(1, 2))  # Compiles once instead of op by op.
def _draw_gate(key: Array, state_size: int, input_size: int) -> _Gate:
    input_key, state_key = jax.random.split(key)
    dtype = jnp.zeros(()).dtype
    lecun_normal = jax.nn.initializers.lecun_normal()
    orthogonal = jax.nn.initializers.orthogonal()
    return _Gate(
        lecun_normal(input_key, (input_size, state_size), dtype),
        orthogonal(state_key, (state_size, state_size), dtype),
    )


def _dot(left: Array, right: Array) -> Array:
    return jnp.dot(left, right, precision=jax.lax.Precision.HIGHEST)


def _rnn(gates: list[_Gate], zeros: Array) -> Cell:
    (gate,) = gates
    return Cell(lambda hidden, value: jnp.tanh(gate(hidden, value)), zeros)


def _gru(gates: list[_Gate], zeros: Array) -> Cell:
    reset_gate, update_gate, candidate = gates

    def step(hidden: Array, value: Array) -> Array:
        reset = jax.nn.sigmoid(reset_gate(hidden, value))
        update = jax.nn.sigmoid(update_gate(hidden, value))
        recalled = reset * _dot(hidden, candidate.from_state)
        proposal = jnp.tanh(_dot(value, candidate.from_input) + recalled)
        return (1 - update) * proposal + update * hidden

    return Cell(step, zeros)


def _lstm(gates: list[_Gate], zeros: Array) -> Cell:
    input_gate, forget_gate, candidate, output_gate = gates

    def step(state: tuple[Array, Array], value: Array) -> tuple[Array, Array]:
        memory, hidden = state
        kept = jax.nn.sigmoid(forget_gate(hidden, value)) * memory
        written = jax.nn.sigmoid(input_gate(hidden, value))
        memory = kept + written * jnp.tanh(candidate(hidden, value))
        shown = jax.nn.sigmoid(output_gate(hidden, value))
        return memory, shown * jnp.tanh(memory)

    return Cell(step, (zeros, zeros))
