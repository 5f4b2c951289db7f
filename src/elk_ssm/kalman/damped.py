r"""Filter and smoother of the damped affine recurrence, in increments.

    d_t | d_{t-1} ~ N(A_t d_{t-1} + b_t, I),      t = 1, ..., T,   d_0 = 0 known
    0   | d_t     ~ N(d_t, diag(s_t^2))

This is the linear-Gaussian surrogate of a nonlinear recurrence, written for the
difference between its state and the point of linearisation: the pseudo-observation of
"stay where you are" is then zero, and so is the answer once the iteration has
converged, which is what lets float32 reach its rounding floor. The process variance is
one; a common factor q on both variances scales the covariances by q and leaves the
means alone. `s_t^2 = inf` is a missing observation.

Covariances are propagated in covariance form: information and block-tridiagonal forms
lose all accuracy in float32 once s^2 exceeds about 1e6. Observations are diagonal, so
the update conditions on one dimension after another and needs no factorisation. The
smoother is Rauch-Tung-Striebel with the covariance in Joseph form,

    G_t = P_t A_{t+1}^T (A_{t+1} P_t A_{t+1}^T + I)^{-1}
    P_t^s = (I - G_t A_{t+1}) P_t (I - G_t A_{t+1})^T + G_t (I + P_{t+1}^s) G_t^T,

a sum of positive semi-definite terms. The elements follow Saerkkae and
Garcia-Fernandez (2021), equations 10 to 20; their runs of steps know the transition
into the state *before* each step, so that no shard asks another one for a row.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from elk_ssm.kalman.backward import Backward, Marginals
from elk_ssm.kalman.elements import (
    FilterElement,
    SmootherElement,
    combine_filter,
    enter_filter,
    known_filter,
    no_steps,
)
from elk_ssm.linalg.small import inverse_of
from elk_ssm.linalg.structure import Operator
from elk_ssm.parallel.backend import Backend
from elk_ssm.parallel.driver import run
from elk_ssm.parallel.recursion import Recursion
from elk_ssm.parallel.time_axis import LOCAL, TimeAxis


class Evidence(NamedTuple):
    """What the log-likelihood needs, for any common factor q on the variances.

    log p = -1/2 (observed log(2 pi q) + log_det + mahalanobis / q), all scalars.
    """

    mahalanobis: Array
    log_det: Array
    observed: Array


def damped_filter(
    operator: Operator,
    offsets: Array,
    noise: Array,
    *,
    backend: Backend,
    axis: TimeAxis = LOCAL,
) -> Marginals:
    """Filter: p(d_t | pseudo-observations up to t).

    Args:
        operator: A_1, ..., A_T of any structure, such as `Dense` of `(T, D, D)`.
        offsets: b_1, ..., b_T, shape `(T, D)`.
        noise: s_t^2, broadcastable to `(T, D)`, positive, `inf` where nothing is
            observed.
        backend: `"auto"`, `"sequential"` or `"associative"`.
        axis: Where time lives; T is then what this device holds.

    Returns:
        Filtered marginals in units of the process variance.
    """
    forward = _filter(operator, offsets, noise)
    return run(forward, backend=backend, axis=axis)


def damped_filter_means(
    operator: Operator,
    offsets: Array,
    noise: Array,
    *,
    backend: Backend,
    axis: TimeAxis = LOCAL,
) -> Array:
    """Return `damped_filter(...).means` without keeping any covariance."""
    forward = _filter(operator, offsets, noise, means_only=True)
    return run(forward, backend=backend, axis=axis)


def damped_smoother(
    operator: Operator,
    offsets: Array,
    noise: Array,
    *,
    backend: Backend,
    axis: TimeAxis = LOCAL,
) -> Marginals:
    """Smoother: p(d_t | all pseudo-observations); arguments as `damped_filter`."""
    forward = _filter(operator, offsets, noise)
    before = run(forward, backend=backend, axis=axis, before=True)
    end = jax.tree.map(lambda x: x[-1], (before, forward.entries))
    entries = before, operator, offsets
    backward = Backward(entries, forward.step(*end)[0], lambda entry: gain(*entry))
    return run(backward, backend=backend, axis=axis, reverse=True, before=True)


def damped_evidence(
    operator: Operator, offsets: Array, noise: Array, filtered: Marginals
) -> Evidence:
    """Evidence of the pseudo-observations, from the filtered marginals."""
    before = jax.tree.map(
        lambda x: jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]]), filtered
    )
    mean, covariance = predict(before, operator, offsets)
    noise = jnp.broadcast_to(noise, offsets.shape)
    _, _, innovation, total = covariance.observe(mean, noise)
    seen = jnp.isfinite(noise)
    finite = jnp.where(seen, total, 1)
    return Evidence(
        jnp.sum(jnp.where(seen, innovation**2 * inverse_of(finite), 0)),
        jnp.sum(jnp.log(finite)),
        jnp.sum(seen),
    )


# ------------------------------------------------------- one step; leading axes free


def predict(state: Marginals, operator: Operator, offset: Array) -> Marginals:
    """Return the marginal of A d + b + N(0, I)."""
    mean = operator.mv(state.means) + offset
    return Marginals(mean, operator.congruence(state.covariances).shift(1))


def gain(current: Marginals, operator: Operator, offset: Array) -> SmootherElement:
    """Return the transition d_t | d_{t+1} ~ N(G d_{t+1} + g, L)."""
    means, covariances = predict(current, operator, offset)
    G = covariances.solve(operator.mm(current.covariances))[0].T
    rest = G.mm(operator).scaled(-1).shift(1)
    spread = rest.congruence(current.covariances).add(G.mm(G.T).symmetrized())
    return SmootherElement(G, current.means - G.mv(means), spread)


# ------------------------------------------------------------------- the recursions


def _filter(
    operator: Operator, offsets: Array, noise: Array, means_only: bool = False
) -> "_Filter":
    """Noise that does not change over time is not an entry, which saves an array."""
    varies = noise.ndim == 2 and noise.shape[0] == offsets.shape[0] > 1
    constant = jnp.broadcast_to(noise if noise.ndim < 2 else noise[0], offsets.shape[1])
    start = jnp.zeros_like(offsets[0])
    initial = Marginals(start, operator.diag(start))
    entries = operator, offsets, noise if varies else None
    return _Filter(entries, initial, constant, means_only)


@dataclass(frozen=True)
class _Filter(Recursion[Marginals, FilterElement]):
    """The state is the marginal of d_t, and so is the output, or its mean."""

    entries: tuple[Operator, Array, Array | None]
    initial: Marginals
    constant: Array
    means_only: bool

    @property
    def fan_in(self) -> int:
        """As many as of products, if an element is a few numbers for each dimension."""
        operator = self.entries[0]
        return 0 if operator.mixes else operator.fan_in // 2

    def noise(self, entry: tuple) -> Array:
        offset, noise = entry[1:]
        return self.constant if noise is None else jnp.broadcast_to(noise, offset.shape)

    def step(self, state: Marginals, entry: tuple) -> tuple[Marginals, Any]:
        predicted = predict(state, *entry[:2])
        seen = predicted.covariances.observe(predicted.means, self.noise(entry))
        after = Marginals(seen.mean, seen.covariance)
        return after, self.outputs(state, entry, after)

    def element(self, entry: tuple) -> FilterElement:
        (A, b, _), noise = entry, self.noise(entry)
        inverse = inverse_of(1 + noise)
        keep = jnp.where(jnp.isinf(noise), 1, noise * inverse)
        eta, J = -A.T.mv(inverse * b), A.T.mm(A.scale_rows(inverse))
        return FilterElement(A.scale_rows(keep), keep * b, A.diag(keep), eta, J)

    def append(self, run: FilterElement, entry: tuple) -> FilterElement:
        """Predict, and condition one dimension after another: no solve."""
        A, b, _ = entry
        predicted = predict(Marginals(run.b, run.C), A, b)
        found = predicted.covariances.observe_run(
            A.mm(run.A), predicted.means, self.noise(entry)
        )
        new = FilterElement(*found)
        return new._replace(eta=run.eta + new.eta, J=run.J.add(new.J))

    def combine(self, earlier: FilterElement, later: FilterElement) -> FilterElement:
        return combine_filter(earlier, later)

    def known(self, state: Marginals) -> FilterElement:
        return known_filter(*state)

    def state(self, element: FilterElement) -> Marginals:
        return Marginals(element.b, element.C)

    def nothing(self) -> FilterElement:
        return no_steps(*self.initial)

    def act(self, run: FilterElement, state: Marginals) -> Marginals:
        return Marginals(*enter_filter(*state, run))

    def outputs(self, before: Marginals, entries: tuple, after: Marginals) -> Any:
        return after.means if self.means_only else after
