"""A Markov chain is a recurrence with its keys as inputs (blackjax, real data).

The posterior is that of a Bayesian linear regression of diabetes progression on ten
measurements of 442 patients, which scikit-learn ships. States are blackjax's NamedTuple
states: position, log density and its gradient.
"""

import jax
import jax.numpy as jnp
import pytest

import elk_ssm as elk

blackjax = pytest.importorskip("blackjax")
datasets = pytest.importorskip("sklearn.datasets")

LENGTH = 64


@pytest.fixture
def posterior(x64):
    """Return the log density of weights and log noise, and where to start."""
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


def chain(name, log_density, position):
    """Return (f, initial state) of a chain; the input of a step is its key."""
    if name == "mala":
        sampler = blackjax.mala(log_density, step_size=2e-4)
    else:
        sampler = blackjax.hmc(
            log_density,
            step_size=0.01,
            inverse_mass_matrix=jnp.ones(11),
            num_integration_steps=3,
        )
    return lambda state, key: sampler.step(key, state)[0], sampler.init(position)


@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_a_chain_in_parallel_is_the_chain(name, posterior, reference, close):
    f, start = chain(name, *posterior)
    keys = jax.random.split(jax.random.key(1), LENGTH)
    expected = reference(f, start, keys)
    sol = elk.raise_if_failed(
        elk.evaluate(f, start, keys, method=elk.quasi_deer(), tol=1e-11)
    )
    assert type(sol.states) is type(start)
    scale = float(jnp.abs(expected.logdensity_grad["weights"]).max())
    close(sol.states.position, expected.position, atol=1e-9)
    close(sol.states.logdensity, expected.logdensity, atol=1e-7)
    close(sol.states.logdensity_grad, expected.logdensity_grad, atol=1e-9 * scale)
    moved = jnp.diff(expected.logdensity) != 0
    assert 0.3 < float(moved.mean()) < 1.0  # proposals are accepted and rejected
    assert int(sol.num_iters) < LENGTH


def test_the_default_method_and_many_chains(posterior, reference, close):
    f, start = chain("mala", *posterior)
    keys = jax.random.split(jax.random.key(2), (3, 32))
    run = jax.vmap(lambda keys: elk.evaluate(f, start, keys).states)
    alone = jax.vmap(lambda keys: reference(f, start, keys))(keys)
    close(run(keys), alone, atol=1e-8)
