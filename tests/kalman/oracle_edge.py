"""Any linear model in a hundred digits: a univariate filter and de Jong's smoother.

Neither inverts a covariance. The numbers of a model are taken as they are, every digit
of them. Only a variance without noise counts as zero where rounding the dynamics to
double precision alone may have left it: an F of rank one is so to sixteen digits. A
diffuse dimension is one of variance 1e40, whose reciprocal no float sees.

The margin says how small a part of its variance an exact row had left when it was taken
in; it is zero where the numbers do not say whether the row was known: of a variance
that is below the roundings of variances but above those of deviations, or between
what is diffuse and what is not.
"""

from decimal import Context, Decimal, localcontext
from math import tau

import numpy as np

DIGITS = Context(prec=110)
ZERO, DIFFUSE = Decimal(0), Decimal(10) ** 40
NOTHING, NOTHING_AT_ALL = Decimal(10) ** -14, Decimal(10) ** -24
_lifted = np.frompyfunc(Decimal, 1, 1)


def lift(x):
    """Return numbers as decimals, every digit of them."""
    return _lifted(np.asarray(x, float))


def decorrelate(R):
    """Unit lower triangular W and d with W R W' = diag(d); R may be singular."""
    W, A = lift(np.eye(len(R))), R.copy()
    for k in range(len(R)):
        if A[k, k] <= NOTHING * R[k, k]:
            A[k], A[:, k] = ZERO, ZERO
        for i in range(k + 1, len(R)):
            factor = A[i, k] / A[k, k] if A[k, k] > 0 else ZERO
            A[i] -= factor * A[k]
            W[i] -= factor * W[k]
    return W, np.diag(A).copy()


def update(m, P, H, R, y, scale, own):
    """Condition on one emission, given the largest variance so far and those now.

    Neither is of what is diffuse. Returns the moments, the rows that taught something,
    the log density and the margin.
    """
    W, r = decorrelate(R)
    taught, log_density, margin, prior = [], 0.0, 1.0, np.diag(P).copy()
    for h, r_k, z in zip(W @ H, r, W @ y):
        g = P @ h
        s, error = h @ g + r_k, z - h @ m
        size = h @ h * scale
        if r_k == 0 and s <= NOTHING * size:
            margin = 0.0 if s > NOTHING_AT_ALL * size else margin
            continue
        if r_k == 0:
            diffuse = s > size / NOTHING
            of = h * h @ (prior if diffuse else np.minimum(prior, own))
            between = not diffuse and s > size / NOTHING ** Decimal("0.5")
            margin = 0.0 if between or of == 0 else min(margin, float(s / of))
        K = g / s
        A = lift(np.eye(len(m))) - np.outer(K, h)
        m, P = m + K * error, A @ P @ A.T + r_k * np.outer(K, K)
        log_density -= (np.log(tau) + float(s.ln()) + float(error * error / s)) / 2
        taught.append((h, error, s, A))
    return m, P, taught, log_density, margin


def smooth(m, P, F, Q, H, R, y, open_dims=None):
    """Filtered and smoothed means and covariances, the log likelihood, the margin.

    Args:
        m, P, F, H, R: The model, static.
        Q: `(D, D)`, or `(T, D, D)` with entry t into step t.
        y: `(T, E)`, NaN where missing.
        open_dims: Which dimensions of the first state are diffuse, `(D,)`; the
            likelihood is then the diffuse one, and a variance of what the data leave
            open is beyond 1e30.
    """
    with localcontext(DIGITS):
        return _smooth(m, P, F, Q, H, R, y, open_dims)


def _smooth(m, P, F, Q, H, R, y, open_dims):
    there = ~np.isnan(y)
    Q = np.broadcast_to(Q, (len(y), *np.shape(P)))
    open_ = np.zeros(len(m), bool) if open_dims is None else np.asarray(open_dims)
    m, P = np.where(open_, 0, m), np.where(open_[:, None] | open_, 0, P)
    m, P, F, Q, H, R, y = map(lift, (m, P, F, Q, H, R, np.where(there, y, 0)))
    P = P + np.diag(np.where(open_, DIFFUSE, ZERO))
    evidence = open_.sum() * float(DIFFUSE.ln()) / 2
    ms, Ps, rows, margins = [], [], [], []
    scale, unseen = ZERO, np.where(open_[:, None] | open_, ZERO, P)
    for t, seen in enumerate(there):
        if t:
            m, P = F @ m, F @ P @ F.T + Q[t]
            unseen = F @ unseen @ F.T + Q[t]
        own = np.diag(unseen if open_.any() else P)
        scale, taught = max(scale, max(own)), []
        if seen.any():
            emission = H[seen], R[np.ix_(seen, seen)], y[t, seen], scale, own
            m, P, taught, log_density, margin = update(m, P, *emission)
            margins.append(margin)
            evidence += log_density
        ms.append(m)
        Ps.append(P)
        rows.append(taught)
    moments = *map(_floats, (ms, Ps)), *_look_back(ms, Ps, rows, F)
    return *moments, evidence, min(margins, default=1.0)


def _look_back(ms, Ps, rows, F):
    r, N = 0 * ms[0], 0 * Ps[0]
    sm, sP = [], []
    for m, P, taught in zip(ms[::-1], Ps[::-1], rows[::-1]):
        sm.append(m + P @ r)
        sP.append(P - P @ N @ P)
        for h, error, s, A in taught[::-1]:
            r = h * (error / s) + A.T @ r
            N = np.outer(h, h) / s + A.T @ N @ A
        r, N = F.T @ r, F.T @ N @ F
    return _floats(sm[::-1]), _floats(sP[::-1])


def _floats(arrays):
    return np.array(arrays).astype(float)
