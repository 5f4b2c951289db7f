r"""Runs of steps whose evidence is held as scalar observations, for dense models.

A run of the steps (i, j] is what these steps say about x_j and x_i,

    p(x_j | y_{i+1:j}, x_i) = N(x_j; A x_i + b, C)
    p(y_{i+1:j} | x_i)      = the likelihood of U x_i + N(0, I), up to scale

where `rows`, `(D, D + 1)`, is U with the observed values as its last column. That is
the filter element of `elements` with J = U'U and eta = U'z, and everything about it is
done one scalar at a time (see `scalar_updates`):

    step     the emission, conditioned on in x_j = F x_i + c + N(0, Q), leaves
             innovations h'(A x_i + b) - z of variance s: rows (h'A, z - h'b) / sqrt(s)
    combine  the rows of the later run are emissions of the state between the two runs
    compress an orthogonal transformation turns n rows into D with the same U'U

No covariance is inverted, so F, Q and C may be singular, s of a combination is at least
one, and C stays PSD. Holding U instead of U'U squares the range of evidence that a
float can hold: an almost exact observation does not swallow what others say about the
directions that it leaves open.

An exact observation of a state that is reached without noise, r = h'Qh = 0, is a
constraint on x_i with infinite J. It is given the rounding of the variance that h'x
would have, were it as uncertain as the initial state or Q: half the digits are left.
With it h'x_j is known whatever x_i is, so it is written as its value and A, b lose that
part: else every later constraint on x_j were one on x_i again, larger by F each step,
until nothing else that is known of x_i survives the rounding of their sum.

The rows of all steps after t are the future as seen from z_t. Conditioning the filtered
N(m_t, P_t) on them is the two-filter smoother (Fraser and Potter, 1969; Särkkä and
García-Fernández, 2021, combine the same elements), and conditioning the dynamics on
them gives the forward Markov chain p(z_t | z_{t-1}, y_{t:T-1}).
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from elk_ssm.kalman.roundings import floor_of, nothing_of, reciprocal, safe_sqrt
from elk_ssm.kalman.scalar_updates import Rows, condition_row, over_rows, project
from elk_ssm.linalg.small import matmul, matvec, symmetrize, transpose

_RUN = "(d,d),(d),(d,d),(d,n)"
# Rows are of a size if the exponents of two of their largest entries differ by less.
_SIMILAR = 8
# Up to so many dimensions rows are ordered by masks.
_UNROLLED = 8


class Run(NamedTuple):
    """Transition `A, b, C` of a run of steps, and its evidence, `rows: (D, D + 1)`."""

    A: Array
    b: Array
    C: Array
    rows: Array


def no_run(like: Array) -> Run:
    """Return the run without steps for states like `like`, `(D,)`."""
    zero = jnp.zeros((*like.shape, *like.shape), like.dtype)
    return Run(jnp.diag(jnp.ones_like(like)), jnp.zeros_like(like), zero, no_rows(like))


def no_rows(like: Array) -> Array:
    """Return rows that say nothing about a state like `like`, `(D,)`."""
    return jnp.zeros((like.shape[0], like.shape[0] + 1), like.dtype)


def as_emission(rows: Array) -> Rows:
    """Read rows `(D, D + 1)` as scalar observations with unit noise.

    The last row first: rows are triangular, so that one is about a single dimension.
    In this order every scalar takes a fraction of the variance of the dimensions that
    are still to come; in the other, the first one may cancel all of it but a rounding.
    """
    rows = rows[::-1]
    ones = jnp.ones_like(rows[:, -1])
    return Rows(rows[:, :-1], ones, rows[:, -1], ones > 0)


def condition_run(
    A: Array,
    b: Array,
    C: Array,
    emission: Rows,
    scales: Array | None = None,
) -> tuple[tuple[Array, Array, Array], Array]:
    """Condition x_j = A x_i + b + N(0, C) on scalar observations of x_j.

    Args:
        A: `(D, D)`.
        b: `(D,)`.
        C: `(D, D)`.
        emission: n scalars.
        scales: variances, `(D,)`, against which noise is called none at all.

    Returns:
        A, b and C given the observations, and the rows `(n, D + 1)` that they are
        about x_i.
    """
    run, rows = _take_in_all(A, b, C, emission, scales, False)
    return run, rows


def condition_run_with_evidence(
    A: Array, b: Array, C: Array, emission: Rows, scales: Array | None = None
) -> tuple[tuple[Array, Array, Array], Array, Array]:
    """Return the same, and the sum of the log variances s of what was observed."""
    run, rows = _take_in_all(A, b, C, emission, scales, True)
    return run, rows[:, :-1], jnp.sum(rows[:, -1])


def _take_in_all(
    A: Array, b: Array, C: Array, emission: Rows, scales: Array | None, evidence: bool
) -> tuple[tuple[Array, Array, Array], Array]:
    floors, nothing = _roundings(C, emission, scales)
    # Exact scalars are about the noise, and where it is none, about x_i; either way
    # they leave x_j no freedom along themselves. Of one dimension 1 - K h says so.
    some_free = scales is not None and b.shape[0] > 1
    free = jnp.eye(b.shape[0] if some_free else 0, dtype=b.dtype)

    def take_in(carry, row):
        A, b, C, free = carry
        h, r, z, ok, floor, nothing = row
        g, a = project(C, h)
        exact = r <= 0
        # What exact scalars left of a variance by rounding has no direction.
        known = exact & (a <= nothing)
        g, a = jnp.where(known, 0.0, g), jnp.where(known | (a < 0), 0.0, a)
        r = jnp.where(a + r < floor, floor, r)
        C, K, inverse = condition_row(C, h, g, a, r, ok)
        if some_free:
            along, free = _taken_from(free, h, ok & exact)
            K = jnp.where(known, along, K)
        back = jnp.sum(A * h[:, None], axis=0)
        error = z - jnp.sum(h * b)
        seen = jnp.append(back, error) * safe_sqrt(inverse)
        if evidence:
            log_variance = -jnp.log(jnp.where(inverse > 0, inverse, 1))
            seen = jnp.append(seen, log_variance)
        return (A - K[:, None] * back[None, :], b + K * error, C, free), seen

    run, rows = (A, b, C, free), (*emission, floors, nothing)
    (A, b, C, _), rows = over_rows(take_in, run, rows, collect=True)
    return (A, b, symmetrize(C)), rows


def _roundings(C: Array, emission: Rows, scales: Array | None) -> tuple[Array, Array]:
    """Return of every scalar the least variance, and the one that is none, `(n,)`."""
    weights = emission.weights
    nothing = nothing_of(matvec(weights**2, jnp.diagonal(C)))
    if scales is None:
        return jnp.zeros_like(nothing), nothing
    # Of a single dimension there are no others to swallow.
    tiny = jnp.finfo(C.dtype).eps ** (1 if len(C) > 1 else 2)
    return floor_of(weights, scales, tiny), nothing


def _taken_from(free: Array, h: Array, exact: Array) -> tuple[Array, Array]:
    """Take the direction of an exact scalar from a projector on those that are free.

    Returns:
        K with h'K = 1 and no part in directions taken before, zero where h is among
        them, `(D,)`, and the projector on what is left.
    """
    g, a = project(free, h)
    inverse = reciprocal(a, exact & (a > nothing_of(jnp.sum(h * h))))
    K = g * inverse
    return K, free - K[:, None] * g[None, :]


def compress(rows: Array) -> Array:
    """Turn `(n, D + 1)` rows of unit noise into D that say the same, n at least D.

    Householder's transformations, column after column.
    """
    return compress_with_residual(rows)[0]


def compress_with_residual(rows: Array) -> tuple[Array, Array]:
    """Return the same, and the squared residual that depends on no state."""
    size = rows.shape[-1] - 1
    if size == 1:
        return _compress_column(rows)
    rows = triangular(rows, size)
    return rows[:size], jnp.sum(rows[size:, -1] ** 2)


def triangular(table: Array, size: int) -> Array:
    """Clear the first columns of a table below their diagonals, orthogonally.

    Rows that are larger by hundreds come first: so each keeps its own digits, however
    much the sizes of rows differ (Powell and Reid, 1969; Cox and Higham, 1998,
    Stability of Householder QR factorization for weighted least squares problems).

    A column of zeros leaves a row to spare, which takes in what is left of the last
    column: so nothing is lost that the derivative by such a column would be about.
    """
    index = jnp.arange(table.shape[0])
    table = _largest_first(table, lax.stop_gradient(table[:, :size]))
    # Or an accelerator's compiler orders the rows anew for each reflection.
    table = lax.optimization_barrier(table)

    def clear(k, carry):
        table, spared = carry
        below = index >= k
        x = jnp.where(below, table[:, k], 0.0)
        spare = jnp.where(below, table[:, -1], 0.0)
        some = jnp.any(x != 0)
        # The spare column once: what is left of it then is roundings, and if they were
        # reflected, roundings of those, by whose squares derivatives divide.
        least = jnp.where(some, 0.0, spared)
        table = reflected(table, jnp.where(some, x, spare), k, least)
        # Roundings: of a column, and not of the spare one.
        table = table.at[:, k].set(jnp.where(index > k, 0.0, table[:, k]))
        return table, jnp.where(some, spared, jnp.inf)

    # A loop: written out, the program takes the compiler twice as long.
    return lax.fori_loop(0, size, clear, (table, jnp.zeros((), table.dtype)))[0]


def _largest_first(table: Array, weights: Array) -> Array:
    """Order the rows of a table by the size of weights, whatever the units of columns.

    Few rows change places by masks, as no accelerator sorts in the kernel it is in.
    """
    largest = jnp.max(jnp.abs(weights), axis=0)
    shares = jnp.abs(weights) / jnp.where(largest > 0, largest, 1)[None, :]
    sizes = jnp.floor((jnp.log2(jnp.max(shares, axis=1)) + 1) / _SIMILAR)
    sizes = jnp.where(jnp.isnan(sizes), jnp.inf, sizes)
    if len(table) > 2 * _UNROLLED:
        return table[jnp.argsort(-sizes)]
    index = jnp.arange(len(table))
    ours, others = sizes[:, None], sizes[None, :]
    tied = (others == ours) & (index[None, :] < index[:, None])
    places = jnp.sum((others > ours) | tied, axis=1)
    ordered = table
    for place, row in zip(places, table):
        ordered = jnp.where((index == place)[:, None], row[None], ordered)
    return ordered


def reflected(
    table: Array, x: Array, row: int | Array, least: float | Array = 0.0
) -> Array:
    """Apply Householder's reflection of x, zero above a row, onto that row.

    Of x whose square is no more than the least, it is none.
    """
    here = jnp.arange(table.shape[0]) == row
    pivot, square = jnp.sum(jnp.where(here, x, 0.0)), jnp.sum(x * x)
    length = safe_sqrt(square)
    v = x + jnp.where(here, jnp.where(pivot < 0, -length, length), 0.0)
    beta = reciprocal(square + jnp.abs(pivot) * length, square > least)
    along = jnp.sum(v[:, None] * table, axis=0, keepdims=True)
    return table - v[:, None] * (beta * along)


def _compress_column(rows: Array) -> tuple[Array, Array]:
    """Compress rows about a single dimension: weighted sums, which round least."""
    u, z = rows[:, 0], rows[:, 1]
    along = jnp.where(jnp.any(u != 0), u, z)
    square = jnp.sum(along * along)
    unit = along * reciprocal(safe_sqrt(square), square > 0)
    length, value = jnp.sum(unit * u), jnp.sum(unit * z)
    return jnp.stack([length, value])[None], jnp.sum((z - unit * value) ** 2)


@partial(jnp.vectorize, signature=f"{_RUN},{_RUN}->{_RUN}")
def _combine(*members: Array) -> tuple[Array, ...]:
    earlier, later = Run(*members[:4]), Run(*members[4:])
    (A, b, C), seen = condition_run(*earlier[:3], as_emission(later.rows))
    return (
        matmul(later.A, A),
        matvec(later.A, b) + later.b,
        symmetrize(matmul(later.A, matmul(C, transpose(later.A)))) + later.C,
        compress(jnp.concatenate([seen, earlier.rows])),
    )


def combine_runs(earlier: Run, later: Run) -> Run:
    """Join two neighbouring runs of steps, or many along leading axes."""
    return Run(*_combine(*earlier, *later))
