"""For which platforms programs are traced: for every one that could run them.

What suits a CPU and what suits an accelerator are two programs, and `by_platform`
leaves the choice to the lowering. That costs a trace of both, and several where
derivatives are taken. Where nothing but a CPU can be asked for, because no other
platform is installed, the other program is not traced.

`ELK_SSM_PLATFORMS` in the environment, read once, says otherwise: `all` for a program
that is exported from a machine with a CPU to another, or the name of the only platform
that is used (`cpu`, `cuda`, `rocm`, `tpu`), which saves tracing on that one too.
"""

import importlib.util
import os
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any, TypeVar

import jax

VARIABLE = "ELK_SSM_PLATFORMS"
_KNOWN = ("cpu", "cuda", "rocm", "tpu")
Result = TypeVar("Result")


@cache
def only_platform() -> str | None:
    """Return the one platform that programs are traced for, or None for all.

    Raises:
        ValueError: `ELK_SSM_PLATFORMS` names no platform.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", "all", *_KNOWN):
        raise ValueError(
            f"{VARIABLE} must be all or one of {', '.join(_KNOWN)}; got {asked!r}."
        )
    if asked:
        return None if asked == "all" else asked
    return None if _accelerators_are_installed() else "cpu"


def by_platform(
    *operands: Any, default: Callable[..., Result], **chosen: Callable[..., Result]
) -> Result:
    """As `jax.lax.platform_dependent`, without what no platform here would run."""
    only = only_platform()
    if only is None:
        return jax.lax.platform_dependent(*operands, default=default, **chosen)
    return chosen.get(only, default)(*operands)


def _accelerators_are_installed() -> bool:
    """Whether JAX finds a platform besides the CPU: by what it looks for."""
    if metadata.entry_points(group="jax_plugins"):
        return True
    if importlib.util.find_spec("libtpu") is not None:
        return True
    plugins = importlib.util.find_spec("jax_plugins")
    places = None if plugins is None else plugins.submodule_search_locations
    return any(pkgutil.iter_modules(places)) if places else False
