"""What a device can hold, so that plans that cannot fit are seen before they fail."""

import contextlib
import re
import sys
from collections.abc import Iterator

import jax

from elk_ssm._limits import limits, process_bytes

LIGHTER = (
    "diagonal Jacobians (elk.quasi_deer) or elk.auto() for dense ones, blocks "
    '(block_size=), keep="last" or "boundaries"'
)


class MemoryLimitError(ValueError):
    """What was asked for is known not to fit, before anything of it runs."""


def device_bytes() -> int | None:
    """Bytes that the default device may hold, or None where nothing says so.

    An accelerator's runtime knows its own limit; a CPU's is the memory of the machine,
    or what of it the process may have (`ulimit`, a container).
    """
    device = jax.local_devices()[0]
    found = device.memory_stats() or {}
    if "bytes_limit" in found:
        return int(found["bytes_limit"])
    if device.platform != "cpu":
        return None
    most = process_bytes()
    return None if most == sys.maxsize else most


def left_bytes() -> int | None:
    """Bytes of `device_bytes` that the process may still take, as far as is known.

    It changes from call to call, so only what is refused may depend on it.
    """
    most = device_bytes()
    if most is None or jax.local_devices()[0].platform != "cpu":
        return most
    return min([most, *(limit.left for limit in limits())])


def matrices_bytes(count: int, size: int, itemsize: int) -> int:
    """Bytes of so many matrices `(size, size)`."""
    return count * size**2 * itemsize


def in_words(number: int) -> str:
    """Write a number of bytes for a message.

    Example:
        >>> in_words(409_600_000_000), in_words(3_276_800_000)
        ('410 GB', '3.3 GB')
    """
    if number < 1e9:
        return f"{number / 1e6:,.0f} MB"
    return f"{number / 1e9:,.{0 if number >= 1e10 else 1}f} GB"


def out_of_memory(error: BaseException) -> str | None:
    """Say what did not fit, or None for an error that is none of memory.

    Example:
        >>> out_of_memory(MemoryError("Unable to allocate 9.2 GiB for an array"))
        'out of memory: Unable to allocate 9.2 GiB for an array'
    """
    if isinstance(error, MemoryLimitError):
        return f"out of memory: {str(error).rstrip('.')}"
    said = (str(error) or "nothing more could be allocated").splitlines()[0]
    if not isinstance(error, MemoryError):
        exhausted = "RESOURCE_EXHAUSTED" in said or "bad_alloc" in said
        if not isinstance(error, jax.errors.JaxRuntimeError) or not exhausted:
            return None
    asked = re.search(r"allocat\w* (\d+) bytes", said)
    if asked is None:
        return f"out of memory: {said.rstrip('.')}"
    size = in_words(int(asked[1]))
    return f"out of memory: the computation asked for {size} at once"


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Add to an error of memory what takes less of it."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        what = out_of_memory(error)
        if what is not None:
            error.add_note(f"elk_ssm: {what}. What takes less: {LIGHTER}.")
        raise
