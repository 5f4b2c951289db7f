"""Coefficients on inputs of any size, against generalised least squares."""

import jax.numpy as jnp
import numpy as np
import pytest

import elk_ssm as elk

STEPS = 40
LEVEL, NOISE = 1.0, 0.7


def series():
    rng = np.random.default_rng(0)
    y = np.cumsum(rng.normal(size=STEPS)) + rng.normal(size=STEPS)
    return y, rng.normal(size=(STEPS, 2))


def least_squares(y, inputs):
    """The diffuse log likelihood, and the coefficients."""
    steps = np.arange(STEPS)
    V = LEVEL * np.minimum.outer(steps, steps) + NOISE * np.eye(STEPS)
    Z = np.column_stack([np.ones(STEPS), inputs])
    A = Z.T @ np.linalg.solve(V, Z)
    b = np.linalg.solve(A, Z.T @ np.linalg.solve(V, y))
    away = y - Z @ b
    squares = away @ np.linalg.solve(V, away)
    logs = np.linalg.slogdet(V)[1] + np.linalg.slogdet(A)[1]
    return -0.5 * (STEPS * np.log(2 * np.pi) + logs + squares), b[1:]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("x64")
def test_the_units_of_inputs_do_not_matter(dtype):
    y, inputs = series()
    model = elk.models.local_level() + elk.models.regression(2)
    model = model.replace(**{"level.variance": LEVEL, "noise.variance": NOISE})
    model, y_of = model.astype(dtype), jnp.asarray(y, dtype)
    expected, coefficients = least_squares(y, inputs)
    tol = {"float32": 3e-4, "float64": 1e-9}[dtype]
    for units in ((1.0, 1.0), (1e4, 1e-4), (1e8, 1e8), (1e8, 1e-8)):
        scaled = jnp.asarray(inputs * units, dtype)
        found = model.log_likelihood(y_of, scaled) + np.log(units).sum()
        np.testing.assert_allclose(found, expected, rtol=tol)
        smoothed = elk.lgssm_smoother(model.lgssm(scaled), y_of[:, None])
        ours = smoothed.smoothed_means[-1, 1:] * np.array(units)
        np.testing.assert_allclose(ours, coefficients, atol=10 * tol)


def test_inputs_that_no_data_tell_apart_are_refused():
    y, inputs = series()
    gap = y.copy()
    gap[:5] = np.nan
    model = elk.models.local_level() + elk.models.regression(2)
    one = inputs[:, :1]
    early = np.where(np.arange(STEPS)[:, None] < 5, one, 2 * one)
    for y_of, columns in (
        (y, np.hstack([one, 1e8 * one])),
        (y, np.hstack([one, np.full((STEPS, 1), 2.0)])),
        (gap, np.hstack([one, early])),
    ):
        with pytest.raises(ValueError, match="column 1 of the inputs is a sum of the"):
            elk.fit(model, y_of, columns)
    # With a wide prior there is an answer.
    counts = model.with_emission("student_t").fix(
        *model.with_emission("student_t").free
    )
    counts = counts.release("emission.scale")
    fitted = elk.fit(counts, y, np.hstack([one, one]), standard_errors=False)
    assert np.isfinite(fitted.log_likelihood)
