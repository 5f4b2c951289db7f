"""Every iterate of a method, for teaching and pictures."""

from functools import partial

import jax
import jax.numpy as jnp

from elk_ssm._closures import HoistedFunction
from elk_ssm._forward_mode import forward_mode
from elk_ssm._types import Array
from elk_ssm.solve.carry import Carry, start
from elk_ssm.solve.loop import one_pass
from elk_ssm.solve.method import Method
from elk_ssm.solve.nodes import roll_out
from elk_ssm.solve.trajectory import Options, Settings, lay_out


@partial(jax.jit, static_argnums=(0, 1, 2))
def all_iterates(
    function: HoistedFunction,
    settings: Settings,
    num_iters: int,
    method: Method,
    primals: tuple,
    options: Options,
) -> Array:
    """Return the guess and every iterate after it, `(num_iters + 1, T, D)`."""
    consts, initial, inputs = primals
    flat = partial(forward_mode(function), consts)
    step, blocks, nodes = lay_out(
        method, settings, flat, initial, inputs, options.guess
    )
    never = options.tolerance.times(0)

    def body(carry: Carry, _: None) -> tuple[Carry, Array]:
        carry = one_pass(method, step, blocks, never, settings.backend, carry)[0]
        return carry, roll_out(step, blocks, carry.nodes)

    first = roll_out(step, blocks, nodes)
    rest = jax.lax.scan(body, start(method, nodes, 0), None, length=num_iters)[1]
    return jnp.concatenate([first[None], rest])
