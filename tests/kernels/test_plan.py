"""Where values are cut, what runs ahead, and how a kernel is started."""

import jax
import jax.numpy as jnp
import pytest
from benchmarks.speed import fused, split

from elk_ssm.kernels import Launch
from elk_ssm.kernels.registers import Load, choose
from elk_ssm.kernels.rollout import plan_of

SIZE = 8


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def plan_of_gru(writing, lanes, size=SIZE):
    def step(weights, h, u):
        return writing(weights)(h, u)

    consts = shape(6, size, size)
    return plan_of(step, consts, shape(lanes, size), shape(5, lanes, size))


def cuts_of(plan, variables):
    return [plan.cuts[v] for v in variables]


def test_a_slice_of_a_product_cuts_the_matrix_and_not_the_state():
    plan = plan_of_gru(fused, lanes=2000)
    whole, gates = (0, SIZE), (0, SIZE, 2 * SIZE, 3 * SIZE)
    assert plan.cuts[plan.step.carry] == (whole,)
    assert cuts_of(plan, plan.stages.consts) == [(whole, gates)] * 2
    assert cuts_of(plan, plan.stages.entries) == [(whole,)]
    assert not plan.stages.ahead


@pytest.mark.parametrize("writing", [fused, split])
def test_few_lanes_multiply_the_inputs_ahead(writing):
    plan = plan_of_gru(writing, lanes=1)
    multiplied = [e.primitive.name for e in plan.stages.kernel]
    assert multiplied.count("dot_general") == (1 if writing is fused else 3)
    assert all(e.primitive.name == "dot_general" for e in plan.stages.ahead)
    assert plan.launch.lanes == 1


def test_a_state_of_two_parts_is_cut_in_two():
    def step(_, x, u):
        c, h = x[:3], x[3:]
        return jnp.concatenate([h + u, jnp.tanh(c)])

    plan = plan_of(step, (), shape(2, 6), shape(5, 2))
    assert plan.cuts[plan.step.carry] == ((0, 3, 6),)


def test_numbers_by_index_are_cut_off():
    plan = plan_of(lambda c, x, u: x * x[1], (), shape(2, 4), shape(5, 2))
    assert plan.cuts[plan.step.carry] == ((0, 1, 2, 4),)


def test_products_of_sixteen_lanes_are_the_hardware_s():
    plan = plan_of_gru(fused, lanes=2000, size=32)
    assert plan.launch == Launch(16, 4)
    assert plan_of_gru(fused, lanes=2000, size=64).launch == Launch(4, 8)
    assert plan_of_gru(fused, lanes=2000, size=128).launch == Launch(1, 16)


@pytest.mark.parametrize(
    ("load", "lanes", "expected"),
    [
        (Load(held=0, each=3, tile=1, product=0), 1, Launch(1, 1)),
        (Load(held=0, each=3, tile=1, product=0), 5, Launch(8, 1)),
        (Load(held=0, each=3, tile=1, product=0), 5000, Launch(32, 1)),
        (Load(held=0, each=2048, tile=1024, product=0), 5000, Launch(1, 2)),
        (Load(held=192, each=16, tile=8, product=64), 1, Launch(1, 1)),
        (Load(held=192, each=16, tile=8, product=64), 5000, Launch(16, 1)),
        (Load(held=3072, each=64, tile=32, product=1024), 1, Launch(1, 1)),
        (Load(held=49152, each=640, tile=128, product=16384), 1, Launch(1, 16)),
    ],
)
def test_lanes_and_warps(load, lanes, expected):
    assert choose(load, lanes) == expected


def test_a_load_that_does_not_fit_is_named():
    why = choose(Load(held=65536, each=512, tile=256, product=65536), 1)
    assert "66,048 words" in why
