r"""Random nonlinear models: what `smooth` calls converged is a mode.

    z_0 ~ N(m, P),  z_t = A phi_k(z_{t-1}) + b + a z_{t-1} + N(0, Q)
    y_t = C psi_j(z_t) + N(0, R),  or Poisson(exp(c z_t)), Student, Bernoulli counts

with the functions by number and all parameters as data, so that a few programs serve
all. The truth is the log posterior written out here and differentiated densely: at
states called converged its Newton decrement is rounding, its Hessian is negative
definite, SciPy started there finds nothing higher, and it is what `log_prob` and
`Smoothed.log_posterior` say. Whatever the status, states are finite where the model is.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax.scipy.special import gammaln
from jax.scipy.stats import t
from scipy.optimize import minimize

import elk_ssm as elk
from benchmarks.fuzz_recurrences import Verdict

T, D, E = 6, 2, 2
PHI = ("linear", "sine", "tanh", "growth", "well", "softplus")
PSI = ("linear", "square", "sine", "exponential", "range")
DENSITIES = ("Poisson", "Student", "Bernoulli")
KINDS = ("gaussian", "density")
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"noise": None, "guess": "extended"},
    {"linearization": "unscented"},
)


class Case(NamedTuple):
    """A model by its choices and the seed of its numbers; `way` is one of `WAYS`."""

    kind: str
    way: int
    phi: str
    psi: str
    size: float
    noise: float
    gap: bool
    outlier: float
    seed: int


@st.composite
def cases(draw: Any, few: bool = False) -> Case:
    """Draw a case; ways to iterate for Gaussian ones. With `few`, of two programs."""
    kind = draw(st.sampled_from(KINDS))
    way = draw(st.integers(0, len(WAYS) - 1)) if kind == "gaussian" else 0
    way = 0 if few else way
    return Case(
        kind,
        way,
        draw(st.sampled_from(PHI)),
        draw(st.sampled_from(PSI if kind == "gaussian" else DENSITIES)),
        draw(st.sampled_from((0.5, 0.9, 1.5))),
        draw(st.sampled_from((1.0, 0.1, 0.01))),
        draw(st.booleans()),
        draw(st.sampled_from((0.0, 5.0, 1e4))),
        draw(st.integers(0, 2**31 - 1)),
    )


def _phi(k: Any, z: Any) -> Any:
    parts = z, jnp.sin(z), jnp.tanh(z), 5 * z / (1 + z**2), z - 0.3 * z**3
    return jax.lax.select_n(k, *parts, jax.nn.softplus(z))


def _psi(j: Any, z: Any) -> Any:
    parts = z, z**2, jnp.sin(z), jnp.exp(jnp.minimum(z, 5)), jnp.sqrt(0.1 + z**2)
    return jax.lax.select_n(j, *parts)


def _log_density(j: Any, h: Any, y: Any) -> Any:
    parts = (
        y * h - jnp.exp(h) - gammaln(y + 1),
        t.logpdf(y, 3.0, loc=h, scale=0.5),
        jnp.minimum(y, 1) * h - jax.nn.softplus(h),
    )
    return jnp.sum(jnp.select([j == i for i in range(3)], parts))


class Numbers(NamedTuple):
    """All that a model consists of, as data."""

    m: Any
    P: Any
    A: Any
    b: Any
    Q: Any
    C: Any
    R: Any
    k: Any
    j: Any


def step(p: Numbers, z: Any) -> Any:
    """F without noise."""
    return p.A @ _phi(p.k, z) + p.b


def numbers(case: Case) -> tuple[Numbers, np.ndarray]:
    """Draw the model, and emissions that it could make but for an outlier."""
    rng = np.random.default_rng(case.seed)

    def covariance(scale: float) -> np.ndarray:
        root = rng.normal(size=(D, D))
        return scale * (root @ root.T + 0.3 * np.eye(D))

    A = rng.normal(size=(D, D))
    A *= case.size / np.abs(np.linalg.eigvals(A)).max()
    kinds = PSI if case.kind == "gaussian" else DENSITIES
    p = Numbers(
        rng.normal(size=D), covariance(1.0), A, 0.3 * rng.normal(size=D),
        covariance(case.noise), rng.normal(size=(E, D)), covariance(0.3),
        np.int32(PHI.index(case.phi)), np.int32(kinds.index(case.psi)),
    )  # fmt: skip
    z, y = rng.multivariate_normal(p.m, p.P), []
    for time in range(T):
        if time:
            z = np.asarray(step(p, z)) + rng.multivariate_normal(np.zeros(D), p.Q)
            z = np.clip(z, -20, 20)
        if case.kind == "gaussian":
            h = p.C @ np.asarray(_psi(p.j, z))
            y.append(h + rng.multivariate_normal(np.zeros(E), p.R))
        else:
            rate = np.exp(np.minimum(p.C @ z, 5))
            drawn = rng.poisson(rate), p.C @ z + 0.5 * rng.standard_t(3, E)
            y.append([*drawn, rng.poisson(rate / 3)][int(p.j)])
    y = np.asarray(y, float)
    y[-1, 0] += case.outlier
    if case.gap:
        y[rng.integers(T)] = np.nan
    return p, y


def model_of(p: Numbers, kind: str) -> elk.NonlinearSSM:
    """The model whose functions close over its numbers."""
    first = p.m, p.P, lambda z, u: step(p, z), p.Q
    if kind == "gaussian":
        return elk.NonlinearSSM(*first, lambda z, u: p.C @ _psi(p.j, z), p.R)
    return elk.NonlinearSSM(
        *first, lambda z, u: p.C @ z, None, lambda h, y, u: _log_density(p.j, h, y)
    )


def _log_normal(x: Any, S: Any) -> Any:
    """Log N(x; 0, S) in two dimensions, `(n, 2)` to `(n,)`."""
    det = S[0, 0] * S[1, 1] - S[0, 1] * S[1, 0]
    square = S[1, 1] * x[:, 0] ** 2 + S[0, 0] * x[:, 1] ** 2
    square -= (S[0, 1] + S[1, 0]) * x[:, 0] * x[:, 1]
    return -square / det / 2 - jnp.log(2 * jnp.pi) - jnp.log(det) / 2


def _log_joint(p: Numbers, y: Any, kind: str, flat: Any) -> Any:
    """Log p(z, y), written out; emissions are there or missing as a whole step."""
    z = flat.reshape(-1, D)
    there = ~jnp.isnan(y).any(axis=1)
    y = jnp.where(there[:, None], y, 0)
    moved = jax.vmap(partial(step, p))(z[:-1])
    total = jnp.sum(_log_normal(z[:1] - p.m, p.P))
    total += jnp.sum(_log_normal(z[1:] - moved, p.Q))
    if kind == "gaussian":
        term = _log_normal(y - _psi(p.j, z) @ p.C.T, p.R)
    else:
        term = jax.vmap(partial(_log_density, p.j))(z @ p.C.T, y)
    return total + jnp.sum(jnp.where(there, term, 0))


@partial(jax.jit, static_argnames="kind")
def _dense(p: Numbers, y: Any, kind: str, flat: Any) -> tuple:
    merit = partial(_log_joint, p, y, kind)
    return merit(flat), jax.grad(merit)(flat), jax.hessian(merit)(flat)


@cache
def _smoother(kind: str, way: int) -> Any:
    @jax.jit
    def run(p: Numbers, y: Any) -> Any:
        model = model_of(p, kind)
        found = elk.smooth(model, y, **WAYS[way])
        return found, elk.log_prob(model, found.means, y)

    return run


SCRIPT = """\
# python - < this, in the root of the repository
import os
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
from benchmarks import fuzz_nonlinear
case = fuzz_nonlinear.{case}
print(fuzz_nonlinear.check(case).failures)
"""


def check(case: Case) -> Verdict:
    """Smooth a model and hold it against dense derivatives and SciPy."""
    p, y = numbers(case)
    with jax.enable_x64(True):
        arrays = jax.tree.map(jnp.asarray, p)
        found, value = _smoother(case.kind, case.way)(arrays, y)
        ended = elk.Status(int(found.status)).name
        flat = np.asarray(found.means).ravel()
        if not np.isfinite(flat).all():
            failures = [f"finite states: {ended} with states {flat}"]
            return Verdict(np.inf, failures, ended, SCRIPT.format(case=case))
        dense = partial(_dense, arrays, y, case.kind)
        ratio, failures = 0.0, []
        if ended == "converged":
            ratio, failures = _judge(dense, flat, found, float(value))
    return Verdict(ratio, failures, ended, SCRIPT.format(case=case) if failures else "")


def _judge(dense: Any, flat: Any, found: Any, value: float) -> tuple[float, list[str]]:
    """Return the largest quantity over its bound, and the claims that fell."""
    own, gradient, hessian = map(np.asarray, dense(flat))
    size = max(abs(float(own)), 1.0)
    scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(hessian)), 1e-300))
    values, vectors = np.linalg.eigh(scale[:, None] * hessian * scale)
    along = vectors.T @ (scale * gradient)
    decrement = np.sum(along**2 / np.maximum(np.abs(values), 1e-15))
    rounding = np.sum((16 * 2.2e-16 * flat / scale) ** 2)
    best = minimize(
        lambda x: -float(dense(x)[0]),
        flat,
        jac=lambda x: -np.asarray(dense(x)[1]),
        method="L-BFGS-B",
        options={"maxiter": 50},
    )
    # Its line search may leave the range of numbers.
    rise = -best.fun - own if np.isfinite(best.fun) else 0.0
    off = max(abs(value - own), abs(float(found.log_posterior) - own))
    covariances = np.asarray(found.covariances)
    lowest = (
        np.linalg.eigvalsh(covariances).min() if np.isfinite(covariances).all() else -1
    )
    claims = {
        "gradient": decrement / (1e-9 + rounding),
        "curvature": float(values[-1]) / 1e-9,
        "SciPy finds a higher one": rise / (1e-8 * size),
        "log posterior": off / (1e-9 * size),
        "covariances": 0.0 if lowest > 0 else np.inf,
    }
    fell = [f"{name}: {x:.3g} of its bound" for name, x in claims.items() if not x <= 1]
    return max(0.0, *map(float, claims.values())), fell
