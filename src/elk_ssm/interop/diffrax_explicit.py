r"""Explicit Runge-Kutta steps written out, from the tableau that the solver has.

    y_i = y_0 + sum_{j<i} a_ij k_j,    k_i = f(t_0 + c_i dt, y_i) control
    y   = y_0 + sum_j b_j k_j          (the last y_i where b is the last row of a)

diffrax runs the stages in a loop, to trace the vector field once. Written out they
are one fused step, in which stages that y does not need are not there.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._types import PyTree
from elk_ssm.interop.diffrax_steps import Equation, Step
from elk_ssm.interop.diffrax_terms import diffrax, played


def is_explicit(solver: Any) -> bool:
    """Whether a solver is diffrax's own explicit Runge-Kutta step with one tableau."""
    family = diffrax.AbstractERK
    if not isinstance(solver, family) or hasattr(solver, "solver"):
        return False
    own = type(solver).step is diffrax.AbstractRungeKutta.step
    tableau = solver.tableau
    return own and isinstance(tableau, diffrax.ButcherTableau) and not tableau.implicit


def explicit_step(equation: Equation, y0: PyTree, entry: Step) -> PyTree:
    """Take one step, `solver.step` but for roundings."""
    tableau, args = equation.solver.tableau, equation.args
    terms, t0, t1 = played(equation.terms, entry.controls), entry.t0, entry.t1
    control = terms.contr(t0, t1)
    starts = [np.asarray(0.0 if tableau.c1 is None else tableau.c1), *tableau.c]
    rows = [np.zeros(0), *tableau.a_lower]
    if tableau.ssal:
        starts, rows, weights = starts[:-1], rows[:-1], tableau.a_lower[-1]
    else:
        weights = tableau.b_sol
    stages: list[PyTree] = []
    for start, row in zip(starts, rows, strict=True):
        # No rounding where a stage is at the end.
        time = t1 if start == 1 else t0 + float(start) * (t1 - t0)
        stages.append(terms.vf_prod(time, _plus(y0, row, stages), args, control))
    return _plus(y0, weights, stages)


def _plus(y0: PyTree, weights: np.ndarray, stages: list[PyTree]) -> PyTree:
    """Add weighted stages to y0, those of weight zero left out."""
    pairs = [(float(w), k) for w, k in zip(weights, stages, strict=True) if w != 0]

    def add(y: Any, *ks: Any) -> Any:
        if not ks:
            return y
        total = sum(w * k for (w, _), k in zip(pairs, ks, strict=True))
        return y + jnp.asarray(total, y.dtype)

    return jax.tree.map(add, y0, *(k for _, k in pairs))
