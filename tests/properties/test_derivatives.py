"""Every public derivative against finite differences, to second order.

`jax.test_util.check_grads` goes through forward and reverse mode, and through both
twice. Functions are smooth, in double precision, and short. Derivatives do not depend
on the method: all of them are gone through with `HYPOTHESIS_PROFILE=long`. So are all
four orders of modes for models whose programs take long to compile; otherwise these go
through reverse mode twice, or once, which is what training does.
"""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import elk_ssm as elk

pytestmark = pytest.mark.usefixtures("x64")
T, D = 5, 2
LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
WEIGHTS = np.array([[0.4, 0.3], [-0.2, 0.5]])
X0 = np.array([0.3, -0.1])
INPUTS = np.linspace(-1, 1, T * D).reshape(T, D)
EMISSIONS = np.where(np.arange(T) == 2, np.nan, np.sin(np.arange(T)))[:, None]


ALL = ("fwd", "rev")
FEWER = ALL if LONG else ("rev",)


def check(function, *args, modes=ALL, order=2):
    """Differences of 1e-4 are right to 1e-7, their own rounding to 1e-8."""
    check_grads(
        jax.jit(function), args, order, modes=modes, eps=1e-4, atol=1e-5, rtol=1e-5
    )


def solved(weights, x0, inputs, **options):
    def f(x, u):
        return jnp.tanh(weights @ x + u)

    return elk.evaluate(f, x0, inputs, **options).states


METHODS = {
    "default": {},
    "newton": {"method": elk.auto(strategy="newton", block_size=2)},
    "short blocks": {"method": elk.auto(strategy="short_blocks", block_size=2)},
    "forgetful": {"method": elk.auto(strategy="forgetful", block_size=2)},
    "by steps": {"method": elk.auto(strategy="sequential")},
    "deer": {"method": elk.deer()},
    "deer, parallel": {"method": elk.deer(), "adjoint": "parallel"},
    "deer, blocks": {"method": elk.deer(block_size=2), "adjoint": "blocks"},
    "quasi_deer": {"method": elk.quasi_deer()},
    "elk": {"method": elk.elk(10.0)},
    "elk, smoother": {"method": elk.elk(10.0, estimate="smoother")},
    "quasi_elk": {"method": elk.quasi_elk(10.0), "adjoint": "short_blocks"},
    "picard": {"method": elk.picard()},
    "anderson": {"method": elk.picard(anderson=2)},
    "jacobi": {"method": elk.jacobi()},
    "last": {"keep": "last", "method": elk.deer()},
    "boundaries": {"keep": "boundaries", "method": elk.deer(block_size=2)},
    "associative": {"method": elk.deer(), "backend": "associative"},
}


# One for each way of solving the linear recursion of the derivatives, and of keeping.
FEW = ("default", "deer, parallel", "deer, blocks", "quasi_elk", "boundaries")


@pytest.mark.parametrize("name", METHODS if LONG else FEW)
def test_states_by_closure_start_and_inputs(name):
    check(partial(solved, **METHODS[name]), WEIGHTS, X0, INPUTS)


def step(weights, x, u):
    after = jnp.tanh(weights @ x + u)
    return after, jnp.sum(after**2)


@pytest.mark.parametrize("scan", [elk.scan, elk.sequential_scan])
def test_scans(scan):
    def run(weights, x0, inputs):
        return scan(partial(step, weights), x0, inputs)

    check(run, WEIGHTS, X0, INPUTS)


def test_sequential():
    def run(weights, x0, inputs):
        return elk.sequential(lambda x, u: step(weights, x, u)[0], x0, inputs).states

    check(run, WEIGHTS, X0, INPUTS)


def test_forced_by_data():
    def run(weights, alpha, x0, data):
        g = elk.forced(lambda x, u: jnp.tanh(weights @ x), alpha)
        return elk.evaluate(g, x0, g.inputs(x0, data), method=elk.deer()).states

    check(run, WEIGHTS, np.asarray(0.3), X0, INPUTS)


def model(F, q, H, r, prior=None):
    """Covariances by their roots, so that every direction is one of covariances."""
    first = jnp.eye(D) if prior is None else prior
    return elk.LGSSM(X0, first, F, q @ q.T, H, r @ r.T)


PARTS = (WEIGHTS, np.array([[0.6, 0.0], [0.1, 0.5]]), np.array([[1.0, 0.5]]))
PARTS = (*PARTS, np.array([[0.7]]), EMISSIONS)


def of_seen(function, *args, modes=FEWER, order=2):
    """Differentiate by all but the gaps in the emissions."""
    *parts, y = args
    gaps = np.isnan(y)

    def run(*parts):
        *parts, y = parts
        return function(*parts, jnp.where(gaps, jnp.nan, y))

    check(run, *parts, np.where(gaps, 0.0, y), modes=modes, order=order)


LIKELIHOODS = {
    "plain": {},
    "associative": {"backend": "associative"},
    "square root": {"form": "square_root"},
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihood_of_linear_models(name):
    def run(F, q, H, r, y):
        return elk.lgssm_log_likelihood(model(F, q, H, r), y, **LIKELIHOODS[name])

    of_seen(run, *PARTS, modes=ALL if name == "plain" else FEWER)


def test_diffuse_likelihood():
    def run(F, q, H, r, y):
        return elk.lgssm_log_likelihood(model(F, q, H, r, elk.Diffuse()), y)

    of_seen(run, *PARTS)


def test_stationary_likelihood():
    def run(F, q, H, r, y):
        return elk.lgssm_log_likelihood(model(F, q, H, r, elk.Stationary()), y)

    of_seen(run, *PARTS)


def test_moments_of_linear_models():
    def run(F, q, H, r, y):
        found = elk.lgssm_smoother(model(F, q, H, r), y)
        covs = found.filtered_covariances.matrix, found.smoothed_covariances.matrix
        return found.filtered_means, found.smoothed_means, *covs

    of_seen(run, *PARTS, order=2 if LONG else 1)


def test_forecasts_and_samples():
    key = np.array([0, 7], np.uint32)

    def run(F, q, H, r, y):
        ahead = elk.lgssm_predict(model(F, q, H, r), y, 2)
        drawn = elk.lgssm_sample(model(F, q, H, r), key, y)
        return ahead.emission_means, ahead.lower, drawn

    of_seen(run, *PARTS, order=2 if LONG else 1)


def nonlinear(a, q, r):
    return elk.NonlinearSSM(
        jnp.zeros(1), jnp.eye(1), lambda z, u: jnp.sin(a * z), q**2 * jnp.eye(1),
        lambda z, u: z + 0.1 * z**2, r**2 * jnp.eye(1),
    )  # fmt: skip


def counts(a, q, r):
    return elk.NonlinearSSM(
        jnp.zeros(1), jnp.eye(1), lambda z, u: a * z, q**2 * jnp.eye(1),
        lambda z, u: r * z, None, lambda h, y, u: jnp.sum(y * h - jnp.exp(h)),
    )  # fmt: skip


NUMBERS = np.asarray(0.8), np.asarray(0.6), np.asarray(0.5), EMISSIONS[:4]


@pytest.mark.parametrize("make", [nonlinear, counts])
def test_modes_of_nonlinear_models(make):
    """Modes are found to 1e-10 or so, and their differences know that."""

    def run(a, q, r, y):
        found = elk.smooth(make(a, q, r), y, tol=1e-12)
        return found.means, found.log_posterior

    of_seen(run, *NUMBERS)


@pytest.mark.parametrize("make", [nonlinear, counts])
def test_likelihoods_of_nonlinear_models(make):
    def run(a, q, r, y):
        return elk.smooth(make(a, q, r), y, tol=1e-12).log_likelihood

    of_seen(run, *NUMBERS, modes=ALL if make is nonlinear else FEWER)


def test_log_prob_and_the_extended_smoother():
    def run(a, q, r, y):
        found = elk.extended_smoother(nonlinear(a, q, r), y)
        return found.means, elk.log_prob(nonlinear(a, q, r), jnp.ones((4, 1)), y)

    of_seen(run, *NUMBERS)


@pytest.mark.parametrize("method", [elk.elk(10.0), elk.quasi_elk(10.0)])
def test_the_surrogate(method):
    def run(weights, states, x0):
        surrogate = elk.linearize(
            lambda x, u: jnp.tanh(weights @ x + u), states, jnp.asarray(INPUTS),
            initial_state=x0, method=method,
        )  # fmt: skip
        return surrogate.smooth().means, surrogate.log_likelihood()

    check(run, WEIGHTS, 0.9 * INPUTS, X0)
