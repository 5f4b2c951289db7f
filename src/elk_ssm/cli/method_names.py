"""The methods the command line knows, by name."""

from typing import Any

import elk_ssm as elk

_NAMES = ("deer", "quasi_deer", "elk", "quasi_elk", "picard", "jacobi", "auto")
DAMPED_METHODS = ("elk", "quasi_elk")

METHOD_NAMES = tuple(name for name in _NAMES if hasattr(elk, name))
DEFAULT_METHOD = "auto" if "auto" in METHOD_NAMES else "quasi_elk"
DEFAULT_NOISE = 1e2


def make_method(name: str, noise: float = DEFAULT_NOISE) -> Any:
    """Return the method called `name`; the undamped ones make no use of `noise`."""
    factory = getattr(elk, name)
    return factory(noise=noise) if name in DAMPED_METHODS else factory()
