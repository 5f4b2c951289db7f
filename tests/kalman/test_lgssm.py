import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk
from elk_ssm.kalman.lgssm import LGSSM, pose
from elk_ssm.linalg.structure import (
    Dense,
    Diagonal,
    ScaledIdentity,
    as_operator,
    to_dense,
    variances_of,
)

ONE = ScaledIdentity(1.0)
MODEL = LGSSM(jnp.zeros(2), ONE, ONE, ONE, ONE, ONE)
EMISSIONS = jnp.zeros((5, 2))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"initial_mean": jnp.zeros((5, 2))}, r"initial_mean.*\(2,\).*got \(5, 2\)"),
        ({"initial_covariance": jnp.eye(3)}, r"initial_covariance.*got \(3, 3\)"),
        ({"dynamics_weights": jnp.ones(2)}, r"Diagonal\(vector\)"),
        ({"dynamics_weights": jnp.ones((4, 2, 2))}, r"\(5, 2, 2\); got \(4, 2, 2\)"),
        ({"dynamics_covariance": Diagonal(jnp.ones(3))}, r"got \(3,\)"),
        ({"emission_weights": jnp.ones((3, 2))}, r"emission_weights.*got \(3, 2\)"),
        ({"emission_covariance": 1.0}, r"ScaledIdentity\(number\)"),
        ({"dynamics_bias": jnp.ones(3)}, r"dynamics_bias.*got \(3,\)"),
        ({"emission_input_weights": jnp.ones((2, 2))}, r"\(2, 3\).*got \(2, 2\)"),
    ],
)
def test_wrong_shapes_say_what_was_expected(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        pose(MODEL._replace(**change), EMISSIONS, jnp.ones((5, 3)), None)


def test_a_diagonal_cannot_be_rectangular():
    with pytest.raises(ValueError, match="use Dense"):
        pose(MODEL, jnp.zeros((5, 3)), None, None)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((jnp.zeros(5), None, None), ValueError),
        ((jnp.zeros((5, 2), int), None, None), TypeError),
        ((EMISSIONS, jnp.zeros(5), None), ValueError),
        ((EMISSIONS, None, jnp.ones((5, 2))), TypeError),
        ((EMISSIONS, None, jnp.ones((4,), bool)), ValueError),
    ],
)
def test_wrong_data_is_refused(arguments, error):
    with pytest.raises(error, match="got"):
        pose(MODEL, *arguments)


def test_structure_is_declared_and_kept():
    assert not pose(MODEL, EMISSIONS, None, None).initial_covariance.mixes
    dense = MODEL._replace(dynamics_weights=jnp.eye(2))
    assert pose(dense, EMISSIONS, None, None).initial_covariance.mixes


def test_scaled_identity_may_vary_in_time():
    operator = as_operator(ScaledIdentity(jnp.arange(3.0)), 2, "Q")
    assert np.array_equal(to_dense(operator)[2], 2 * np.eye(2))


def test_variances_read_both_types():
    diagonal = Diagonal(jnp.ones((4, 2)))
    assert np.array_equal(
        variances_of(diagonal), variances_of(Dense(to_dense(diagonal)))
    )


def test_missing_is_nan_or_masked_or_infinitely_noisy():
    emissions = EMISSIONS.at[1, 0].set(jnp.nan)
    mask = jnp.ones(5, bool).at[2].set(False)
    noise = Diagonal(jnp.ones((5, 2)).at[3, 1].set(jnp.inf))
    model = MODEL._replace(emission_covariance=noise)
    observed = np.asarray(pose(model, emissions, None, mask).observed)
    expected = np.ones((5, 2), bool)
    expected[1, 0] = expected[2] = expected[3, 1] = False
    assert np.array_equal(observed, expected)


BAD = {
    "dynamics_weights": jnp.array([[1.0, jnp.nan], [0.0, 1.0]]),
    "dynamics_bias": jnp.array([0.0, jnp.nan]),
    "initial_mean": jnp.array([jnp.nan, 0.0]),
    "emission_covariance": jnp.array([[1.0, 0.0], [0.0, jnp.nan]]),
}


@pytest.mark.parametrize("name", BAD)
def test_nan_in_a_model_is_named_and_not_swallowed(name):
    eye, y = jnp.eye(2), jnp.ones((4, 2))
    model = elk.LGSSM(jnp.zeros(2), eye, eye, eye, eye, eye)
    wrong = model._replace(**{name: BAD[name]})
    with pytest.raises(ValueError, match=f"{name} is NaN at"):
        elk.lgssm_filter(wrong, y)
    filtered = jax.jit(elk.lgssm_filter, static_argnames="form")
    for form in ("covariance", "square_root"):
        found = filtered(wrong, y, form=form)
        assert np.isnan(found.log_likelihood)
        assert np.isnan(found.filtered_means).any()


def test_what_is_no_covariance_is_said():
    eye, y = jnp.eye(2), jnp.ones((4, 2))
    model = elk.LGSSM(jnp.zeros(2), eye, eye, eye, eye, eye)
    factor = jnp.array([[1.0, 0.0], [3.0, 1.0]])
    for name, matrix, message in (
        ("dynamics_covariance", factor, r"not symmetric: its entry \(0, 1\) differs"),
        ("emission_covariance", -eye, "a negative variance, -1, at"),
        ("initial_covariance", eye.at[0, 1].set(2).at[1, 0].set(2), "eigenvalue -1"),
        ("emission_covariance", elk.ScaledIdentity(-2.0), "negative variance, -2"),
        ("dynamics_covariance", jnp.stack([eye, eye, -eye, eye]), r"\(2, 0\)"),
    ):
        with pytest.raises(ValueError, match=f"{name} .*{message}"):
            elk.lgssm_smoother(model._replace(**{name: matrix}), y)
    # Singular ones, and those that rounding alone made asymmetric, are covariances.
    nearly = jnp.array([[1.0, 1.0], [1.0 + 1e-6, 1.0]])
    close = model._replace(dynamics_covariance=nearly)
    assert np.isfinite(elk.lgssm_log_likelihood(close, y))


def test_nan_among_inputs_and_their_weights_is_named():
    eye, y, u = jnp.eye(2), jnp.ones((4, 2)), jnp.ones((4, 1))
    model = elk.LGSSM(jnp.zeros(2), eye, eye, eye, eye, eye)
    weights = jnp.ones((2, 1))
    for name in ("dynamics_input_weights", "emission_input_weights"):
        wrong = model._replace(**{name: weights.at[1, 0].set(jnp.nan)})
        with pytest.raises(ValueError, match=rf"{name} is NaN at \(1, 0\)"):
            elk.lgssm_filter(wrong, y, u)
    driven = model._replace(dynamics_input_weights=weights)
    with pytest.raises(ValueError, match=r"inputs is NaN at \(2, 0\)"):
        elk.lgssm_filter(driven, y, u.at[2].set(jnp.nan))
    # What would drive the dynamics into the first step drives nothing.
    found = elk.lgssm_filter(driven, y, u.at[0].set(jnp.nan))
    assert np.isfinite(found.filtered_means).all()
