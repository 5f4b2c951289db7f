r"""An LSTM whose units are pairs (c, h) and see the input and themselves alone.

    i = s(A_i u + b_i + w_i h + v_i c)      f = s(A_f u + b_f + w_f h + v_f c)
    g = tanh(A_g u + b_g + w_g h)           c' = f c + i g
    o = s(A_o u + b_o + w_o h + v_o c')     h' = o tanh(c')

All recurrent weights w and peepholes v are diagonal, so the Jacobian of a step is one
2 x 2 block per unit, and `BlockDiagonalJacobian` makes Newton's method of it at
`(T, 2 D, 2)` memory and two tangents a step; ParaRNN (Danieli et al. 2025, arXiv
2510.21450) trains such cells. Both c and h are in the state, as a drop-in for an LSTM
wants; where h need not be seen by the gates, `diagonal_lstm` has half the state.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from elk_ssm._types import Array, ArrayLike
from elk_ssm.interop.cells.parallel import draw_parameters, driven
from elk_ssm.interop.cells.step import CellStep


class PairedLSTM(NamedTuple):
    """Parameters; gates in the order write, forget, candidate, output.

    Attributes:
        kernel: A, from the inputs.
        bias: b.
        recurrent: w, from the unit's own h.
        peephole: v, from the unit's own c; that of the candidate is not used.

    Example:
        >>> import jax
        >>> from elk_ssm.interop import cells
        >>> params = cells.init_paired_lstm(jax.random.key(0), 2, 3, forget_length=20)
        >>> isinstance(params, cells.PairedLSTM)
        True
    """

    kernel: Float[Array, "C 4 D"]
    bias: Float[Array, "4 D"]
    recurrent: Float[Array, "4 D"]
    peephole: Float[Array, "4 D"]


def init_paired_lstm(
    key: Array, input_size: int, state_size: int, *, forget_length: ArrayLike
) -> PairedLSTM:
    """Draw the parameters of an LSTM of pairs.

    Arguments and errors are those of `init_diagonal_gru`.

    Returns:
        `PairedLSTM` in JAX's default floating dtype.

    Example:
        >>> import jax
        >>> from elk_ssm.interop import cells
        >>> params = cells.init_paired_lstm(jax.random.key(0), 2, 3, forget_length=20)
        >>> params.kernel.shape, params.peephole.shape
        ((2, 4, 3), (4, 3))
    """
    first, second = jax.random.split(key)
    sizes = input_size, 4, state_size, 1, forget_length
    kernel, bias, recurrent = draw_parameters(first, *sizes)
    peephole = draw_parameters(second, *sizes)[2]
    return PairedLSTM(kernel, bias.at[0].set(-bias[1]), recurrent, peephole)


def paired_lstm(
    params: PairedLSTM,
) -> tuple[CellStep, tuple[Float[Array, " D"], Float[Array, " D"]]]:
    """Return `(f, initial_state)` of an LSTM with the state (c, h).

    Args:
        params: Parameters, from `init_paired_lstm` or trained; they may be traced.

    Returns:
        f on states (c, h) of shape `(D,)` each and inputs `(C,)`, and zeros.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.interop import cells
        >>> params = cells.init_paired_lstm(jax.random.key(0), 2, 3, forget_length=20)
        >>> f, start = cells.paired_lstm(params)
        >>> newton = elk.quasi_deer(linearization=elk.BlockDiagonalJacobian())
        >>> elk.evaluate(f, start, jnp.ones((50, 2)), method=newton).states[1].shape
        (50, 3)
    """

    def step(state: tuple[Array, Array], value: Array) -> tuple[Array, Array]:
        memory, hidden = state
        write, forget, candidate, output = driven(params, value)
        of_write, of_forget, of_candidate, of_output = params.recurrent * hidden
        see_write, see_forget, _, see_output = params.peephole
        write = jax.nn.sigmoid(write + of_write + see_write * memory)
        forget = jax.nn.sigmoid(forget + of_forget + see_forget * memory)
        candidate = jnp.tanh(candidate + of_candidate)
        memory = forget * memory + write * candidate
        output = jax.nn.sigmoid(output + of_output + see_output * memory)
        return memory, output * jnp.tanh(memory)

    return CellStep(step), (jnp.zeros_like(params.bias[0]),) * 2
