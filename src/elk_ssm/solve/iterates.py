"""Every iterate of a method, for teaching and pictures."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from elk_ssm._closures import HoistedFunction
from elk_ssm._forward_mode import forward_mode
from elk_ssm._types import Array
from elk_ssm.solve.carry import Carry, start
from elk_ssm.solve.loop import one_pass
from elk_ssm.solve.options import Options
from elk_ssm.solve.problem import Primals, Problem
from elk_ssm.solve.rollout import roll_out
from elk_ssm.solve.strategies import lay_out


@partial(jax.jit, static_argnums=(0, 1))
def all_iterates(
    function: HoistedFunction, num_iters: int, primals: Primals, options: Options
) -> Array:
    """Return the guess and every iterate after it, `(num_iters + 1, T, D)`."""
    problem = Problem(forward_mode(function), *primals, options.length)
    blocks, nodes = lay_out(problem, options)
    never = replace(options, tolerance=options.tolerance.times(0))

    def body(carry: Carry, _: None) -> tuple[Carry, Array]:
        carry = one_pass(blocks, never, carry)
        return carry, roll_out(blocks, carry.nodes)

    begin = start(options.concrete, nodes, 0)
    rest = jax.lax.scan(body, begin, None, length=num_iters)[1]
    return jnp.concatenate([roll_out(blocks, nodes)[None], rest])
