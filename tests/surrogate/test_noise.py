"""Noise policies: what counts as a noise, and its shapes."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.surrogate.noise import as_policy
from elk_ssm.surrogate.policy import NoisePolicy, Seen, check_noise

SHAPE = (5, 2)


@pytest.mark.parametrize(
    "noise",
    [3.0, 3, np.float32(3), np.ones(2), jnp.ones((5, 1)), [1.0, jnp.inf]],
)
def test_numbers_and_arrays_are_constant_policies(noise):
    policy = as_policy(noise)
    assert isinstance(policy, elk.Constant)
    state = policy.init(SHAPE, jnp.float32)
    np.testing.assert_array_equal(policy.noise(state), jnp.asarray(noise, jnp.float32))
    assert policy.noise(state).dtype == jnp.float32
    seen = Seen(jnp.ones(SHAPE), *(jnp.zeros(()) for _ in range(4)))
    after, accept = policy.update(state, seen)
    np.testing.assert_array_equal(after, state)
    assert accept
    assert not policy.can_reject


@pytest.mark.parametrize("noise", [jnp.inf, jnp.full((5, 2), jnp.inf)])
def test_noise_known_to_be_infinite_is_no_damping(noise):
    assert as_policy(noise) is None
    assert elk.elk(noise) == elk.deer()


@pytest.mark.parametrize("noise", [0.0, -1.0, jnp.nan, [1.0, -2.0], -jnp.inf, 0])
def test_a_noise_that_is_no_variance_is_refused(noise):
    with pytest.raises(ValueError, match="noise is a variance and must be positive"):
        elk.elk(noise)


@pytest.mark.parametrize("noise", ["1e2", None, {"a": 1.0}, elk.deer, 1j])
def test_what_is_no_number_is_refused(noise):
    with pytest.raises(TypeError, match="noise must be"):
        elk.quasi_elk(noise)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (5, 1), (1, 2), (5, 2), (1, 1)])
def test_shapes_that_fit(shape):
    assert check_noise(jnp.ones(shape), SHAPE, jnp.float32).shape == shape


@pytest.mark.parametrize("shape", [(5,), (3,), (2, 5), (4, 2), (1, 5, 2), (0,)])
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"\(2,\) per dimension, \(5, 1\) per step"):
        check_noise(jnp.ones(shape), SHAPE, jnp.float32)


def test_tracers_are_not_checked_for_sign():
    assert jax.jit(lambda s: elk.elk(s).noise.value)(-1.0) == -1.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Annealed:
    """Noise that grows by `factor` with every iteration."""

    first: Any
    factor: Any

    @property
    def can_reject(self):
        return False

    def init(self, shape, dtype):
        return jnp.asarray(self.first, dtype)

    def noise(self, state):
        return state

    def update(self, state, seen):
        return jnp.where(seen.iteration > 0, state * self.factor, state), True


def test_a_policy_of_one_s_own():
    policy = Annealed(1.0, 4.0)
    assert isinstance(policy, NoisePolicy)
    assert as_policy(policy) is policy
    solution = elk.evaluate(
        lambda x, u: jnp.tanh(2 * x + u),
        jnp.zeros(2),
        jnp.linspace(-1, 1, 40).reshape(20, 2),
        method=elk.elk(policy),
        history=3,
    )
    np.testing.assert_allclose(solution.history.noise, [1.0, 4.0, 16.0], rtol=1e-5)
    assert solution.status == elk.Status.converged
