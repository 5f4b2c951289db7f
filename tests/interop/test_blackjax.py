"""Chains of blackjax in parallel are the chains of its own loop.

The posterior is that of a Bayesian linear regression of diabetes progression on ten
measurements of 442 patients, which scikit-learn ships, and a mixture of Gaussians.
States are blackjax's NamedTuple states: position, log density and its gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.interop import blackjax as chain

blackjax = pytest.importorskip("blackjax")
datasets = pytest.importorskip("sklearn.datasets")

LENGTH, CHAINS = 40, 2


def regression():
    found = datasets.load_diabetes()
    design = found.data / found.data.std(0)
    target = (found.target - found.target.mean()) / found.target.std()

    def log_density(position):
        residual = target - design @ position["weights"]
        scale = jnp.exp(position["log_scale"])
        prior = (position["weights"] ** 2).sum() + position["log_scale"] ** 2
        misfit = (residual**2).sum() / scale**2 / 2
        return -misfit - len(target) * position["log_scale"] - prior / 2

    return log_density, {"weights": jnp.zeros(10), "log_scale": jnp.zeros(())}


def mixture(position):
    means = jnp.array([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    return jax.nn.logsumexp(-((position - means) ** 2).sum(1) / 2)


def own_loop(sampler, states, key, length=LENGTH):
    """The loop over keys that blackjax's pages show, and its infos."""

    def one(state, key):
        return jax.lax.scan(
            lambda x, key: (lambda found: (found[0], found))(sampler.step(key, x)),
            state,
            jax.random.split(key, length),
        )[1]

    return jax.vmap(one)(states, jax.random.split(key, CHAINS))


def check(found, expected, infos, close):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    close(found.states, expected, atol=1e-9 * max(scale, 1.0))
    elk.raise_if_failed(found)
    if found.info is not None:
        np.testing.assert_array_equal(found.info.is_accepted, infos.is_accepted)
    # A rejected step repeats the state to the last bit.
    for mine, theirs in zip(jax.tree.leaves(found.states), jax.tree.leaves(expected)):
        repeats = jnp.diff(mine, axis=1) == 0
        np.testing.assert_array_equal(repeats, jnp.diff(theirs, axis=1) == 0)


def test_mala_on_real_data_from_two_starts(x64, close):
    log_density, position = regression()
    sampler = blackjax.mala(log_density, 5e-4)
    starts = jax.tree.map(lambda x: jnp.stack([x, x - 0.1]), position)
    states, key = jax.vmap(sampler.init)(starts), jax.random.key(1)
    found = elk.chains(sampler, states, key, LENGTH, method=elk.deer(), info=True)
    expected, infos = own_loop(sampler, states, key)
    assert type(found.states) is type(states)
    check(found, expected, infos, close)
    accepted = float(infos.is_accepted.mean())
    assert 0.3 < accepted < 1.0  # proposals are accepted and rejected
    assert int(found.num_iters.max()) <= LENGTH // 2


def test_hmc_adapted_to_each_chain(x64, close):
    def build(parameters):
        return blackjax.hmc(mixture, num_integration_steps=3, **parameters)

    parameters = {
        "step_size": jnp.array([0.3, 0.6]),
        "inverse_mass_matrix": jnp.array([[1.0, 1.0], [0.5, 2.0]]),
    }
    start, key = blackjax.hmc.init(jnp.zeros(2), mixture), jax.random.PRNGKey(3)
    found = elk.chains(
        build, start, key, LENGTH, 2, parameters=parameters, method=elk.quasi_deer(),
        info=lambda info: {"acceptance_rate": info.acceptance_rate},
    )  # fmt: skip

    def one(parameters, key):
        step = build(parameters).step
        keys = jax.random.split(key, LENGTH)
        return jax.lax.scan(lambda x, k: (step(k, x)[0],) * 2, start, keys)[1]

    expected = jax.vmap(one)(parameters, jax.random.split(key, 2))
    check(found._replace(info=None), expected, None, close)
    assert found.info["acceptance_rate"].shape == (2, LENGTH)


def test_walks_by_the_default_and_step_by_step(x64, close):
    walk = blackjax.mcmc.random_walk.normal(jnp.ones(2))
    sampler = blackjax.additive_step_random_walk(mixture, walk)
    start, key = sampler.init(jnp.zeros(2)), jax.random.key(4)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), start)
    expected, infos = own_loop(sampler, states, key)
    for method in (None, elk.auto(strategy="sequential")):
        found = elk.chains(sampler, start, key, LENGTH, 2, method=method, info=True)
        check(found, expected, infos, close)
        close(found.info, infos, atol=1e-9)


def test_elliptical_slices_loop_inside_a_step(x64, close):
    sampler = blackjax.elliptical_slice(mixture, mean=jnp.zeros(2), cov=4 * jnp.eye(2))
    start, key = sampler.init(jnp.ones(2)), jax.random.key(5)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), start)
    expected, _ = own_loop(sampler, states, key)
    method = elk.quasi_deer()
    found = elk.chains(sampler, start, key, LENGTH, 2, method=method)
    check(found, expected, None, close)
    assert int(found.num_iters.max()) < LENGTH


def test_what_is_solved_for(x64):
    key, start = jax.random.key(6), jnp.zeros(2)
    mala = blackjax.mala(mixture, 0.1)
    f, x0, keys = chain.to_recurrence(mala, mala.init(start), key, 7)
    assert f.by_position
    assert x0.shape == (2,)
    assert keys.shape == (7,)
    by_function = chain.to_recurrence(mala.step, mala.init(start), key, 7)[1]
    assert type(by_function) is type(mala.init(start))
    # A momentum does not follow from the position, nor does a pseudo-random counter.
    ghmc = blackjax.ghmc(mixture, 0.1, jnp.ones(2), 0.9, 0.1)
    f, x0, _ = chain.to_recurrence(ghmc, ghmc.init(start, key), key, 7)
    assert not f.by_position
    dynamic = blackjax.dhmc(mixture, 0.1, jnp.ones(2))
    f, x0, _ = chain.to_recurrence(dynamic, dynamic.init(start, key), key, 7)
    assert not f.by_position
    assert len(jax.tree.leaves(x0)) == 4


def test_a_recurrence_for_evaluate(x64, close):
    mala = blackjax.mala(mixture, 0.1)
    state, key = mala.init(jnp.zeros(2)), jax.random.key(7)
    f, x0, keys = chain.to_recurrence(mala, state, key, 12, thinning=2)
    assert keys.shape == (12, 2)
    sol = elk.raise_if_failed(elk.sequential(f, x0, keys))
    flat = jax.random.split(key, 24)
    _, expected = jax.lax.scan(lambda x, k: (mala.step(k, x)[0],) * 2, state, flat)
    every = jax.tree.map(lambda x: x[1::2], expected)
    close(f.states(sol.states), every, atol=1e-9)


def test_mistakes():
    mala = blackjax.mala(mixture, 0.1)
    start, key = mala.init(jnp.zeros(2)), jax.random.key(0)
    with pytest.raises(TypeError, match="factory of samplers: call it"):
        elk.chains(blackjax.mala, start, key, 5, 2)
    with pytest.raises(TypeError, match=r"kernel\.init"):
        elk.chains(mala, jnp.zeros(2), key, 5, 3)
    with pytest.raises(TypeError, match="must be a sampler with a step"):
        chain.to_recurrence(None, start, key, 5)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        chain.to_recurrence(mala, start, 3, 5)
    with pytest.raises(TypeError, match=r"PRNG key.*got float32\[2\]"):
        chain.to_recurrence(mala, start, jnp.ones(2), 5)
    with pytest.raises(TypeError, match=r"kernel must be step\(key, state\).*sampler"):
        elk.chains(mixture, jnp.zeros(2), key, 5, 2)
    with pytest.raises(ValueError, match=r"guess must hold states .*logdensity_grad"):
        elk.chains(mala, start, key, 5, 2, guess=jnp.zeros((2, 5, 2)))
    with pytest.raises(ValueError, match="other numbers side by side than one by one"):
        chain.to_recurrence(mala, start, jax.random.key(0, impl="rbg"), 5)
    with pytest.raises(ValueError, match="one PRNG key; got an array of 1 axes"):
        chain.to_recurrence(mala, start, jax.random.split(key), 5)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        chain.to_recurrence(mala, start, key, 0)
    with pytest.raises(TypeError, match="thinning must be an integer"):
        chain.to_recurrence(mala, start, key, 5, thinning=1.5)


class Noisy(NamedTuple):
    """What a pseudo-marginal sampler keeps: a noisy estimate until a move is taken."""

    position: jax.Array
    logdensity: jax.Array


class Sampler(NamedTuple):
    init: Callable
    step: Callable


def start(position):
    return Noisy(position, -position @ position / 2)


def move(key, state):
    ours, noise, other = jax.random.split(key, 3)
    to = state.position + 0.7 * jax.random.normal(ours, state.position.shape)
    there = -to @ to / 2 + 0.5 * jax.random.normal(noise)
    taken = jnp.log(jax.random.uniform(other)) < there - state.logdensity
    return jax.tree.map(
        lambda a, b: jnp.where(taken, a, b), Noisy(to, there), state
    ), None


def outside(position):
    return jnp.where(jnp.all(position > 0), -jnp.sum(position), -jnp.inf)


NORMAL = blackjax.mcmc.random_walk.normal(0.8 * jnp.ones(2))
WALK = blackjax.additive_step_random_walk(outside, NORMAL)
STRANGE = {
    "a density that is no function of the position": (
        Sampler(start, move),
        start(jnp.ones(2)),
    ),
    "a start that init did not make": (
        WALK,
        WALK.init(jnp.ones(2))._replace(logdensity=jnp.asarray(-50.0)),
    ),
    "a start where the density is zero": (WALK, WALK.init(-0.2 * jnp.ones(2))),
}


@pytest.mark.parametrize("name", STRANGE)
def test_chains_that_a_position_does_not_tell(name, x64):
    sampler, state = STRANGE[name]
    state = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), state)
    keys = jax.random.split(jax.random.key(5), LENGTH)

    def step(state, key):
        return (after := sampler.step(key, state)[0]), after

    expected = jax.lax.scan(step, state, keys)[1].position
    for method in (None, elk.deer(), elk.auto(strategy="sequential")):
        found = elk.chains(sampler, state, keys[None], LENGTH, 1, method=method)
        assert bool(found.converged[0])
        assert float(jnp.abs(found.states.position[0] - expected).max()) < 1e-12


def test_inside_jit_only_samplers_of_blackjax_are_their_positions(x64):
    sampler, state = Sampler(start, move), start(jnp.ones(2))
    keys = jax.random.split(jax.random.key(5), LENGTH)[None]

    def run(state):
        return elk.chains(sampler, state, keys, LENGTH, 1).states.position

    np.testing.assert_allclose(jax.jit(run)(state), run(state), atol=1e-12)
