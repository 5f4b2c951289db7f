r"""Whether standardised innovations look like independent standard normal numbers.

    serial correlation   Q_k = n (n + 2) sum_{j<=k} r_j^2 / n_j            ~ chi2(k)
                         n_j pairs j steps apart, n - j if all are (Ljung and Box, 1978)
    normality            J = n / 6 (skewness^2 + (kurtosis - 3)^2 / 4)     ~ chi2(2)
                         (Jarque and Bera, 1980)
    heteroskedasticity   H = squares in the last third / in the first      ~ F(h, h')
                         two-sided (Harvey, 1989, section 5.4.2)

As statsmodels has them, which leaves the first to NaN where values are missing.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.special import betainc, gammaincc

from elk_ssm._showing import number, show
from elk_ssm._types import Array
from elk_ssm.fitted.series import marked


class Tested(NamedTuple):
    """A statistic, and how probable one as extreme is if the model is right.

    Attributes:
        statistic: `()`, `(E,)` of several emissions; with an axis of lags in front for
            serial correlation.
        p_value: In the same shape.
    """

    statistic: Array
    p_value: Array


class Diagnostics(NamedTuple):
    """Tests of standardised innovations, each a `statistic` and a `p_value`.

    Attributes:
        serial_correlation: Ljung and Box's, of all lags up to one, `(lags,)`.
        normality: Jarque and Bera's.
        heteroskedasticity: Squares in the last third over those in the first.
        skewness: Of the innovations, `()` or `(E,)`.
        kurtosis: Theirs, 3 for normal ones.
        autocorrelations: Theirs at lags 1 and on, `(lags,)` or `(lags, E)`.
        num_observed: How many there are, `()` or `(E,)`.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> y = jnp.sin(jnp.arange(60.0) ** 2)
        >>> found = elk.diagnostics(elk.Observed(elk.models.local_level(), y), lags=5)
        >>> found.autocorrelations.shape, bool(found.normality.p_value <= 1)
        ((5,), True)
    """

    serial_correlation: Tested
    normality: Tested
    heteroskedasticity: Tested
    skewness: Array
    kurtosis: Array
    autocorrelations: Array
    num_observed: Array

    def __repr__(self) -> str:
        tests = {
            name: f"p {number(getattr(test, 'p_value', test))}"
            for name, test in zip(self._fields[:3], self, strict=False)
        }
        shape = {"skewness": number(self.skewness), "kurtosis": number(self.kurtosis)}
        return show("Diagnostics", **tests, **shape)


def examine(standardised: Array, lags: int | None = None) -> Diagnostics:
    """Test standardised innovations.

    Args:
        standardised: `(T,)` or `(T, E)`, NaN where there is none.
        lags: Longest lag; by default 10, or a fifth of the steps where these are few.

    Raises:
        ValueError: There are not so many lags.
    """
    length = standardised.shape[0]
    longest = min(10, max(length // 5, 1)) if lags is None else lags
    if not 0 < longest < length:
        raise ValueError(
            f"lags must be from 1 to {length - 1} for {length} steps; got {lags}."
        )
    seen = ~jnp.isnan(standardised)
    count = jnp.sum(seen, axis=0)
    mean = jnp.sum(jnp.where(seen, standardised, 0), axis=0) / jnp.maximum(count, 1)
    centred = jnp.where(seen, standardised - mean, 0)
    second, third, fourth = (
        jnp.sum(centred**k, axis=0) / jnp.maximum(count, 1) for k in (2, 3, 4)
    )
    skewness, kurtosis = third / second**1.5, fourth / second**2
    bera = count / 6 * (skewness**2 + (kurtosis - 3) ** 2 / 4)
    normality = Tested(bera, _chi2_above(bera, 2))
    correlations, serial = _ljung_box(centred, seen, second * count, longest)
    return Diagnostics(
        serial,
        normality,
        _break(standardised, seen),
        skewness,
        kurtosis,
        correlations,
        count,
    )


def _ljung_box(
    centred: Array, seen: Array, total: Array, longest: int
) -> tuple[Array, Tested]:
    """Return autocorrelations at lags 1 and on, and the tests of all up to each."""
    count = jnp.sum(seen, axis=0)
    products, pairs = [], []
    for lag in range(1, longest + 1):
        products.append(jnp.sum(centred[lag:] * centred[:-lag], axis=0))
        pairs.append(jnp.sum(seen[lag:] & seen[:-lag], axis=0))
    correlations, pairs_of = jnp.stack(products) / total, jnp.stack(pairs)
    terms = jnp.where(pairs_of > 0, correlations**2 / jnp.maximum(pairs_of, 1), 0)
    statistic = count * (count + 2) * jnp.cumsum(terms, axis=0)
    freedom = jnp.arange(1, longest + 1).reshape(-1, *[1] * (centred.ndim - 1))
    return correlations, Tested(statistic, _chi2_above(statistic, freedom))


def _break(standardised: Array, seen: Array) -> Tested:
    """Return the test of squares in the last third of the steps over the first."""
    length = standardised.shape[0]
    # The steps before every diffuse dimension is settled belong to no third.
    begin = jnp.argmax(seen, axis=0)
    third = jnp.round((length - begin) / 3).astype(int)
    steps = jnp.arange(length).reshape(-1, *[1] * (standardised.ndim - 1))
    last, first = steps >= length - third, (steps >= begin) & (steps < begin + third)
    squares = jnp.where(seen, standardised, 0) ** 2

    def over(part: Array) -> tuple[Array, Array]:
        return jnp.sum(squares * part, axis=0), jnp.sum(seen & part, axis=0)

    (above, n), (below, m) = over(last), over(first)
    enough = (n > 1) & (m > 1)
    ratio = above / jnp.where(below > 0, below, 1)
    n, m = n.astype(ratio.dtype), m.astype(ratio.dtype)
    # Of means, m / n times that of sums, F is the ratio; gaps make n differ from m.
    lower = betainc(n / 2, m / 2, ratio / (ratio + 1))
    upper = betainc(m / 2, n / 2, 1 / (ratio + 1))
    p_value = 2 * jnp.minimum(lower, upper)
    return Tested(marked(ratio, enough), marked(p_value, enough))


def _chi2_above(statistic: Array, freedom: Array | int) -> Array:
    half = jnp.asarray(freedom, statistic.dtype) / 2
    return gammaincc(half, statistic / 2)
