"""Bridges to other packages, each imported only when used: `elk.interop.dynamax`."""

from importlib import import_module
from types import ModuleType

_BRIDGES = (
    "arviz",
    "blackjax",
    "cells",
    "diffrax",
    "dynamax",
    "dynamax_nonlinear",
    "tfp",
)


def __getattr__(name: str) -> ModuleType:
    if name in _BRIDGES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_BRIDGES]
