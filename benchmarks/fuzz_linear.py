r"""Random linear-Gaussian models under every way to smooth them, against dense NumPy.

Three families: proper models, whose truth is one Gaussian over all steps in float64;
singular ones with exact or no emissions (`tests/kalman/oracle_edge.py`, long double);
and diffuse ones, whose truth is generalised least squares: with delta the dimensions
without a prior, y ~ N(a + X delta, S), W = S^-1, M = X' W X,

    delta | y ~ N(M^-1 X' W (y - a), M^-1)
    2 log L = -n log 2 pi - log|S| - log|M| - e' (W - W X M^-1 X' W) e,   e = y - a

The bound of an error is what the truth moves by when every number of the model is
struck by 30 roundings, those of a matrix by its largest entry (of covariances, a root,
whose rank stays), and some hundred roundings of the largest entry. A recursion of
covariances may lose, as it says, what lies that far below the variance of an emission
that its noise is (`lost`); with exact emissions, half of the digits.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from tests.kalman import oracle_edge

import elk_ssm as elk
from benchmarks.fuzz_recurrences import Verdict

T, D, E = 9, 3, 5
WAYS = (
    ("covariance", "sequential"),
    ("covariance", "associative"),
    ("square_root", "sequential"),
    ("square_root", "associative"),
)
FAMILIES = ("proper", "singular", "diffuse")
DYNAMICS = ("stable", "unstable", "rotation", "nilpotent", "rank one")
NOISES = ("full", "rank one", "none", "mixed scales")
EMISSIONS = ("full", "mixed scales", "nearly exact")
_TOO_MUCH = 1e-3  # the square root is taken by itself from 1e-4 on
GAPS = ("none", "some", "long", "first", "all")


class Case(NamedTuple):
    """A model by its choices and the seed of its numbers.

    `rows` of the E emissions are ever seen, so that one program serves E < D and E > D.
    """

    family: str
    way: tuple[str, str]
    dtype: str
    rows: int
    dynamics: str
    noise: str
    emission: str
    gaps: str
    prior: int
    open_dims: tuple[bool, ...]
    seed: int


@st.composite
def cases(draw: Any, few: bool = False) -> Case:
    """Draw a case; what is singular or diffuse only where its form is made for it.

    With `few`, three programs serve all: step by step, in double precision.
    """
    family = draw(st.sampled_from(FAMILIES))
    ways = {"singular": WAYS[:2], "diffuse": WAYS[2:]}.get(family, WAYS)
    ways = ways[::2] if few else ways
    dtypes = ("float64",) if few or family == "singular" else ("float64", "float32")
    noises = NOISES if family == "singular" else (NOISES[0], NOISES[1], NOISES[3])
    kinds = (*EMISSIONS, "exact", "rank one") if family == "singular" else EMISSIONS
    return Case(
        family,
        draw(st.sampled_from(ways)),
        draw(st.sampled_from(dtypes)),
        draw(st.integers(1, E)),
        draw(st.sampled_from(DYNAMICS)),
        draw(st.sampled_from(noises)),
        draw(st.sampled_from(kinds)),
        draw(st.sampled_from(GAPS[:4] if family == "diffuse" else GAPS)),
        draw(st.integers(-4, 4)),
        draw(st.tuples(*[st.booleans()] * (D - 1), st.just(True))),
        draw(st.integers(0, 2**31 - 1)),
    )


class Numbers(NamedTuple):
    """m, a root of P, F, a root of Q, H, a root of R, and the emissions."""

    m: np.ndarray
    p: np.ndarray
    F: np.ndarray
    q: np.ndarray
    H: np.ndarray
    r: np.ndarray
    y: np.ndarray


def _root(rng: Any, kind: str, size: int) -> np.ndarray:
    """Its entries are eighths, so that squares of them are exact."""
    root = rng.integers(1, 9, (size, size)) * rng.choice([-1, 1], (size, size)) / 8
    root += np.diag(np.sign(np.diag(root)))
    columns = {"rank one": 1, "none": 0, "exact": 0}.get(kind, size)
    root = np.where(np.arange(size) < columns, root, 0)
    if kind == "mixed scales":
        root = 2.0 ** rng.integers(-8, 9, size)[:, None] * root
    return 2.0**-10 * root if kind == "nearly exact" else root


def _dynamics(rng: Any, kind: str) -> np.ndarray:
    left, right = (np.linalg.qr(rng.normal(size=(D, D)))[0] for _ in range(2))
    if kind == "nilpotent":
        return np.diag(rng.normal(size=D - 1), 1)
    if kind == "rank one":
        return 0.9 * np.outer(left[0], right[0])
    scale = {"stable": 0.9, "unstable": 1.3, "rotation": 1.0}[kind]
    spread = np.ones(D) if kind == "rotation" else np.linspace(0.5, 1.0, D)
    return scale * left @ np.diag(spread) @ right


def numbers(case: Case) -> Numbers:
    """Draw the model, and emissions that it could make."""
    rng = np.random.default_rng(case.seed)
    F = _dynamics(rng, case.dynamics)
    p = 2.0**case.prior * _root(rng, "full", D)
    q, r = _root(rng, case.noise, D), _root(rng, case.emission, E)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (E, D))
    H = left[:, :D] @ np.diag(np.linspace(1, 2, D)) @ right
    m = rng.normal(size=D)
    x, y = m + p @ rng.normal(size=D), []
    for t in range(T):
        x = F @ x + q @ rng.normal(size=D) if t else x
        y.append(H @ x + r @ rng.normal(size=E))
    y = np.array(y)
    y[:, case.rows :] = np.nan
    if case.gaps == "some":
        y[rng.random(y.shape) < 0.4] = np.nan
    spans = {"long": slice(2, T - 1), "first": slice(0, 3), "all": slice(0, T)}
    y[spans.get(case.gaps, slice(0, 0))] = np.nan
    return Numbers(*(np.asarray(x, case.dtype) for x in (m, p, F, q, H, r, y)))


def squared(given: Numbers) -> tuple:
    """The arguments of the oracles: m, P, F, Q, H, R, y in double precision."""
    m, p, F, q, H, r, y = (np.asarray(x, float) for x in given)
    return m, p @ p.T, F, q @ q.T, H, r @ r.T, y


def joint(m: Any, P: Any, F: Any, Q: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean `(T D)` and covariance of all states, and what z_0 does to them."""
    powers = [np.eye(D)]
    for _ in range(T - 1):
        powers.append(F @ powers[-1])
    first = np.concatenate(powers)
    noise = np.zeros((T * D, T * D))
    for s in range(1, T):
        column = np.concatenate([np.zeros((s * D, D)), *powers[: T - s]])
        noise += column @ Q @ column.T
    return first @ m, first @ P @ first.T + noise, first


def conditioned(model: tuple, open_dims: Any = None) -> tuple:
    """Smoothed means and covariances, log likelihood; None where delta stays open."""
    m, P, F, Q, H, R, y = model
    if open_dims is not None:
        keep = ~np.asarray(open_dims)
        m, P = m * keep, P * np.outer(keep, keep)
    mean, cov, first = joint(m, P, F, Q)
    seen = ~np.isnan(y.ravel())
    big = np.kron(np.eye(T), H)[seen]
    S = big @ cov @ big.T + np.kron(np.eye(T), R)[np.ix_(seen, seen)]
    error = y.ravel()[seen] - big @ mean
    W = np.linalg.inv(S) if seen.any() else S
    twice = -np.linalg.slogdet(S)[1] - seen.sum() * np.log(2 * np.pi)
    gain = cov @ big.T @ W
    means, covs = mean + gain @ error, cov - gain @ big @ cov
    if open_dims is not None:
        columns = first[:, np.asarray(open_dims)]
        X = big @ columns
        M = X.T @ W @ X
        if np.linalg.cond(M) > 1e8:
            return None, None, None
        spread = np.linalg.inv(M)
        delta = spread @ X.T @ W @ error
        left = columns - gain @ X
        means, covs = means + left @ delta, covs + left @ spread @ left.T
        twice -= np.linalg.slogdet(M)[1]
        error = error - X @ delta
    covs = covs.reshape(T, D, T, D)[np.arange(T), :, np.arange(T)]
    return means.reshape(T, D), covs, (twice - error @ W @ error) / 2


def truth(case: Case, given: Numbers) -> tuple:
    """Smoothed means and covariances, log likelihood; None where rounding decides."""
    model = squared(given)
    if case.family != "singular":
        return conditioned(model, case.open_dims if case.family == "diffuse" else None)
    *_, means, covs, evidence, margin = oracle_edge.smooth(*model)
    return (means, covs, evidence) if margin > 1e-6 else (None, None, None)


def _struck(given: Numbers, size: float, rng: Any) -> Numbers:
    """Move matrices by a part of their largest entry, other numbers of themselves."""
    moved = []
    for x in map(np.float64, given):
        change = size * rng.normal(size=x.shape)
        matrix = x.shape[-1] == len(x) or x.shape == given.H.shape
        # A root keeps its rank.
        there = (x != 0).any(axis=0)
        moved.append(x + change * (np.abs(x).max() * there if matrix else x))
    return Numbers(*moved)


def lost(case: Case, model: tuple, eps: float) -> float:
    """Return what share of the digits a recursion of covariances is free to lose."""
    if case.way[0] != "covariance":
        return 0.0
    m, P, F, Q, H, R, _ = model
    if case.emission in ("exact", "rank one"):
        return 1e-7
    largest = np.diag(joint(m, P, F, Q)[1]).max() * np.max(H**2)
    return eps * largest / np.linalg.eigvalsh(R).min()


@partial(jax.jit, static_argnames=("form", "backend", "diffuse"))
def run(arrays: Any, dims: Any, form: Any, backend: Any, diffuse: bool) -> tuple:
    m, P, F, Q, H, R, y = arrays
    first = elk.Diffuse(dims, P) if diffuse else P
    model = elk.LGSSM(m, first, F, Q, H, R)
    found = elk.lgssm_smoother(model, y, form=form, backend=backend)
    covs = found.smoothed_covariances.matrix
    return found.smoothed_means, covs, found.log_likelihood


SCRIPT = """\
# python - < this, in the root of the repository
from benchmarks import fuzz_linear
case = fuzz_linear.{case}
print(fuzz_linear.check(case).failures)
"""


def check(case: Case) -> Verdict:
    """Smooth a model and hold it against the truth."""
    given, rng = numbers(case), np.random.default_rng([case.seed, 3])
    eps = float(np.finfo(case.dtype).eps)
    right = truth(case, given)
    if right[0] is None:
        return Verdict(0.0, [], "undecided", "")
    share = lost(case, squared(given), eps)
    if share > _TOO_MUCH:
        return Verdict(0.0, [], "not for covariances", "")
    moves = []
    for _ in range(4):
        moves.append(truth(case, _struck(given, 30 * eps, rng)))
    with jax.enable_x64(case.dtype == "float64"):
        arrays = tuple(jnp.asarray(x, case.dtype) for x in squared(given))
        dims = jnp.asarray(case.open_dims)
        found = run(arrays, dims, *case.way, case.family == "diffuse")
    ratio, failures = 0.0, []
    names = ("means", "covariances", "log likelihood")
    for place, (name, a, b) in enumerate(zip(names, found, right)):
        a, b = np.asarray(a, float), np.asarray(b, float)
        others = [np.asarray(m[place], float) for m in moves if m[0] is not None]
        apart = max((np.abs(o - b).max() for o in others), default=0.0)
        bound = 10 * apart + (200 * eps + 10 * share) * max(np.abs(b).max(), 1)
        error = np.abs(a - b).max()
        here = float(error / bound) if np.isfinite(error) else np.inf
        ratio = max(ratio, here)
        if here > 1:
            failures.append(f"{name}: off by {error:.3g}, allowed {bound:.3g}")
    text = SCRIPT.format(case=case) if failures else ""
    return Verdict(ratio, failures, case.family, text)
