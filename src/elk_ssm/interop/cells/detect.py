"""Say which framework a cell comes from, without importing any framework.

The classes of an object's ancestry name the modules that define them; a framework that
is not installed can have made no object. Nothing is imported here.
"""

from typing import Any

_HOMES = {
    "flax.linen": "linen",
    "flax.nnx": "nnx",
    "equinox": "equinox",
    "haiku": "haiku",
    "keras": "keras",
}

CLOSURE_HINT = (
    "For any other cell write the closure yourself: state first, new state only, no "
    "batch axis, for example f = lambda state, input: cell(input, state)[1], and pass "
    "f and the initial state to elk.evaluate."
)

KNOWN = (
    "flax.linen cells (from_linen(cell, variables, carry)), flax.nnx cells "
    "(from_nnx(cell, carry)), equinox cells (from_equinox(cell, state)), haiku "
    "transforms of a core (from_haiku(transformed, params, state)) and Keras 3 cells "
    "on the JAX backend (from_keras(cell, state))"
)


def framework_of(cell: Any) -> str | None:
    """Return "linen", "nnx", "equinox", "haiku", "keras", or None.

    The most derived class that a framework defines decides, so a user's subclass of a
    framework's cell belongs to that framework.

    Example:
        >>> framework_of(object()) is None
        True
    """
    for ancestor in type(cell).__mro__:
        for home, name in _HOMES.items():
            module = ancestor.__module__ or ""
            if module == home or module.startswith(home + "."):
                return name
    return None


def unknown_cell(cell: Any) -> TypeError:
    """Return the error for an object that no adapter knows."""
    kind = type(cell)
    return TypeError(
        f"from_cell does not know {kind.__module__}.{kind.__qualname__}. It knows "
        f"{KNOWN}. {CLOSURE_HINT}"
    )


def check_framework(cell: Any, expected: str, described: str) -> None:
    """Raise `TypeError` when a cell is not of the framework an adapter is for."""
    found = framework_of(cell)
    if found != expected:
        kind = type(cell)
        instead = f" Use from_{found}." if found else f" {CLOSURE_HINT}"
        raise TypeError(
            f"from_{expected} takes {described}; got "
            f"{kind.__module__}.{kind.__qualname__}.{instead}"
        )
