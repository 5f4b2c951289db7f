"""Terms of diffrax, turned around in time and with their increments on a tape."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from elk_ssm._jax import is_traced
from elk_ssm._types import PyTree

try:
    import diffrax
    import equinox as eqx
except ImportError as error:
    raise ImportError(
        'elk_ssm.interop.diffrax needs diffrax: pip install "elk-ssm[diffrax]".'
    ) from error


class _Around(diffrax.AbstractTerm):
    """A term that does what the one inside does."""

    term: Any

    def vf(self, t: Any, y: Any, args: Any) -> Any:
        """Evaluate the vector field."""
        return self.term.vf(t, y, args)

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> Any:
        """Return the increment of the control."""
        return self.term.contr(t0, t1, **kwargs)

    def prod(self, vf: Any, control: Any) -> Any:
        """Multiply vector field and control."""
        return self.term.prod(vf, control)

    def vf_prod(self, t: Any, y: Any, args: Any, control: Any) -> Any:
        """Multiply vector field and control."""
        return self.term.vf_prod(t, y, args, control)

    def is_vf_expensive(self, t0: Any, t1: Any, y: Any, args: Any) -> bool:
        """Say what the term says."""
        return self.term.is_vf_expensive(t0, t1, y, args)


class Turned(_Around):
    """A term with time running the other way where `direction` is -1."""

    direction: Any

    def vf(self, t: Any, y: Any, args: Any) -> Any:
        """Evaluate the vector field."""
        return super().vf(t * self.direction, y, args)

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> Any:
        """Return the increment of the control."""
        forwards = self.direction == 1
        begin, end = jnp.where(forwards, t0, -t1), jnp.where(forwards, t1, -t0)
        found = super().contr(begin, end, **kwargs)
        return jax.tree.map(lambda x: self.direction * x, found)

    def prod(self, vf: Any, control: Any) -> Any:
        """Multiply vector field and control."""
        with jax.numpy_dtype_promotion("standard"):
            return super().prod(vf, control)

    def vf_prod(self, t: Any, y: Any, args: Any, control: Any) -> Any:
        """Multiply vector field and control."""
        return super().vf_prod(t * self.direction, y, args, control)


class Tape:
    """Increments in the order in which a step asks for them: recorded, then given."""

    def __init__(self, known: list | None = None):
        self.values: list = []
        self.known: Iterator | None = None if known is None else iter(known)

    def __call__(self, contr: Callable, *args: Any, **kwargs: Any) -> Any:
        """Return the next increment."""
        if self.known is not None:
            return next(self.known)
        self.values.append(contr(*args, **kwargs))
        return self.values[-1]


class Taped(_Around):
    """A term whose increments go through a tape."""

    tape: Tape = eqx.field(static=True)

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> Any:
        """Return the increment of the control."""
        return self.tape(super().contr, t0, t1, **kwargs)


def over_terms(terms: PyTree, change: Callable[[Any], Any]) -> PyTree:
    """Change every term, those inside a `MultiTerm` one by one."""

    def is_one(x: Any) -> bool:
        single = isinstance(x, diffrax.AbstractTerm)
        return single and not isinstance(x, diffrax.MultiTerm)

    return jax.tree.map(lambda x: change(x) if is_one(x) else x, terms, is_leaf=is_one)


def taped(terms: PyTree, tape: Tape) -> PyTree:
    """Have the increments of all controls go through a tape."""

    def change(term: Any) -> Any:
        return Taped(term, tape) if has_controls(term) else term

    return over_terms(terms, change)


def played(terms: PyTree, controls: list) -> PyTree:
    """Have the terms return increments that are known; themselves where none are."""
    return taped(terms, Tape(controls)) if controls else terms


def has_controls(terms: PyTree) -> bool:
    """Whether any term has a control, whose increments a step asks for."""

    def is_one(x: Any) -> bool:
        return isinstance(x, diffrax.ControlTerm)

    return any(map(is_one, jax.tree.leaves(terms, is_leaf=is_one)))


def forwards(terms: PyTree, t0: Any, t1: Any) -> tuple[PyTree, Any]:
    """Turn the terms so that time runs forwards; return them and the direction."""
    if is_traced(t0) or is_traced(t1):
        direction: Any = jnp.where(t0 < t1, 1, -1)
    elif t0 < t1:
        return terms, 1
    else:
        direction = -1
    return over_terms(terms, lambda term: Turned(term, direction)), direction
