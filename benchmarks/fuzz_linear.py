r"""Random linear-Gaussian models under every way to smooth them, in a hundred digits.

Families: proper; singular, with exact or no emissions; diffuse. The truth is that of
`tests/kalman/oracle_edge.py` for the numbers as they are.

The bound of an error is what rounding does to the truth: how far it moves when the
model is moved by one rounding, times a thousand, which is about as many as a recursion
over these lengths makes, and so many roundings of the largest number that was held (of
a likelihood, of the sum of its terms' sizes). Moved are (`struck`)

    F, H, m, y      by eps of the largest entry
    P               by eps sqrt(P_ii P_jj) W, as elimination is; W a random PSD matrix
    R               by eps sqrt(R_ii R_jj) W, and by eps max(C) H W H'
    Q into step t   by eps max(C_t, C_{t-1}) W

with C_t the largest variance that step t predicts: a recursion that holds a covariance
as a matrix rounds it where it is largest, before an emission, between two scalars of
one, and after it. In the square root C is of the noise alone, as the first state is
kept apart. An emission with less noise than ten of these roundings of C is too delicate
for the form and precision, as is a bound of a tenth of the answer. Exact emissions
leave half of the digits, and are drawn in double precision. The quick smoother of
covariances conditions on a successor of process noise q and variance C and loses C / q
of the digits, at most half of them, from where the careful one takes over
(`kalman/delicate.py`).
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
EXACT = ("exact", "rank one")
# How many moves by one rounding, and roundings of the largest number: so many
# operations are in T D (E + D) multiplications and sums of D terms, there and back.
_ROUNDINGS = 1000
_DRAWS = 4, 40  # of one rounding; the second where an error is above its bound
_LOST = 0.1  # what share of the answer, or of an emission's noise, rounding may be
_HALF = 64  # times sqrt(eps) of the largest entry, what exact emissions leave
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
    ways = WAYS[2:] if family == "diffuse" else WAYS
    ways = ways[::2] if few else ways
    noises = (NOISES[0], NOISES[1], NOISES[3]) if family == "proper" else NOISES
    kinds = EMISSIONS if family == "proper" else (*EMISSIONS, *EXACT)
    kind = draw(st.sampled_from(kinds))
    double = few or family == "singular" or kind in EXACT
    return Case(
        family,
        draw(st.sampled_from(ways)),
        draw(st.sampled_from(("float64",) if double else ("float64", "float32"))),
        draw(st.integers(1, E)),
        draw(st.sampled_from(DYNAMICS)),
        draw(st.sampled_from(noises)),
        kind,
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


class Truth(NamedTuple):
    """Smoothed means and covariances, log likelihood; the filter's, and the margin."""

    means: np.ndarray
    covariances: np.ndarray
    log_likelihood: float
    filtered: np.ndarray
    margin: float

    @property
    def decided(self) -> bool:
        """Whether more than rounding is left where it matters, and nothing is open."""
        return self.margin > 1e-6 and self.covariances.max(initial=0) < 1e30


def truth(case: Case, model: tuple) -> Truth:
    """Return the posterior in a hundred digits, of numbers as they are."""
    open_dims = case.open_dims if case.family == "diffuse" else None
    filtered, *found, margin = oracle_edge.smooth(*model, open_dims)[1:]
    return Truth(*found, filtered, margin)


class Held(NamedTuple):
    """The largest variance that a form holds at every step, `(T,)`; what that loses.

    `lost` is the rounding of the largest one over the least noise of an emission.
    """

    largest: np.ndarray
    lost: float


def held(case: Case, model: tuple, right: Truth) -> Held:
    """Return what a form holds of a model."""
    m, P, F, Q, H, R, _ = model
    filtered = right.filtered
    if case.way[0] == "square_root":
        P = np.zeros_like(P)
        filtered = truth(case._replace(family="proper"), (m, P, *model[2:])).filtered
    predicted, ahead = [P, *(F @ cov @ F.T + Q for cov in filtered[:-1])], [P]
    for _ in range(1, T):
        ahead.append(F @ ahead[-1] @ F.T + Q)
    of, unseen = (np.array([np.diag(c).max() for c in x]) for x in (predicted, ahead))
    least = 1.0 if case.emission in EXACT else np.linalg.eigvalsh(R).min()
    lost = float(np.finfo(case.dtype).eps) * unseen.max() * np.max(H**2) / least
    return Held(np.maximum(of, np.roll(of, 1) * (np.arange(T) > 0)), lost)


def struck(case: Case, given: Numbers, sizes: np.ndarray, rng: Any) -> tuple:
    """Return the model moved by one rounding; beside exact rows ranks stay."""
    eps = float(np.finfo(case.dtype).eps)
    m, P, F, Q, H, R, y = squared(given)

    def moved(x: np.ndarray) -> np.ndarray:
        largest = np.nanmax(np.abs(x), initial=0)
        return x + eps * largest * rng.normal(size=x.shape)

    def spread(size: int) -> np.ndarray:
        root = rng.normal(size=(size, size))
        return root @ root.T / size

    def scaled(A: np.ndarray) -> np.ndarray:
        deviations = np.sqrt(np.diag(A))
        return A + eps * np.outer(deviations, deviations) * spread(len(A))

    def rooted(root: np.ndarray) -> np.ndarray:
        root = moved(np.asarray(root, float)) * (root != 0).any(axis=0)
        return root @ root.T

    if case.emission in EXACT:
        Q, R = np.broadcast_to(rooted(given.q), (T, D, D)), rooted(given.r)
    else:
        Q = np.array([Q + eps * size * spread(D) for size in sizes])
        R = scaled(R) + eps * sizes.max() * H @ spread(D) @ H.T
    return moved(m), scaled(P), moved(F), Q, moved(H), R, moved(y)


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
import os
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
from benchmarks import fuzz_linear
case = fuzz_linear.{case}
print(fuzz_linear.check(case).failures)
"""


def check(case: Case) -> Verdict:
    """Smooth a model and hold it against the truth."""
    given = numbers(case)
    model = squared(given)
    right = truth(case, model)
    if not right.decided:
        return Verdict(0.0, [], "undecided", "")
    holds = held(case, model, right)
    with jax.enable_x64(case.dtype == "float64"):
        arrays = tuple(jnp.asarray(x, case.dtype) for x in model)
        dims = jnp.asarray(case.open_dims)
        found = run(arrays, dims, *case.way, case.family == "diffuse")
    errors = [np.abs(np.asarray(a, float) - b).max() for a, b in zip(found, right)]
    for draws in _DRAWS:
        bounds = _bounds(case, given, right, holds.largest, draws)
        delicate = holds.lost > _LOST or any(b > _LOST * size for b, size in bounds)
        if delicate and not np.isnan(errors).any():
            # A variance may be called open, infinite, where rounding hides what it is.
            return Verdict(0.0, [], "too delicate", "")
        ratio, failures = _judged(errors, bounds)
        if not failures:
            break
    return Verdict(ratio, failures, case.family, SCRIPT.format(case=case))


def _judged(errors: list, bounds: list) -> tuple[float, list[str]]:
    """Return the largest error over its bound, and which are over theirs."""
    ratio, failures = 0.0, []
    names = ("means", "covariances", "log likelihood")
    for name, error, (bound, _) in zip(names, errors, bounds):
        here = float(error / bound) if np.isfinite(error) else np.inf
        ratio = max(ratio, here)
        if here > 1:
            failures.append(f"{name}: off by {error:.3g}, allowed {bound:.3g}")
    return ratio, failures


def _over_noise(case: Case, given: Numbers, right: Truth) -> float:
    """Return what one rounding grows by where the quick smoother divides by noise.

    It takes a successor in one scalar of independent noise after the other.
    """
    F, Q = squared(given)[2:4]
    inverse, noise = np.eye(D), Q.copy()
    for k in range(D):
        below = np.where(np.arange(D) > k, noise[:, k] / (noise[k, k] or 1), 0)
        noise, inverse = (x - np.outer(below, x[k]) for x in (noise, inverse))
    covs = np.diagonal(right.filtered[:-1], 0, 1, 2).clip(0)
    seen = (inverse @ F) ** 2 @ covs.T
    least = 3 * float(np.finfo(case.dtype).eps) ** 0.5 * seen.max(axis=1)
    if case.way[0] != "covariance" or np.any(np.diag(noise) <= least):
        return 0.0
    return np.max(seen.max(axis=1) / np.diag(noise))


def _bounds(
    case: Case, given: Numbers, right: Truth, largest: np.ndarray, draws: int
) -> list[tuple[float, float]]:
    """Return the bound of each error, and the size of what it is of.

    The truth is moved by so many draws of one rounding.
    """
    rng, eps = np.random.default_rng([case.seed, 3]), float(np.finfo(case.dtype).eps)
    conditioned = eps * _over_noise(case, given, right)
    others = (struck(case, given, largest, rng) for _ in range(draws))
    moves = [right, *(truth(case, moved) for moved in others)]
    *_, R, y = squared(given)
    logs = np.log(np.linalg.eigvalsh(R).clip(np.finfo(float).tiny))
    terms = np.sum(~np.isnan(y)) * max(np.abs(logs).max(), 1) / 2
    bounds = []
    for place, b in enumerate(right[:3]):
        size = max(np.abs(b).max(), 1)
        apart = max(np.abs(o[place] - b).max() for o in moves if o.decided)
        rounded = (size, max(size, largest.max()), max(size, terms))[place]
        own = _HALF * eps**0.5 * size if case.emission in EXACT else 0
        own += 10 * conditioned * size
        bounds.append((_ROUNDINGS * apart + _ROUNDINGS * eps * rounded + own, size))
    return bounds
