"""How results show themselves: a line or a few, whatever they hold.

A result may be concrete, batched, traced, or rebuilt by JAX around stand-ins for its
arrays. Shapes and dtypes are always known; values are read only where they are there.
"""

import html
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elk_ssm._jax import is_traced
from elk_ssm._trees import describe
from elk_ssm._types import PyTree


def show(kind: str, **parts: Any) -> str:
    """Return `Kind(name=text, ...)`, without what is None."""
    said = (f"{name}={text}" for name, text in parts.items() if text is not None)
    return f"{kind}({', '.join(said)})"


def arrays(tree: PyTree) -> str:
    """Return structure, dtypes and shapes, such as `float32[9, 2]`."""
    try:
        return describe(tree)
    except Exception:  # no arrays: what JAX rebuilt a result around
        return type(tree).__name__


def known(value: Any) -> np.ndarray | None:
    """Return an array whose values can be read here, else None."""
    if is_traced(value) or isinstance(value, jax.ShapeDtypeStruct):
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    try:
        found = np.asarray(value)
    except Exception:  # donated or deleted buffers, stand-ins
        return None
    return found if found.dtype.kind in "biuf" else None


def number(value: Any) -> str | None:
    """Return one number, the range of several, or what is not known of a traced one."""
    if value is None:
        return None
    found = known(value)
    if found is None:
        return "traced" if is_traced(value) else arrays(value)
    if found.size == 0:
        return "none"
    if found.size == 1:
        return _short(found.reshape(-1)[0])
    low, high = _short(np.min(found)), _short(np.max(found))
    return low if low == high else f"{low} to {high}"


def counted(names: list[str]) -> str:
    """Return the one name, or how often each occurs: `3 converged, 1 nonfinite`."""
    if len(set(names)) == 1:
        return names[0] if len(names) == 1 else f"{len(names)} {names[0]}"
    return ", ".join(f"{n} {name}" for name, n in Counter(names).most_common())


def named(value: Any, names: Any) -> str:
    """Return the names of an integer, or of several, in an `IntEnum`."""
    found = known(value)
    if found is None:
        return "traced" if is_traced(value) else arrays(value)
    try:
        return counted([names(int(x)).name for x in found.reshape(-1)]) or "none"
    except (ValueError, IndexError):
        return number(value) or "none"


def as_html(result: Any) -> str:
    """Return the text of a result, laid out for a notebook."""
    return f"<pre>{html.escape(repr(result))}</pre>"


def _short(x: Any) -> str:
    return str(int(x)) if jnp.issubdtype(x.dtype, jnp.integer) else f"{float(x):.2g}"


def held(result: Any, *names: str, **more: Any) -> str:
    """Show fields of a result by structure, dtypes and shapes, what is None apart."""
    values = {name: getattr(result, name) for name in names}
    parts = {k: None if v is None else matrix(v) for k, v in values.items()}
    return show(type(result).__name__, **parts, **more)


def matrix(value: Any) -> str:
    """Return arrays as such, with the name of the structure or function around them."""
    if callable(value) and jax.tree_util.all_leaves([value]):
        return getattr(value, "__name__", type(value).__name__)
    if isinstance(value, tuple | list | dict) or hasattr(value, "shape"):
        return arrays(value)
    leaves = jax.tree.leaves(value)
    inside = ", ".join(map(arrays, leaves))
    name = type(value).__name__
    return str(value) if type(value).__module__ == "builtins" else f"{name}({inside})"
