r"""Cells made for parallel evaluation: GRU and LSTM with diagonal recurrent weights.

Each unit sees the input and itself, no other unit, so the Jacobian of a step *is* its
diagonal and one tangent of ones gives it. The diagonal methods are then Newton's
method, at `(T, D)` memory. Units are mixed by the layers between the recurrences.

    GRU    r = s(A_r u + b_r + w_r h),  z = s(A_z u + b_z + w_z h)
           h' = (1 - z) tanh(A_n u + b_n + r w_n h) + z h
    LSTM   i, f = s(A u + b + w c),  g = tanh(A_g u + b_g + w_g c)
           c' = f c + i g
           output  h = s(A_o u + b_o + w_o c') tanh(c')

The gates of this LSTM look at the memory c through peepholes (Gers and Schmidhuber
2000) and not at the output h: with both in the state, even diagonal weights leave a
2 x 2 block per unit (`paired`). The output is computed beside the recurrence by
`lstm_output`.

At the start the gate that forgets is its bias alone, b = -log(exp(1 / L) - 1), so that
z (or f) is exp(-1 / L) and a state's influence falls to 1 / e in L steps. The LSTM's
write gate starts from -b (Tallec and Ollivier 2018, arXiv 1804.11188), as 1 - z does
in the GRU: what the other weights add to that influence is then small beside 1 / L.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from elk_ssm._jax import is_traced
from elk_ssm._types import Array, ArrayLike
from elk_ssm.interop.cells.diagonals import with_slope
from elk_ssm.interop.cells.step import CellStep

_RECURRENT_SCALE = 0.05


class DiagonalGRU(NamedTuple):
    """Parameters of a GRU; gates in the order reset, update, candidate.

    Example:
        >>> import jax
        >>> from elk_ssm.interop import cells
        >>> params = cells.init_diagonal_gru(jax.random.key(0), 2, 3, forget_length=20)
        >>> isinstance(params, cells.DiagonalGRU)
        True
    """

    kernel: Float[Array, "C 3 D"]
    bias: Float[Array, "3 D"]
    recurrent: Float[Array, "3 D"]


class DiagonalLSTM(NamedTuple):
    """Parameters of an LSTM; gates in the order write, forget, candidate, output.

    Example:
        >>> import jax
        >>> from elk_ssm.interop import cells
        >>> params = cells.init_diagonal_lstm(jax.random.key(0), 2, 3, forget_length=20)
        >>> isinstance(params, cells.DiagonalLSTM)
        True
    """

    kernel: Float[Array, "C 4 D"]
    bias: Float[Array, "4 D"]
    recurrent: Float[Array, "4 D"]


def init_diagonal_gru(
    key: Array, input_size: int, state_size: int, *, forget_length: ArrayLike
) -> DiagonalGRU:
    """Draw the parameters of a GRU with diagonal recurrent weights.

    Args:
        key: A JAX PRNG key.
        input_size: C, the length of one input.
        state_size: D, the number of units.
        forget_length: L > 0, the steps after which a state's influence has fallen to
            1 / e; a number, or `(D,)` for units that forget at different lengths.

    Returns:
        `DiagonalGRU` in JAX's default floating dtype.

    Raises:
        ValueError: A size or length is not positive, or shapes do not fit.

    Example:
        >>> import jax
        >>> from elk_ssm.interop import cells
        >>> params = cells.init_diagonal_gru(jax.random.key(0), 2, 3, forget_length=20)
        >>> params.kernel.shape, params.recurrent.shape
        ((2, 3, 3), (3, 3))
    """
    return DiagonalGRU(
        *draw_parameters(key, input_size, 3, state_size, 1, forget_length)
    )


def init_diagonal_lstm(
    key: Array, input_size: int, state_size: int, *, forget_length: ArrayLike
) -> DiagonalLSTM:
    """Draw the parameters of an LSTM with diagonal peepholes.

    Arguments and errors are those of `init_diagonal_gru`.

    Returns:
        `DiagonalLSTM` in JAX's default floating dtype.

    Example:
        >>> import jax
        >>> from elk_ssm.interop import cells
        >>> params = cells.init_diagonal_lstm(jax.random.key(0), 2, 3, forget_length=20)
        >>> params.kernel.shape
        (2, 4, 3)
    """
    kernel, bias, recurrent = draw_parameters(
        key, input_size, 4, state_size, 1, forget_length
    )
    return DiagonalLSTM(kernel, bias.at[0].set(-bias[1]), recurrent)


def diagonal_gru(params: DiagonalGRU) -> tuple[CellStep, Float[Array, " D"]]:
    """Return `(f, initial_state)` of a GRU with diagonal recurrent weights.

    Args:
        params: Parameters, from `init_diagonal_gru` or trained; they may be traced.

    Returns:
        f on states `(D,)` and inputs `(C,)`, with its diagonal, and a state of zeros.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.interop import cells
        >>> params = cells.init_diagonal_gru(jax.random.key(0), 2, 3, forget_length=20)
        >>> f, h0 = cells.diagonal_gru(params)
        >>> newton = elk.quasi_deer(linearization=cells.diagonal(f))
        >>> elk.evaluate(f, h0, jnp.ones((50, 2)), method=newton).states.shape
        (50, 3)
    """

    def step(hidden: Array, value: Array) -> Array:
        reset, update, candidate = driven(params, value)
        of_reset, of_update, of_candidate = params.recurrent
        reset = jax.nn.sigmoid(reset + of_reset * hidden)
        update = jax.nn.sigmoid(update + of_update * hidden)
        candidate = jnp.tanh(candidate + reset * of_candidate * hidden)
        return (1 - update) * candidate + update * hidden

    return _elementwise(step), jnp.zeros_like(params.bias[0])


def diagonal_lstm(params: DiagonalLSTM) -> tuple[CellStep, Float[Array, " D"]]:
    """Return `(f, initial_state)` of an LSTM whose state is its memory `(D,)`.

    Args:
        params: Parameters, from `init_diagonal_lstm` or trained; they may be traced.

    Returns:
        f on memories `(D,)` and inputs `(C,)`, with its diagonal, and a memory of
        zeros. `lstm_output` turns memories into outputs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> from elk_ssm.interop import cells
        >>> params = cells.init_diagonal_lstm(jax.random.key(0), 2, 3, forget_length=20)
        >>> f, c0 = cells.diagonal_lstm(params)
        >>> memories = elk.evaluate(f, c0, jnp.ones((50, 2))).states
        >>> cells.lstm_output(params, memories, jnp.ones((50, 2))).shape
        (50, 3)
    """

    def step(memory: Array, value: Array) -> Array:
        write, forget, candidate, _ = driven(params, value)
        of_write, of_forget, of_candidate, _ = params.recurrent
        write = jax.nn.sigmoid(write + of_write * memory)
        forget = jax.nn.sigmoid(forget + of_forget * memory)
        candidate = jnp.tanh(candidate + of_candidate * memory)
        return forget * memory + write * candidate

    return _elementwise(step), jnp.zeros_like(params.bias[0])


def lstm_output(
    params: DiagonalLSTM,
    memories: Float[Array, "*time D"],
    inputs: Float[Array, "*time C"],
) -> Float[Array, "*time D"]:
    """Return the outputs h_t of memories c_t under the inputs u_t of the same steps.

    Args:
        params: Of `init_diagonal_lstm`.
        memories: c_t, `(..., D)`.
        inputs: u_t, `(..., C)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from elk_ssm.interop import cells
        >>> params = cells.init_diagonal_lstm(jax.random.key(0), 2, 3, forget_length=20)
        >>> cells.lstm_output(params, jnp.ones(3), jnp.ones(2)).shape
        (3,)
    """
    output = driven(params, inputs)[..., 3, :] + params.recurrent[3] * memories
    return jax.nn.sigmoid(output) * jnp.tanh(memories)


def driven(params: Any, value: Array) -> Array:
    """Return what the input gives to every gate, kernel and bias, `(..., gates, D)`."""
    # Full precision: in TF32 a step would round differently inside and outside vmap.
    highest = jax.lax.Precision.HIGHEST
    return jnp.tensordot(value, params.kernel, 1, precision=highest) + params.bias


def _elementwise(step: Callable[[Array, Array], Array]) -> CellStep:
    """Give a step without coupling between units its diagonal."""

    def jacobian_diagonal(state: Array, value: Array) -> Array:
        return with_slope(lambda x: step(x, value), state)[1]

    return CellStep(step, jacobian_diagonal)


def draw_parameters(
    key: Array, input_size: int, gates: int, size: int, forgets: int, length: ArrayLike
) -> tuple[Array, Array, Array]:
    """Draw kernel, bias and recurrent weights; gate `forgets` is its bias alone."""
    if input_size < 1 or size < 1:
        raise ValueError(f"Sizes must be positive; got {input_size} and {size}.")
    length = jnp.asarray(length, jnp.zeros(()).dtype)
    if length.shape not in ((), (size,)):
        raise ValueError(
            f"forget_length must be a number or of shape ({size},); got {length.shape}."
        )
    if not is_traced(length) and not bool(jnp.all(length > 0)):
        raise ValueError(f"forget_length must be positive; got {length}.")
    of_kernel, of_recurrent = jax.random.split(key)
    kernel = jax.random.normal(of_kernel, (input_size, gates, size)) / input_size**0.5
    recurrent = _RECURRENT_SCALE * jax.random.normal(of_recurrent, (gates, size))
    bias = jnp.zeros((gates, size)).at[forgets].set(-jnp.log(jnp.expm1(1 / length)))
    return kernel.at[:, forgets].set(0), bias, recurrent.at[forgets].set(0)
