"""How many time steps are linearised side by side."""

from elk_ssm._values import check_count

# What a core's cache holds, and a small part of an accelerator's memory.
_ENTRIES_AT_ONCE, _ENTRIES_ON_ACCELERATOR = 2**19, 2**28


class Chunked:
    """In common to those that take D tangents, `(D, D)`, for `chunk` steps at once.

    None for `chunk` is what a cache holds on a CPU, and a part of the memory elsewhere;
    `exact` ones have no such intermediate.
    """

    chunk: int | None
    exact: bool

    def check_chunk(self) -> None:
        """Raise unless `chunk` is None or a number of steps."""
        if self.chunk is not None:
            check_count("chunk", self.chunk, 1)

    def time_chunk(self, size: int) -> int | None:
        """Time steps linearised side by side."""
        return self._chunk(size, _ENTRIES_AT_ONCE)

    def accelerator_chunk(self, size: int) -> int | None:
        """The same where memory and not a cache is the limit."""
        return self._chunk(size, _ENTRIES_ON_ACCELERATOR)

    def _chunk(self, size: int, entries: int) -> int | None:
        return None if self.exact else self.chunk or max(entries // size**2, 1)
