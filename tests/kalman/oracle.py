"""Independent answers in NumPy float64: one big Gaussian, and a plain RTS smoother."""

from typing import NamedTuple

import numpy as np

from elk_ssm.kalman.lgssm import LGSSM
from elk_ssm.linalg.structure import Dense


class Data(NamedTuple):
    """A model with T entries of everything, and its emissions."""

    m: np.ndarray
    P: np.ndarray
    F: np.ndarray
    Q: np.ndarray
    H: np.ndarray
    R: np.ndarray
    b: np.ndarray
    B: np.ndarray
    d: np.ndarray
    D: np.ndarray
    u: np.ndarray
    y: np.ndarray


def random_data(seed=0, T=6, D=2, E=3, U=1, varying=True):
    rng = np.random.default_rng(seed)
    draw = rng.normal

    def covariance(steps, size):
        root = draw(size=(steps, size, size))
        return root @ root.transpose(0, 2, 1) + 0.1 * np.eye(size)

    data = Data(
        draw(size=D),
        covariance(1, D)[0],
        0.6 * draw(size=(T, D, D)),
        covariance(T, D),
        draw(size=(T, E, D)),
        covariance(T, E),
        draw(size=(T, D)),
        draw(size=(T, D, U)),
        draw(size=(T, E)),
        draw(size=(T, E, U)),
        draw(size=(T, U)),
        3 * draw(size=(T, E)),
    )
    if varying:
        return data
    frozen = {
        k: np.broadcast_to(v[:1], v.shape)
        for k, v in data._asdict().items()
        if k not in "mPuy"
    }
    return data._replace(**frozen)


def with_gaps(data):
    y = data.y.copy()
    y[1, 0] = np.nan
    y[3] = np.nan
    y[4, -1] = np.nan
    return data._replace(y=y)


def as_model(data, static=False):
    F, Q, H, R, b, B, d, D = (x[0] if static else x for x in data[2:10])
    return LGSSM(
        data.m, Dense(data.P), Dense(F), Dense(Q), Dense(H), Dense(R), b, B, d, D
    )


def joint(data):
    """Mean and covariance of all states, and of all emissions given them."""
    (T, _), D = data.y.shape, len(data.m)
    mean, cov = np.zeros((T, D)), np.zeros((T, D, T, D))
    mean[0], cov[0, :, 0] = data.m, data.P
    for t in range(1, T):
        F = data.F[t]
        mean[t] = F @ mean[t - 1] + data.b[t] + data.B[t] @ data.u[t]
        cov[t, :, :t] = np.einsum("ij,jsk->isk", F, cov[t - 1, :, :t])
        cov[:t, :, t] = np.einsum("isk->ski", cov[t, :, :t])
        cov[t, :, t] = F @ cov[t - 1, :, t - 1] @ F.T + data.Q[t]
    return mean, cov


def block_diagonal(blocks):
    T, N, M = blocks.shape
    out = np.zeros((T, N, T, M))
    for t in range(T):
        out[t, :, t] = blocks[t]
    return out.reshape(T * N, T * M)


def posterior(data, upto=None):
    """Condition the joint Gaussian on the emissions that are there, up to a step.

    Returns the means `(T, D)`, the covariance `(T, D, T, D)` and the log density.
    """
    (T, _), D = data.y.shape, len(data.m)
    mean, cov = joint(data)
    seen = ~np.isnan(data.y)
    if upto is not None:
        seen[upto + 1 :] = False
    seen = seen.ravel()
    H, R = block_diagonal(data.H)[seen], block_diagonal(data.R)[np.ix_(seen, seen)]
    shift = (data.d + np.einsum("tij,tj->ti", data.D, data.u)).ravel()[seen]
    flat = cov.reshape(T * D, T * D)
    S = H @ flat @ H.T + R
    error = data.y.ravel()[seen] - H @ mean.ravel() - shift
    gain = np.linalg.solve(S, H @ flat).T
    log_density = -0.5 * (
        error @ np.linalg.solve(S, error) + np.linalg.slogdet(2 * np.pi * S)[1]
    )
    means = (mean.ravel() + gain @ error).reshape(T, D)
    return means, (flat - gain @ H @ flat).reshape(T, D, T, D), log_density


def smoothed(data):
    means, cov, log_density = posterior(data)
    T = len(means)
    covs = np.array([cov[t, :, t] for t in range(T)])
    crosses = np.array([cov[t, :, t + 1] for t in range(T - 1)])
    return means, covs, crosses, log_density


def filtered(data):
    parts = [posterior(data, upto=t) for t in range(len(data.y))]
    means = np.array([part[0][t] for t, part in enumerate(parts)])
    return means, np.array([part[1][t, :, t] for t, part in enumerate(parts)])


def rts(F, Q, H, R, ys):
    """Filter and smooth many static models at once, m_0 = 0 and P_0 = I.

    All arguments have a leading axis of models; Joseph's form throughout.
    """
    swap = lambda x: x.swapaxes(-1, -2)  # noqa: E731
    times = lambda A, x: np.einsum("nij,nj->ni", A, x)  # noqa: E731
    N, T, _ = ys.shape
    eye = np.eye(F.shape[-1])
    m, P, ll = np.zeros(F.shape[:2]), np.broadcast_to(eye, F.shape), np.zeros(N)
    ms, Ps, mps, Pps = [], [], [], []
    for t in range(T):
        if t:
            m, P = times(F, m), F @ P @ swap(F) + Q
        mps.append(m)
        Pps.append(P)
        S = H @ P @ swap(H) + R
        K = swap(np.linalg.solve(S, H @ P))
        error = ys[:, t] - times(H, m)
        solved = np.linalg.solve(S, error[..., None])[..., 0]
        ll -= 0.5 * np.sum(error * solved, -1)
        ll -= 0.5 * np.linalg.slogdet(2 * np.pi * S)[1]
        A = eye - K @ H
        m, P = m + times(K, error), A @ P @ swap(A) + K @ R @ swap(K)
        ms.append(m)
        Ps.append(P)
    sm, sP = [m], [P]
    for t in range(T - 2, -1, -1):
        G = swap(np.linalg.solve(Pps[t + 1], F @ Ps[t]))
        A = eye - G @ F
        sm.append(ms[t] + times(G, sm[-1] - mps[t + 1]))
        sP.append(A @ Ps[t] @ swap(A) + G @ (Q + sP[-1]) @ swap(G))
    stack = lambda x: np.stack(x, axis=1)  # noqa: E731
    return stack(ms), stack(Ps), stack(sm[::-1]), stack(sP[::-1]), ll
