"""What the compiled programs send; on eight devices, see `test_on_a_mesh`.

The programs are compiled and not run: the counts are properties of their text.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks.collectives import collectives, count, entries
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import elk_ssm as elk

D, P_, T = 3, 8, 8192
# A dense filter element, the largest summary there is, of every device.
SUMMARY = P_ * (3 * D * D + 2 * D)


def compile_on_mesh(function, *shapes):
    """Compile with the last argument sharded over time."""
    mesh = Mesh(np.array(jax.devices()), ("time",))
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes[:-1]]
    sharding = NamedSharding(mesh, P("time"))
    shards = jax.ShapeDtypeStruct(shapes[-1], jnp.float32, sharding=sharding)
    program = jax.jit(lambda *args: function(mesh, *args))
    return program.lower(*arguments, shards).compile()


def states(method):
    def run(mesh, W, x0, inputs):
        def f(x, u):
            return jnp.tanh(W @ x + u)

        return elk.evaluate(f, x0, inputs, method=method, mesh=mesh).states

    return run


METHODS = {
    # One affine pass each, and a running maximum for the tolerance.
    "quasi_deer": (elk.quasi_deer(), 2),
    "deer": (elk.deer(), 2),
    "blocks": (elk.deer(block_size=16), 2),
    # One more for the filter, two for filter and smoother.
    "elk": (elk.elk(10.0), 3),
    "auto": (elk.auto(), 2),
    "quasi_elk smoother": (elk.quasi_elk(10.0, estimate="smoother"), 4),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_pass_gathers_one_summary_a_device_and_has_one_halo(name):
    method, gathers = METHODS[name]
    program = compile_on_mesh(states(method), (D, D), (D,), (T, D))
    found = collectives(program)
    in_pass = count(each for each in found if each.in_pass)
    assert in_pass["all-gather"] == gathers
    assert in_pass["collective-permute"] == 1
    # Numbers that all agree on; XLA joins those that do not wait for each other.
    assert in_pass["all-reduce"] <= 5
    assert set(in_pass) <= {"all-gather", "all-reduce", "collective-permute"}
    assert 1 < entries(found) <= SUMMARY < T // P_
    assert program.output_shardings.spec[0] == "time"


@pytest.mark.parametrize("name", ["quasi_deer", "blocks"])
def test_the_trial_of_what_looks_converged_is_outside_the_pass(name):
    program = compile_on_mesh(states(METHODS[name][0]), (D, D), (D,), (T, D))
    found = collectives(program)
    trial = count(each for each in found if "trial" in each.place)
    # How errors grow; rows and sums that enter a device.
    assert trial["all-gather"] == 1
    assert trial["collective-permute"] <= 3
    assert trial["all-reduce"] <= 1


@pytest.mark.parametrize("name", ["deer", "quasi_deer"])
def test_the_backward_pass_is_one_affine_pass(name):
    run = states(METHODS[name][0])

    def gradients(mesh, W, x0, inputs):
        def loss(*args):
            return jnp.sum(run(mesh, *args) ** 2)

        return jax.grad(loss, argnums=(0, 1, 2))(W, x0, inputs)

    program = compile_on_mesh(gradients, (D, D), (D,), (T, D))
    found = collectives(program)
    backward = count(each for each in found if "transpose(jvp" in each.place)
    assert backward["all-gather"] == 1
    # One for the adjoint recursion, one for the trajectory it is linearised along.
    assert backward["collective-permute"] <= 2
    assert entries(found) <= SUMMARY
    assert program.output_shardings[2].spec[0] == "time"


def test_no_device_holds_all_of_time():
    method, shapes = elk.quasi_deer(), ((D, D), (D,), (8 * T, D))
    on_mesh = compile_on_mesh(states(method), *shapes)
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    alone = jax.jit(lambda *args: states(method)(None, *args))
    alone = alone.lower(*arguments).compile()

    def held(program):
        memory = program.memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    # An eighth each, and one more array over time for the two runs through the steps.
    assert held(on_mesh) < 1.25 * held(alone) / P_


def test_a_reader_of_programs_sees_what_would_be_wrong():
    program = compile_on_mesh(
        lambda mesh, x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P())),
        (T, D),
    )
    found = collectives(program)
    assert count(found)["all-gather"] == 1
    assert entries(found) == T * D
