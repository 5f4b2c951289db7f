"""What a device can hold, so that plans that cannot fit are seen before they fail."""

import os

import jax


def device_bytes() -> int | None:
    """Bytes that the default device may hold, or None where nothing says so.

    An accelerator's runtime knows its own limit; a CPU's is the memory of the machine.
    """
    device = jax.local_devices()[0]
    found = device.memory_stats() or {}
    if "bytes_limit" in found:
        return int(found["bytes_limit"])
    if device.platform != "cpu":
        return None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def matrices_bytes(count: int, size: int, itemsize: int) -> int:
    """Bytes of so many matrices `(size, size)`."""
    return count * size**2 * itemsize


def in_words(number: int) -> str:
    """Write a number of bytes for a message.

    Example:
        >>> in_words(409_600_000_000)
        '410 GB'
    """
    return f"{number / 1e9:,.0f} GB" if number >= 1e9 else f"{number / 1e6:,.0f} MB"
