"""Singular models in long double: a univariate filter and de Jong's smoother.

Neither inverts a covariance. What is zero up to rounding is told apart from what is not
by the digits that long double has beyond float64.
"""

import numpy as np

REAL = np.longdouble
EPS = np.finfo(REAL).eps


def decorrelate(R):
    """Unit lower triangular W and d with W R W' = diag(d); R may be singular."""
    W, A = np.eye(len(R), dtype=REAL), R.copy()
    for k in range(len(R)):
        if A[k, k] <= 100 * EPS * R[k, k]:
            A[k], A[:, k] = 0, 0
        for i in range(k + 1, len(R)):
            factor = A[i, k] / A[k, k] if A[k, k] > 0 else REAL(0)
            A[i] -= factor * A[k]
            W[i] -= factor * W[k]
    return W, np.diag(A).copy()


def update(m, P, H, R, y, scale):
    """Condition on one emission.

    Returns the moments, the rows that taught something, the log density, and how small
    a part of its variance an exact row had left when it was taken in.
    """
    seen = ~np.isnan(y)
    W, r = decorrelate(R[np.ix_(seen, seen)])
    taught, log_density, margin, prior = [], REAL(0), 1.0, np.diag(P).copy()
    for h, r_k, z in zip(W @ H[seen], r, W @ y[seen]):
        g = P @ h
        s, error = h @ g + r_k, z - h @ m
        if r_k == 0 and s <= 1e5 * EPS * (h @ h) * scale:
            continue
        margin = min(margin, s / (h * h @ prior)) if r_k == 0 else margin
        K = g / s
        A = np.eye(len(m), dtype=REAL) - np.outer(K, h)
        m, P = m + K * error, A @ P @ A.T + r_k * np.outer(K, K)
        log_density -= (np.log(2 * np.pi * s) + error * error / s) / 2
        taught.append((h, error, s, A))
    return m, P, taught, log_density, margin


def smooth(m, P, F, Q, H, R, y):
    """Filtered and smoothed means and covariances, the log likelihood, the margin."""
    m, P, F, Q, H, R, y = (np.asarray(x, REAL) for x in (m, P, F, Q, H, R, y))
    ms, Ps, rows, evidence, margins = [], [], [], REAL(0), []
    scale = np.diag(P).max()
    for t in range(len(y)):
        if t:
            m, P = F @ m, F @ P @ F.T + Q
        scale = max(scale, np.diag(P).max())
        m, P, taught, log_density, margin = update(m, P, H, R, y[t], scale)
        margins.append(margin)
        evidence += log_density
        ms.append(m)
        Ps.append(P)
        rows.append(taught)
    r, N = np.zeros_like(m), np.zeros_like(P)
    sm, sP = [], []
    for m, P, taught in zip(ms[::-1], Ps[::-1], rows[::-1]):
        sm.append(m + P @ r)
        sP.append(P - P @ N @ P)
        for h, error, s, A in taught[::-1]:
            r = h * (error / s) + A.T @ r
            N = np.outer(h, h) / s + A.T @ N @ A
        r, N = F.T @ r, F.T @ N @ F
    moments = (np.array(x) for x in (ms, Ps, sm[::-1], sP[::-1]))
    return *moments, evidence, min(margins)
