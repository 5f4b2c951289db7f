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
The filter operator takes `(earlier, later)`. The smoother operator is used with
`reverse=True`, which hands it `(later, earlier)`, and it expects that.

An unobserved step, or noise that is infinite, is `eta = 0` and `J = 0`: write the
zeros, since 1/inf is exact but y/inf need not be finite. `b`, `eta` and `g` are
`(..., D)`, the others operators of one structure.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

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
        >>> import elk_ssm as elk
        >>> eye, zero = elk.Dense(jnp.eye(2)), jnp.zeros(2)
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
        >>> import elk_ssm as elk
        >>> one = elk.Diagonal(jnp.ones(2))
        >>> e = SmootherElement(one.scaled(2), jnp.ones(2), one)
        >>> combine_smoother(e, e).L.diagonal.tolist()
        [5.0, 5.0]
    """
    E, g, L = earlier
    return SmootherElement(
        E.mm(later.E), E.mv(later.g) + g, E.congruence(later.L).add(L)
    )
