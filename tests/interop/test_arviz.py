"""Chains as arviz reads them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.interop.arviz import to_arviz

pytest.importorskip("arviz")


class State(NamedTuple):
    position: dict
    logdensity: jax.Array


class Info(NamedTuple):
    acceptance_rate: jax.Array
    is_divergent: jax.Array
    energy: jax.Array
    num_integration_steps: int


def made(thinned=()):
    """Three chains of eight draws."""
    rng = np.random.default_rng(0)

    def draws(*shape):
        return jnp.asarray(rng.normal(size=(3, 8, *shape)))

    position = {"a": draws(), "b": {"c": draws(2)}}
    info = Info(
        draws(*thinned),
        draws(*thinned) > 0,
        draws(*thinned),
        jnp.ones((3, 8, *thinned)),
    )
    zeros = jnp.zeros(3)
    ints = jnp.zeros(3, jnp.int32)
    return elk.Chains(
        State(position, draws()), ints, ints, zeros, zeros, ints - 1, info=info
    )


def test_dimensions_names_and_statistics():
    chains = made()
    found = to_arviz(chains, dims={"b.c": ["place"]})
    assert dict(found.posterior["b.c"].sizes) == {"chain": 3, "draw": 8, "place": 2}
    np.testing.assert_array_equal(found.posterior["a"], chains.states.position["a"])
    theirs = found.sample_stats
    np.testing.assert_array_equal(theirs["acceptance_rate"], chains.info[0])
    np.testing.assert_array_equal(theirs["diverging"], chains.info[1])
    np.testing.assert_array_equal(theirs["lp"], chains.states.logdensity)
    assert set(theirs) == {"acceptance_rate", "diverging", "energy", "n_steps", "lp"}


def test_the_steps_of_a_thinned_sample_become_one():
    chains = made((4,))
    theirs = to_arviz(chains).sample_stats
    info = chains.info
    np.testing.assert_allclose(
        theirs["acceptance_rate"], info.acceptance_rate.mean(2), rtol=1e-5
    )
    np.testing.assert_array_equal(theirs["diverging"], info.is_divergent.any(2))
    np.testing.assert_array_equal(theirs["energy"], info.energy[..., -1])
    assert float(theirs["n_steps"][0, 0]) == 4


def test_a_failed_chain_raises_or_is_left_out():
    chains = made()._replace(status=jnp.array([0, 1, 0]))
    with pytest.raises(RuntimeError, match="in chains 1: "):
        to_arviz(chains)
    with pytest.raises(
        TypeError, match=r"to_arviz takes .* not its states.* got State"
    ):
        to_arviz(chains.states)
    found = to_arviz(chains, drop_failed=True)
    assert found.posterior.sizes["chain"] == 2
    with pytest.raises(RuntimeError, match="max_iters_reached"):
        to_arviz(chains._replace(status=jnp.ones(3, int)), drop_failed=True)


def test_an_array_alone_a_dictionary_of_infos_and_no_samples():
    chains = made()
    bare = chains._replace(
        states=chains.states.logdensity, info={"acceptance_rate": jnp.ones((3, 8))}
    )
    found = to_arviz(bare)
    assert list(found.posterior) == ["position"]
    assert list(found.sample_stats) == ["acceptance_rate"]
    with pytest.raises(ValueError, match="with all samples"):
        to_arviz(bare._replace(states=jnp.zeros(3), info=None))
