"""The associative elements of parallel Kalman filtering and smoothing.

Särkkä and García-Fernández, "Temporal Parallelization of Bayesian Smoothers", IEEE
Transactions on Automatic Control 66(1), 2021 (arXiv 1905.13002).

A filter element for the steps (i, j] holds what these steps say about x_j and x_i:

    p(x_j | y_{i+1:j}, x_i) = N(x_j; A x_i + b, C)
    p(y_{i+1:j} | x_i)      = N^{-1}(x_i; eta, J)     (information form, up to scale)

and two neighbours combine, with M = I + C_1 J_2, to (lemma 8)

    A   = A_2 M^{-1} A_1                    eta = A_1' M^{-T} (eta_2 - J_2 b_1) + eta_1
    b   = A_2 M^{-1} (b_1 + C_1 eta_2) + b_2      J = A_1' M^{-T} J_2 A_1 + J_1
    C   = A_2 M^{-1} C_1 A_2' + C_2

so one solve with M serves all five. A smoother element for the steps [i, j) holds
p(x_i | x_j, y_{1:j-1}) = N(x_i; E x_j + g, L), and combines to (lemma 10)

    E = E_1 E_2         g = E_1 g_2 + g_1         L = E_1 L_2 E_1' + L_1

where 1 is the earlier one.

**Order of the arguments.** Both kinds go straight into `jax.lax.associative_scan`, or
into `prefix_scan`, which compiles in a tenth of the time.
The filter operators take `(earlier, later)`. The smoother operators are used with
`reverse=True`, which hands them `(later, earlier)`, and they expect that.

An unobserved step, or noise that is infinite, is `eta = 0` and `J = 0`: write the
zeros, since 1/inf is exact but y/inf need not be finite. Dense members are
`b, eta, g: (..., D)` and `(..., D, D)` otherwise; diagonal ones are `(..., D)` all.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from elk_ssm.linalg.small import matmul, matvec, solve, symmetrize, transpose
from elk_ssm.linalg.structure import Operator


class FilterElement(NamedTuple):
    """Transition `A, b, C` and evidence `eta, J` of a run of steps."""

    A: Any
    b: Array
    C: Any
    eta: Array
    J: Any


class SmootherElement(NamedTuple):
    """Backward transition `x_i = E x_j + g + N(0, L)` of a run of steps."""

    E: Any
    g: Array
    L: Any


def known_filter(mean: Array, covariance: Operator) -> FilterElement:
    """Return the run that ends in N(mean, covariance) whatever enters it."""
    zero, none = jnp.zeros_like(mean), covariance.zeros()
    return FilterElement(none, mean, covariance, zero, none)


def no_steps(mean: Array, covariance: Operator) -> FilterElement:
    """Return the run of no steps for states like `mean`, `(D,)`."""
    zero, none = jnp.zeros_like(mean), covariance.zeros()
    return FilterElement(none.shift(1), zero, none, zero, none)


def enter_filter(
    mean: Array, covariance: Operator, run: FilterElement
) -> tuple[Array, Operator]:
    """Return the moments after a run that N(mean, covariance) enters."""
    M = covariance.mm(run.J).shift(1)
    MC, Mb = M.solve(covariance, mean + covariance.mv(run.eta))
    return run.A.mv(Mb) + run.b, run.A.mm(MC).mm(run.A.T).symmetrized().add(run.C)


def combine_filter(earlier: FilterElement, later: FilterElement) -> FilterElement:
    """Join two neighbouring runs of steps; leading axes are free.

    Example:
        >>> import jax.numpy as jnp
        >>> from elk_ssm.linalg.structure import Dense
        >>> eye, zero = Dense(jnp.eye(2)), jnp.zeros(2)
        >>> e = FilterElement(eye.scaled(2), zero + 1, eye, zero, eye.scaled(0))
        >>> both = combine_filter(e, e)
        >>> both.A.matrix[0, 0].item(), both.b[0].item(), both.C.matrix[0, 0].item()
        (4.0, 3.0, 5.0)
    """
    A1, b1, C1, eta1, J1 = earlier
    A2, b2, C2, eta2, J2 = later
    MA, MC, Mb = C1.mm(J2).shift(1).solve(A1, C1, b1 + C1.mv(eta2))
    return FilterElement(
        A=A2.mm(MA),
        b=A2.mv(Mb) + b2,
        C=A2.mm(MC).mm(A2.T).symmetrized().add(C2),
        eta=MA.T.mv(eta2 - J2.mv(b1)) + eta1,
        J=MA.T.mm(J2.mm(A1)).symmetrized().add(J1),
    )


def combine_smoother(
    later: SmootherElement, earlier: SmootherElement
) -> SmootherElement:
    """Join two neighbouring backward runs, the later one first; leading axes are free.

    Example:
        >>> import jax.numpy as jnp
        >>> from elk_ssm.linalg.structure import Diagonal
        >>> one = Diagonal(jnp.ones(2))
        >>> e = SmootherElement(one.scaled(2), jnp.ones(2), one)
        >>> combine_smoother(e, e).L.diagonal.tolist()
        [5.0, 5.0]
    """
    E, g, L = earlier
    return SmootherElement(
        E.mm(later.E), E.mv(later.g) + g, E.congruence(later.L).add(L)
    )


def combine_filter_dense(earlier: FilterElement, later: FilterElement) -> FilterElement:
    """Join two neighbouring runs of steps, dense members.

    Args:
        earlier: `b, eta: (..., D)` and `A, C, J: (..., D, D)`.
        later: the same shapes.

    Returns:
        The element of both runs together, the same shapes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> eye, zero = jnp.eye(2), jnp.zeros(2)
        >>> e = FilterElement(2 * eye, jnp.ones(2), eye, zero, 0 * eye)
        >>> both = combine_filter_dense(e, e)
        >>> both.A[0, 0].item(), both.b[0].item(), both.C[0, 0].item()
        (4.0, 3.0, 5.0)
    """
    A1, b1, C1, eta1, J1 = earlier
    A2, b2, C2, eta2, J2 = later
    M = jnp.eye(b1.shape[-1], dtype=b1.dtype) + matmul(C1, J2)
    known = (b1 + matvec(C1, eta2))[..., None]
    size = b1.shape[-1]
    solved = solve(M, jnp.concatenate([A1, C1, known], axis=-1))
    MA, MC, Mb = solved[..., :size], solved[..., size:-1], solved[..., -1]
    MAt = transpose(MA)
    return FilterElement(
        A=matmul(A2, MA),
        b=matvec(A2, Mb) + b2,
        C=symmetrize(matmul(A2, matmul(MC, transpose(A2)))) + C2,
        eta=matvec(MAt, eta2 - matvec(J2, b1)) + eta1,
        J=symmetrize(matmul(MAt, matmul(J2, A1))) + J1,
    )


def combine_filter_diagonal(
    earlier: FilterElement, later: FilterElement
) -> FilterElement:
    """Join two neighbouring runs of steps, all members `(..., D)`.

    Example:
        >>> import jax.numpy as jnp
        >>> one = jnp.ones(3)
        >>> e = FilterElement(2 * one, one, one, 0 * one, 0 * one)
        >>> combine_filter_diagonal(e, e).C.tolist()
        [5.0, 5.0, 5.0]
    """
    A1, b1, C1, eta1, J1 = earlier
    A2, b2, C2, eta2, J2 = later
    gain = A2 / (1.0 + C1 * J2)
    back = A1 / (1.0 + C1 * J2)
    return FilterElement(
        A=gain * A1,
        b=gain * (b1 + C1 * eta2) + b2,
        C=gain * C1 * A2 + C2,
        eta=back * (eta2 - J2 * b1) + eta1,
        J=back * J2 * A1 + J1,
    )


def combine_smoother_dense(
    later: SmootherElement, earlier: SmootherElement
) -> SmootherElement:
    """Join two neighbouring backward runs, dense members, the later one first.

    Args:
        later: `g: (..., D)` and `E, L: (..., D, D)`.
        earlier: the same shapes.

    Returns:
        The element of both runs together, the same shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> e = SmootherElement(2 * jnp.eye(2), jnp.ones(2), jnp.eye(2))
        >>> combine_smoother_dense(e, e).g.tolist()
        [3.0, 3.0]
    """
    E1, g1, L1 = earlier
    return SmootherElement(
        E=matmul(E1, later.E),
        g=matvec(E1, later.g) + g1,
        L=symmetrize(matmul(E1, matmul(later.L, transpose(E1)))) + L1,
    )


def combine_smoother_diagonal(
    later: SmootherElement, earlier: SmootherElement
) -> SmootherElement:
    """Join two neighbouring backward runs, all members `(..., D)`, the later first.

    Example:
        >>> import jax.numpy as jnp
        >>> e = SmootherElement(2 * jnp.ones(2), jnp.ones(2), jnp.ones(2))
        >>> combine_smoother_diagonal(e, e).L.tolist()
        [5.0, 5.0]
    """
    E1, g1, L1 = earlier
    return SmootherElement(
        E=E1 * later.E, g=E1 * later.g + g1, L=E1 * later.L * E1 + L1
    )
