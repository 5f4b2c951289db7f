r"""What is known of the first state where a covariance does not say it.

`Diffuse`: nothing, in some dimensions; the limit of a prior variance that grows without
bound (Durbin and Koopman, 2012, chapter 5; de Jong, 1991). `Stationary`: what a system
that has run for ever is like, P = F P F' + Q.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from elk_ssm._jax import is_traced
from elk_ssm.linalg.structure import (
    Dense,
    Diagonal,
    Operator,
    as_operator,
    unified,
)

# P adds up 2^n steps of the past; a root of 1 - 1e-15 is gone after 2^56 of them.
_DOUBLINGS = 56


class Diffuse(NamedTuple):
    """An initial covariance without information about some dimensions of the state.

    The filter is de Jong's augmented one, which is exact: no large number stands for
    infinity. The log likelihood is the diffuse one, the limit of
    log p(y) + q / 2 log p0 for q dimensions of variance p0, as statsmodels has it. As
    long as the data leave a dimension open its variance is `inf`, its mean the initial
    one, and its covariances with others, which are not defined, are given as zero.

    Attributes:
        dims: `(D,)` boolean, which dimensions; `None` for all of them.
        covariance: `(D, D)` or declared otherwise, of the others; those of `dims` in
            it count for nothing. `None`, which needs `dims=None`; a number for a
            multiple of the identity; or `Stationary()`, where the others do not
            depend on `dims`.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one = elk.ScaledIdentity(1.0)
        >>> level = elk.LGSSM(jnp.zeros(1), elk.Diffuse(), one, one, one, one)
        >>> found = elk.lgssm_filter(level, jnp.array([[jnp.nan], [3.0]]))
        >>> [round(x, 3) for x in found.filtered_means[:, 0].tolist()]
        [0.0, 3.0]
        >>> [round(x, 3) for x in found.filtered_covariances.diagonal[:, 0].tolist()]
        [inf, 1.0]
    """

    dims: Array | None = None
    covariance: Any = None


class Stationary(NamedTuple):
    """The initial covariance P = F P F' + Q of a system that has run for ever.

    F and Q must be static and every eigenvalue of F less than one in size; otherwise
    there is none, which raises a `ValueError`, or gives NaN where F is traced.

    Example:
        >>> import jax.numpy as jnp
        >>> import elk_ssm as elk
        >>> one, half = elk.ScaledIdentity(1.0), elk.ScaledIdentity(0.5)
        >>> model = elk.LGSSM(jnp.zeros(1), elk.Stationary(), half, one, one, one)
        >>> found = elk.lgssm_filter(model, jnp.array([[jnp.nan]]))
        >>> round(float(found.filtered_covariances.diagonal[0, 0]), 6)
        1.333333
    """


def is_diffuse(covariance: Any) -> bool:
    """Whether an initial covariance is declared `Diffuse`."""
    return isinstance(covariance, Diffuse)


def proper_covariance(model: Any, where: str) -> Operator:
    """Return the initial covariance of an `LGSSM` as others hold it.

    Raises:
        ValueError: it is diffuse, which there is no matrix for.
    """
    declared, size = model.initial_covariance, model.state_dim
    if is_diffuse(declared):
        raise ValueError(
            f"{where} needs an initial covariance that is a matrix; got Diffuse."
        )
    F, Q = (
        as_operator(getattr(model, name), size, name)
        for name in ("dynamics_weights", "dynamics_covariance")
    )
    return initial_operator(declared, F, Q, size)


def initial_operator(declared: Any, F: Operator, Q: Operator, size: int) -> Operator:
    """Return an initial covariance as an operator; what is diffuse has variance inf.

    Raises:
        ValueError: a shape does not fit, or there is no stationary distribution.
    """
    name = "initial_covariance"
    if isinstance(declared, Stationary):
        return stationary(F, Q)
    if not isinstance(declared, Diffuse):
        return as_operator(declared, size, name)
    dims, covariance = declared
    if dims is None:
        if covariance is not None:
            raise ValueError("Diffuse: a covariance needs dims, which others to be of.")
        return Diagonal(jnp.full(size, jnp.inf, F.array.dtype))
    dims = jnp.asarray(dims)
    if dims.shape != (size,) or dims.dtype != bool:
        raise ValueError(
            f"Diffuse: dims must be boolean of shape {(size,)}; "
            f"got {dims.dtype} of shape {dims.shape}."
        )
    if covariance is None:
        raise ValueError("Diffuse: dims need a covariance for the other dimensions.")
    if isinstance(covariance, Stationary):
        rest = _stationary_part(F, Q, ~dims)
    elif not isinstance(covariance, tuple) and jnp.ndim(covariance) == 0:
        rest = Diagonal(jnp.full(size, covariance, F.array.dtype))
    else:
        rest = as_operator(covariance, size, name)
    if not rest.mixes:
        return rest.like(jnp.where(dims, jnp.inf, rest.array))
    matrix = jnp.where(dims[:, None] | dims, 0, rest.to_dense())
    return Dense(matrix + jnp.diag(jnp.where(dims, jnp.inf, 0)).astype(matrix.dtype))


def _stationary_part(F: Operator, Q: Operator, keep: Array) -> Operator:
    """Return the stationary covariance of some dimensions, zero for the others."""
    inside = keep[:, None] & keep
    F, Q = (Dense(x.to_dense()) for x in (F, Q))
    crossing = (F.matrix != 0) & keep[:, None] & ~keep
    if not is_traced(crossing) and crossing.any():
        raise ValueError(
            "Stationary: dimensions that are not diffuse must not depend on those "
            "that are; dynamics_weights say that they do."
        )
    parts = (Dense(jnp.where(inside, x.matrix, 0)) for x in (F, Q))
    return stationary(*parts)


def stationary(F: Operator, Q: Operator) -> Operator:
    """Solve P = F P F' + Q by doubling, Smith (1968): P <- P + A P A', A <- A A.

    Raises:
        ValueError: F or Q varies in time, or F has an eigenvalue not less than one.
    """
    if F.varies or Q.varies:
        raise ValueError(
            "Stationary needs dynamics_weights and dynamics_covariance that do not "
            "vary in time."
        )
    if not is_traced(F.array):
        with jax.ensure_compile_time_eval():
            matrix = np.asarray(F.to_dense(), float)
        radius = np.max(np.abs(np.linalg.eigvals(matrix)))
        if not radius < 1:
            raise ValueError(
                "Stationary: dynamics_weights have an eigenvalue of size "
                f"{radius:.6g}, so there is no stationary distribution; Diffuse() "
                "assumes nothing of the first state."
            )
    F, Q = unified(F, Q)

    def double(carry: tuple, _: None) -> tuple[tuple, None]:
        A, P = carry
        return (A.mm(A), P.add(A.congruence(P))), None

    (A, P), _ = jax.lax.scan(double, (F, Q), length=_DOUBLINGS)
    settled = jnp.max(jnp.abs(A.array)) < 0.5
    return P.like(jnp.where(settled, P.array, jnp.nan))
