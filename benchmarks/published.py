"""The published iteration, re-stated: DEER, quasi-DEER, ELK and quasi-ELK.

A comparison candidate for iteration counts and speed, kept as close as current JAX
allows to what the experiments of arXiv 2407.19115 ran, and no better. States are
single (D,) vectors, iterates are absolute, and one step maps the guess y_1..y_T to

    DEER        x_t = A_t x_{t-1} + b_t,     b_t = f(y_{t-1}, u_t) - A_t y_{t-1}
    quasi-DEER  the same with A_t = diag of the dense Jacobian
    ELK         filtered means of x_t ~ N(A_t x_{t-1} + b_t, I), y_t ~ N(x_t, s^2 I)
    quasi-ELK   the same, one scalar filter a dimension

with y_0 = x_0 known, so that the first filter prior is N(f(x_0, u_1), I).

Every Jacobian is formed densely. ``backend="associative"`` is the published code
path and the one to time; ``backend="sequential"`` is the same mathematics by
``lax.scan``, for counting iterations on a CPU.

    python -m benchmarks.published      # the table of published iteration counts
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

METHODS = ("deer", "quasi_deer", "elk", "quasi_elk")
CLIP = 1e8


class Options(NamedTuple):
    """What the published experiments varied.

    Attributes:
        method: one of ``METHODS``.
        backend: "associative" or "sequential".
        reset: what happens to the new iterate. "none"; "nan_to_num" (their DEER with
            a fixed number of iterations: NaN to 0, inf to the largest float); "clip"
            (their DEER with early stopping: clip at 1e8, then NaN to 0).
        lapack_solve: use ``jnp.linalg.solve`` inside the parallel Kalman operator,
            as published. On few-core CPUs the batched LU can deadlock, so the
            default is an unrolled Gauss-Jordan elimination.
    """

    method: str
    backend: str = "associative"
    reset: str = "none"
    lapack_solve: bool = False


def make_step(options: Options, f: Callable, initial_state, inputs) -> Callable:
    """Build ``step(states, noise) -> states``, one published iteration.

    Args:
        options: method and variant.
        f: ``f(state, input) -> state`` on (D,) vectors.
        initial_state: x_0, (D,).
        inputs: pytree with leading axis T, or ``None``.

    Returns:
        Function of the (T, D) iterate and of ``noise`` = s^2 (ignored by DEER).
    """
    _check(options)
    quasi = options.method.startswith("quasi")
    damped = options.method.endswith("elk")
    # The published DEER differentiates forwards, the published ELK backwards.
    jacobian = jax.jacrev if damped else jax.jacfwd
    input_axis = None if inputs is None else 0

    def step(states, noise=jnp.inf):
        previous = jnp.concatenate([initial_state[None], states[:-1]])
        over_time = partial(jax.vmap, in_axes=(0, input_axis))
        images = over_time(f)(previous, inputs)
        weights = over_time(jacobian(f))(previous, inputs)
        if quasi:
            weights = jax.vmap(jnp.diag)(weights)
            biases = images - weights * previous
        else:
            biases = images - _matvec(weights, previous)
        if damped:
            update = _FILTERS[options.backend, quasi]
            update = partial(update, lapack_solve=options.lapack_solve)
            new = update(weights, biases, images[0], initial_state, states, noise)
        else:
            new = _AFFINE[options.backend, quasi](weights, biases, initial_state)
        return _reset(options.reset, new)

    return step


def evaluate_fixed(step, guess, noise=jnp.inf, *, num_iters: int):
    """Run a fixed number of iterations and keep all of them, the guess first.

    Returns:
        (num_iters + 1, T, D).
    """

    def body(states, _):
        states = step(states, noise)
        return states, states

    _, trace = jax.lax.scan(body, guess, None, length=num_iters)
    return jnp.concatenate([guess[None], trace])


def evaluate_until(step, guess, noise=jnp.inf, *, max_iters: int = 10_000, tol=None):
    """Iterate until the largest absolute step is below ``tol``, as published.

    The published tolerance is 1e-7 in float64 and 1e-4 otherwise. A NaN step ends
    the published loop, since NaN > tol is false; that is kept.

    Returns:
        (states, number of iterations).
    """
    if tol is None:
        tol = 1e-7 if guess.dtype == jnp.float64 else 1e-4

    def unfinished(carry):
        _, size, count = carry
        return (size > tol) & (count < max_iters)

    def body(carry):
        states, _, count = carry
        new = step(states, noise)
        return new, jnp.max(jnp.abs(new - states)), count + 1

    start = (guess, jnp.asarray(1e10, guess.dtype), 0)
    states, _, count = jax.lax.while_loop(unfinished, body, start)
    return states, count


def iterations_to_mad(
    step, guess, reference, noise=jnp.inf, *, threshold=0.1, max_iters, observe=None
):
    """Count iterations until the mean absolute deviation is below a threshold.

    Only the current iterate is stored. A NaN deviation counts as not there yet.

    Args:
        step: ``step(states, noise) -> states``.
        guess: first iterate, (T, D).
        reference: sequential trajectory, (T, D).
        noise: passed on to ``step``.
        threshold: the deviation to reach.
        max_iters: give up after this many.
        observe: compare this dimension only; ``None`` for the mean over all.

    Returns:
        The count, or -1 if the threshold was not reached.
    """
    reference = jnp.asarray(reference, guess.dtype)

    def close(states):
        error = jnp.abs(states - reference)
        error = error if observe is None else error[:, observe]
        # A sum: jitted max can drop NaNs on CPU.
        return jnp.sum(error) / error.size < threshold

    def unfinished(carry):
        states, count = carry
        return ~close(states) & (count < max_iters)

    def body(carry):
        return step(carry[0], noise), carry[1] + 1

    states, count = jax.lax.while_loop(unfinished, body, (guess, 0))
    return jnp.where(close(states), count, -1)


def _check(options):
    if options.method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {options.method!r}.")
    if options.backend not in ("associative", "sequential"):
        raise ValueError(f"unknown backend {options.backend!r}.")
    if options.reset not in ("none", "nan_to_num", "clip"):
        raise ValueError(f"unknown reset {options.reset!r}.")


def _reset(kind, states):
    if kind == "nan_to_num":
        return jnp.nan_to_num(states)
    if kind == "clip":
        states = jnp.clip(states, -CLIP, CLIP)
        return jnp.where(jnp.isnan(states), 0.0, states)
    return states


def _matvec(matrices, vectors):
    return jnp.einsum("...ij,...j->...i", matrices, vectors)


# --- x_t = A_t x_{t-1} + b_t ------------------------------------------------


def _compose_dense(first, second):
    """(A, b) then (A', b') is (A' A, A' b + b')."""
    return second[0] @ first[0], _matvec(second[0], first[1]) + second[1]


def _compose_diagonal(first, second):
    return second[0] * first[0], second[0] * first[1] + second[1]


def _affine_associative(compose, unit, weights, biases, initial_state):
    # x_0 enters as the element (I, x_0) in front, and is dropped at the end.
    elements = (
        jnp.concatenate([unit(initial_state)[None], weights]),
        jnp.concatenate([initial_state[None], biases]),
    )
    return jax.lax.associative_scan(compose, elements)[1][1:]


def _affine_sequential(apply, weights, biases, initial_state):
    def step(x, element):
        x = apply(element[0], x) + element[1]
        return x, x

    return jax.lax.scan(step, initial_state, (weights, biases))[1]


def _apply_dense(matrix, x):
    # Not a dot: a fused multiply and sum is several times faster at small D.
    return jnp.sum(matrix * x[None, :], axis=1)


_AFFINE = {
    ("associative", False): partial(
        _affine_associative, _compose_dense, lambda x: jnp.eye(x.size, dtype=x.dtype)
    ),
    ("associative", True): partial(
        _affine_associative, _compose_diagonal, jnp.ones_like
    ),
    ("sequential", False): partial(_affine_sequential, _apply_dense),
    ("sequential", True): partial(_affine_sequential, jnp.multiply),
}


# --- Kalman filters ---------------------------------------------------------
#
# An element stands for the steps i..j: x_j given x_{i-1} and the observations between
# is N(A x_{i-1} + b, C), and those observations say eta, J about x_{i-1}. Source:
# Sarkka and Garcia-Fernandez, IEEE TAC 66 (2021) 299, lemmas 7 and 8.


def _dense_elements(weights, biases, first_mean, states, noise):
    """Elements for H = I, R = s^2 I, Q = I, prior N(f(x_0, u_1), I): all dense."""
    length, dim = states.shape
    gain = 1 / (1 + noise)
    eye = jnp.eye(dim, dtype=states.dtype)
    offsets = biases.at[0].set(first_mean)
    weights = weights.at[0].set(0)
    surprise = gain * (states - offsets)
    transposed = jnp.swapaxes(weights, -1, -2)
    return (
        (1 - gain) * weights,
        offsets + surprise,
        jnp.broadcast_to((1 - gain) * eye, (length, dim, dim)),
        gain * transposed @ weights,
        _matvec(transposed, surprise),
    )


def _combine_dense(solve, first, second):
    a1, b1, c1, j1, eta1 = first
    a2, b2, c2, j2, eta2 = second
    eye = jnp.eye(a1.shape[-1], dtype=a1.dtype)

    def right_divide(numerator, denominator):
        swap = partial(jnp.swapaxes, axis1=-1, axis2=-2)
        return swap(solve(swap(denominator), swap(numerator)))

    forward = right_divide(a2, eye + c1 @ j2)
    backward = right_divide(jnp.swapaxes(a1, -1, -2), eye + j2 @ c1)
    return (
        forward @ a1,
        _matvec(forward, b1 + _matvec(c1, eta2)) + b2,
        forward @ c1 @ jnp.swapaxes(a2, -1, -2) + c2,
        backward @ j2 @ a1 + j1,
        _matvec(backward, eta2 - _matvec(j2, b1)) + eta1,
    )


def gauss_jordan_solve(matrix, right):
    """Solve M X = R by Gauss-Jordan elimination, unrolled over D, without pivoting.

    I + C J with C, J positive semidefinite has eigenvalues of at least 1 and every
    leading block of it is invertible, so the pivots do not vanish.

    Args:
        matrix: (..., D, D).
        right: (..., D, K).
    """
    augmented = jnp.concatenate([matrix, right], axis=-1)
    dim = matrix.shape[-1]
    for k in range(dim):
        pivot_row = augmented[..., k, :] / augmented[..., k, k, None]
        factors = augmented[..., :, k].at[..., k].add(-1)
        augmented = augmented - factors[..., :, None] * pivot_row[..., None, :]
    return augmented[..., dim:]


def _filter_dense_associative(
    weights, biases, first_mean, initial_state, states, noise, lapack_solve
):
    solve = jnp.linalg.solve if lapack_solve else gauss_jordan_solve
    elements = _dense_elements(weights, biases, first_mean, states, noise)
    return jax.lax.associative_scan(partial(_combine_dense, solve), elements)[1]


def _filter_dense_sequential(
    weights, biases, first_mean, initial_state, states, noise, lapack_solve
):
    """Covariance form; H = I and R = s^2 I allow one scalar update a dimension."""
    dim = states.shape[-1]
    eye = jnp.eye(dim, dtype=states.dtype)

    def product(left, right):
        return jnp.sum(left[:, :, None] * right[None, :, :], axis=1)

    def step(carry, element):
        mean, cov = carry
        weight, bias, observed = element
        mean = _apply_dense(weight, mean) + bias
        cov = product(product(weight, cov), weight.T) + eye
        for k in range(dim):
            gain = cov[:, k] / (cov[k, k] + noise)
            mean = mean + gain * (observed[k] - mean[k])
            cov = cov - gain[:, None] * cov[k, :]
        return (mean, 0.5 * (cov + cov.T)), mean

    # x_0 known: mean x_0, covariance 0, and the first prior is N(f(x_0, u_1), I).
    start = (initial_state, jnp.zeros_like(eye))
    return jax.lax.scan(step, start, (weights, biases, states))[1]


def _combine_scalar(first, second):
    a1, b1, c1, j1, eta1 = first
    a2, b2, c2, j2, eta2 = second
    scale = c1 * j2 + 1
    return (
        a1 * a2 / scale,
        a2 * (c1 * eta2 + b1) / scale + b2,
        c1 * a2**2 / scale + c2,
        j2 * a1**2 / scale + j1,
        a1 * (eta2 - j2 * b1) / scale + eta1,
    )


def _filter_scalar_associative(
    weights, biases, first_mean, initial_state, states, noise, lapack_solve
):
    gain = 1 / (1 + noise)
    offsets = biases.at[0].set(first_mean)
    weights = weights.at[0].set(0)
    surprise = gain * (states - offsets)
    elements = (
        (1 - gain) * weights,
        offsets + surprise,
        jnp.broadcast_to(1 - gain, states.shape).astype(states.dtype),
        gain * weights**2,
        weights * surprise,
    )
    # Each dimension's scan on its own, as published: vmapped over the second axis.
    scan = partial(jax.lax.associative_scan, _combine_scalar)
    return jax.vmap(scan, in_axes=1, out_axes=1)(elements)[1]


def _filter_scalar_sequential(
    weights, biases, first_mean, initial_state, states, noise, lapack_solve
):
    def step(carry, element):
        mean, var = carry
        weight, bias, observed = element
        mean, var = weight * mean + bias, weight**2 * var + 1
        gain = var / (var + noise)
        mean = mean + gain * (observed - mean)
        return (mean, (1 - gain) * var), mean

    start = (initial_state, jnp.zeros_like(initial_state))
    return jax.lax.scan(step, start, (weights, biases, states))[1]


_FILTERS = {
    ("associative", False): _filter_dense_associative,
    ("associative", True): _filter_scalar_associative,
    ("sequential", False): _filter_dense_sequential,
    ("sequential", True): _filter_scalar_sequential,
}


# --- the table of published counts ------------------------------------------

RESULTS = Path(__file__).parent / "results" / "published_counts.json"
NOISES = tuple(m * 10.0**k for k in range(-1, 9) for m in (1, 3))
# What the published code itself gave on its own problems, T = 1,000; AR-GRU: medians.
PUBLISHED = {
    "argru": {"deer": 353, "quasi_deer": 483, "elk": 22, "quasi_elk": 146},
    "lorenz96": {
        "deer": [96, 128],
        "deer, no reset": [905, 927],
        "quasi_deer": [225, 777],
        "quasi_deer, no reset": [932, 955],
        "elk": [148, 171],
        "quasi_elk": [443, 453],
    },
}


def count_problem(
    problem, options: Options, noises=(jnp.inf,), *, threshold=0.1, max_iters=None
):
    """Count iterations from a zero guess, one count per noise.

    Args:
        problem: a ``benchmarks.problems.Problem`` with a vector state.
        options: which iteration.
        noises: values of s^2.
        threshold: mean absolute deviation to reach, on ``problem.observe``.
        max_iters: give up after this many; T by default.

    Returns:
        List of counts, -1 where the threshold was not reached.
    """
    reference = problem.reference()
    guess = jnp.zeros_like(reference, problem.initial_state.dtype)
    step = make_step(options, problem.f, problem.initial_state, problem.inputs)

    @jax.jit
    def count(noise):
        return iterations_to_mad(
            step,
            guess,
            reference,
            noise,
            threshold=threshold,
            max_iters=max_iters or problem.length,
            observe=problem.observe,
        )

    return [int(count(noise)) for noise in noises]


def best(counts, noises):
    """Return (smallest count reached, its noise), or (None, None)."""
    reached = [(count, noise) for count, noise in zip(counts, noises) if count >= 0]
    return min(reached, default=(None, None))


def count_all(problem, noises=NOISES, **kwargs):
    """Count every method on one problem; DEER with and without the NaN reset."""
    sequential = partial(Options, backend="sequential")
    row: dict = {}
    for method in ("deer", "quasi_deer"):
        for label, reset in ((method, "nan_to_num"), (f"{method}, no reset", "none")):
            row[label] = count_problem(
                problem, sequential(method, reset=reset), **kwargs
            )[0]
    for method in ("elk", "quasi_elk"):
        counts = count_problem(problem, sequential(method), noises, **kwargs)
        row[method], row[f"{method} noise"] = best(counts, noises)
    return row


def _summary(rows):
    """Median and range of every count over the rows."""
    table = {}
    for method in (*METHODS, "deer, no reset", "quasi_deer, no reset"):
        counts = [row[method] for row in rows]
        reached = [c for c in counts if c is not None and c >= 0]
        table[method] = {
            "median": float(np.median(reached)) if reached else None,
            "range": [min(reached), max(reached)] if reached else None,
            "not reached": len(counts) - len(reached),
        }
    return table


def main():
    """Count on the AR-GRU weights and on Lorenz-96; print and write the table."""
    from benchmarks import problems

    cases = {
        "argru": [(f"argru_seed{k}", 0) for k in range(problems.ARGRU_SEEDS)],
        "lorenz96": [("lorenz96", seed) for seed in range(3)],
    }
    record = {
        "measure": "iterations to mean absolute deviation < 0.1, T = 1000, zero guess; "
        "elk and quasi_elk at the best constant noise of the grid, per problem",
        "noise grid": NOISES,
        "dtype": "float32",
        "jax": jax.__version__,
    }
    for family, members in cases.items():
        rows = {}
        for name, seed in members:
            row = count_all(problems.make(name, 1000, seed))
            rows[f"{name}, seed {seed}"] = row
            print(f"{name}, seed {seed}:", row, flush=True)
        summary = _summary(list(rows.values()))
        print(f"{family}: published code {PUBLISHED[family]}\n  here {summary}")
        record[family] = {
            "published code": PUBLISHED[family],
            "here": summary,
            "problems": rows,
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
