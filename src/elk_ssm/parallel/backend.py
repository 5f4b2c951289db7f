"""Which scan runs: sequential on a CPU, associative on an accelerator.

A `lax.scan` compiles to one native loop on a CPU, where an associative scan is
1.5 to 33 times slower; on a GPU or TPU it is the other way round. With `"auto"` the
choice is made when the program is lowered, per platform, and only the branch in use
is lowered.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from elk_ssm._platforms import by_platform

Backend: TypeAlias = Literal["auto", "sequential", "associative"]
Result = TypeVar("Result")


def check_backend(backend: str) -> None:
    """Raise `ValueError` unless `backend` is one of the known names."""
    if backend not in get_args(Backend):
        raise ValueError(
            f"backend must be one of {', '.join(get_args(Backend))}; got {backend!r}."
        )


def by_backend(
    backend: Backend,
    sequential: Callable[..., Result],
    associative: Callable[..., Result],
    *operands: Any,
) -> Result:
    """Call the one of two equivalent functions that suits `backend`."""
    check_backend(backend)
    if backend == "sequential":
        return sequential(*operands)
    if backend == "associative":
        return associative(*operands)
    return by_platform(*operands, cpu=sequential, default=associative)
