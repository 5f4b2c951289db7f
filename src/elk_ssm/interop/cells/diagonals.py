r"""Diagonals of the Jacobians of gated cells, in closed form.

All gates act entry by entry, so unit i of the new state depends on unit i of the old
one only through the diagonals U_ii of the recurrent kernels and through the gates
themselves. With a the preactivations, s the gate and p the activation function:

    vanilla   h' = p(a)                          dh'/dh = p'(a) U
    GRU       r = s(a_r), z = s(a_z)
              n = p(a_n + r b_n)                 b_n = U_n h + bias
              h' = (1 - z) n + z h
              dh'/dh = z + z' U_z (h - n) + (1 - z) n' (r U_n + r' U_r b_n)
    LSTM      c' = f c + i g,  h' = o p(c')
              dc'/dc = f
              dh'/dh = o' U_o p(c') + o p'(c') (f' U_f c + i' U_i g + i g' U_g)

A prime on a gate or candidate is its slope at its preactivation. The minimal gated unit
is the GRU with r = z.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float

from elk_ssm._types import Array

Elementwise: TypeAlias = Callable[[Array], Array]


class GruGates(NamedTuple):
    """Preactivations of a GRU, each `(D,)`."""

    reset: Float[Array, " D"]
    update: Float[Array, " D"]
    from_input: Float[Array, " D"]
    from_state: Float[Array, " D"]


class LstmGates(NamedTuple):
    """Preactivations of an LSTM, each `(D,)`."""

    write: Float[Array, " D"]
    forget: Float[Array, " D"]
    candidate: Float[Array, " D"]
    output: Float[Array, " D"]


def with_slope(function: Elementwise, value: Array) -> tuple[Array, Array]:
    """Return an elementwise function and its derivative at `value`."""
    return jax.jvp(function, (value,), (jnp.ones_like(value),))


def vanilla_diagonal(
    preactivation: Float[Array, " D"],
    weight: Float[Array, " D"],
    activation: Elementwise,
) -> Float[Array, " D"]:
    """Return p'(a) U, with U the diagonal of the recurrent kernel."""
    return with_slope(activation, preactivation)[1] * weight


def gru_diagonal(
    hidden: Float[Array, " D"],
    gates: GruGates,
    weights: Float[Array, "3 D"],
    gate: Elementwise,
    activation: Elementwise,
) -> Float[Array, " D"]:
    """Return the diagonal of a GRU; weights are those of reset, update, candidate."""
    of_reset, of_update, of_candidate = weights
    reset, reset_slope = with_slope(gate, gates.reset)
    update, update_slope = with_slope(gate, gates.update)
    recalled = gates.from_state
    candidate, slope = with_slope(activation, gates.from_input + reset * recalled)
    through_candidate = reset * of_candidate + reset_slope * of_reset * recalled
    through_update = update_slope * of_update * (hidden - candidate)
    return update + through_update + (1 - update) * slope * through_candidate


def lstm_diagonal(
    memory: Float[Array, " D"],
    gates: LstmGates,
    weights: Float[Array, "4 D"],
    gate: Elementwise,
    activation: Elementwise,
) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
    """Return dc'/dc and dh'/dh; weights in the order of `LstmGates`."""
    of_write, of_forget, of_candidate, of_output = weights
    write, write_slope = with_slope(gate, gates.write)
    forget, forget_slope = with_slope(gate, gates.forget)
    candidate, candidate_slope = with_slope(activation, gates.candidate)
    output, output_slope = with_slope(gate, gates.output)
    shown, shown_slope = with_slope(activation, forget * memory + write * candidate)
    through_memory = (
        forget_slope * of_forget * memory
        + write_slope * of_write * candidate
        + write * candidate_slope * of_candidate
    )
    hidden = output_slope * of_output * shown + output * shown_slope * through_memory
    return forget, hidden
