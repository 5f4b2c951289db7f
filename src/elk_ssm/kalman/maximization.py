r"""The M-step of a linear-Gaussian model: new parameters from expected statistics.

With S, G, X and n of a regression (see `statistics`) around its weights W, the weights
W + V and the covariance C that maximise the expected log density are

    V X = G          C = (S - V G' - G V' + V X V') / n

where every entry of W is free or a whole column is fixed (then X and G are those of the
other columns). Where a structure or a fixed part frees single entries, V solves

    sum over c of  L_rs X_cd V_sd  =  (L G)_rc      for the free entries (r, c)

with L = C^{-1} of the present C, entries that share a number added up. It depends on C
only if C mixes dimensions; then weights and covariance are maximised in turn (Meng and
Rubin, 1993), which never lowers the likelihood either.

A covariance of a given structure is what that structure holds of C. Regressors that
say the same twice leave the weight of the later one where it is. What has no noise,
a variance of exactly zero, keeps it, and its weights.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from elk_ssm.kalman.freedom import DYNAMICS, EMISSION, START
from elk_ssm.kalman.lgssm import LGSSM, emission_dim
from elk_ssm.kalman.roundings import reciprocal
from elk_ssm.kalman.statistics import Regression, Start, Statistics
from elk_ssm.kalman.whitening import square_root, whiten
from elk_ssm.linalg.small import matmul, matvec, symmetrize, transpose
from elk_ssm.linalg.structure import (
    Operator,
    as_operator,
    in_structure,
    pattern_of,
)


def maximized(model: LGSSM, found: Statistics, free: frozenset[str]) -> LGSSM:
    """Return the model whose parameters named in `free` maximise the expectation."""
    changes = _started(model, found.start, free)
    D = model.state_dim
    for names, regression, rows in (
        (DYNAMICS, found.dynamics, D),
        (EMISSION, found.emission, emission_dim(model)),
    ):
        if regression is not None:
            changes |= _regressed(model, names, regression, rows, free)
    return model._replace(**changes)


def _started(model: LGSSM, start: Start, free: frozenset[str]) -> dict[str, Any]:
    named = {name for name in START if name in free}
    if not named:
        return {}
    mean = jnp.mean(start.means, axis=0)
    mean = mean if "initial_mean" in named else jnp.asarray(model.initial_mean)
    if "initial_covariance" not in named:
        return {"initial_mean": mean}
    away = start.means - mean
    spread = matmul(transpose(away), away) / len(away) + start.covariance
    old: Any = model.initial_covariance
    held = as_operator(old, model.state_dim, "initial_covariance")
    new = {"initial_covariance": _covariance(old, spread, held)}
    return new | ({"initial_mean": mean} if "initial_mean" in named else {})


class _Part(NamedTuple):
    """Columns of W that one parameter fills."""

    name: str
    declared: Any
    columns: slice
    labels: np.ndarray


def _regressed(
    model: LGSSM,
    names: tuple[str, ...],
    found: Regression,
    rows: int,
    free: frozenset[str],
) -> dict[str, Any]:
    *weights, noise = names
    held = as_operator(getattr(model, noise), rows, noise)
    parts = _parts(model, tuple(n for n in weights if n in free), found, rows)
    step = jnp.zeros_like(found.slopes)
    changes: dict[str, Any] = {}
    enough = found.num_steps > 0
    if parts:
        step = jnp.where(enough, _step(parts, found, held), 0)
        changes = {part.name: _moved(part, step[:, part.columns]) for part in parts}
    if noise in free:
        once = matmul(step, transpose(found.slopes))
        twice = matmul(matmul(step, found.regressors), transpose(step))
        left = found.squares - once - transpose(once) + twice
        spread = jnp.where(
            enough, left / jnp.maximum(found.num_steps, 1), held.to_dense()
        )
        changes[noise] = _covariance(getattr(model, noise), spread, held)
    return changes


def _parts(
    model: LGSSM, names: tuple[str, ...], found: Regression, rows: int
) -> list[_Part]:
    size, total = model.state_dim, found.slopes.shape[1]
    places = {"input": slice(size, total - 1), "bias": slice(total - 1, total)}
    parts, begin = [], 0
    for name in names:
        declared = getattr(model, name)
        if declared is None:
            continue
        kind = name.split("_")[1]
        columns = places.get(kind, slice(0, size))
        wide = columns.stop - columns.start
        whole = declared if kind == "weights" else jnp.zeros((rows, wide))
        labels = pattern_of(whole, rows, wide)
        labels = np.where(labels < 0, -1, labels + begin)
        begin = max(begin, int(labels.max(initial=-1)) + 1)
        parts.append(_Part(name, declared, columns, labels))
    return parts


def _step(parts: list[_Part], found: Regression, covariance: Operator) -> Array:
    """Return V, `(N, K)`, zero where nothing is free."""
    labels = np.full(found.slopes.shape, -1)
    for part in parts:
        labels[:, part.columns] = part.labels
    used = labels[labels >= 0]
    if (labels >= 0).all(axis=0).tolist() == (labels >= 0).any(axis=0).tolist() and len(
        np.unique(used)
    ) == len(used):
        step = _by_columns(np.flatnonzero(labels[0] >= 0), found)
    else:
        step = _by_entries(labels, found, covariance)
    return jnp.where(covariance.variances()[:, None] > 0, step, 0)


def _by_columns(columns: np.ndarray, found: Regression) -> Array:
    """All entries of some columns are free."""
    X = found.regressors[columns[:, None], columns]
    free = transpose(_solve_psd(X, transpose(found.slopes[:, columns])))
    return jnp.zeros_like(found.slopes).at[:, columns].set(free)


def _by_entries(labels: np.ndarray, found: Regression, covariance: Operator) -> Array:
    """Single entries are free, or share a number: those of one label."""
    rows, columns = np.nonzero(labels >= 0)
    _, which = np.unique(labels[rows, columns], return_inverse=True)
    same = which[:, None] == np.arange(int(which.max(initial=-1)) + 1)
    tie = jnp.asarray(same, found.slopes.dtype)
    L = _solve_psd(covariance.to_dense(), jnp.eye(len(labels), dtype=tie.dtype))
    pairs = L[rows[:, None], rows] * found.regressors[columns[:, None], columns]
    right = matmul(L, found.slopes)[rows, columns]
    system = symmetrize(matmul(tie.T, matmul(pairs, tie)))
    moved = _solve_psd(system, matvec(tie.T, right)[:, None])[:, 0]
    step = jnp.zeros_like(found.slopes)
    return step.at[rows, columns].set(matvec(tie, moved))


def _solve_psd(matrix: Array, right: Array) -> Array:
    """Solve A x = b, A PSD; a row that the ones before it determine takes a zero."""
    inverse, variances = whiten(matrix)
    weights = reciprocal(variances, variances > 0)
    return matmul(transpose(inverse), weights[:, None] * matmul(inverse, right))


def _moved(part: _Part, step: Array) -> Any:
    """Return a parameter in its structure, moved by the columns that are its own."""
    if part.name.endswith("bias"):
        return part.declared + step[:, 0]
    change = in_structure(part.declared, step)
    return jax.tree.map(lambda old, new: old + new, part.declared, change)


def _covariance(declared: Any, spread: Array, held: Operator) -> Any:
    """Return the covariance of a structure; zero variances stay, none is negative."""
    noisy = held.variances() > 0
    spread = jnp.where(noisy[:, None] & noisy, symmetrize(spread), 0)
    if held.mixes:
        root = square_root(spread)
        spread = symmetrize(matmul(root, transpose(root)))
    else:
        spread = jnp.diag(jnp.maximum(jnp.diagonal(spread), 0))
    return in_structure(declared, spread)
