r"""The default: needs no tuning, cannot diverge, and costs a bounded number of passes.

**Where scans are sequential (CPU).** A recurrence that forgets its past is evaluated in
blocks side by side, one that does not step by step, because there nothing is faster:
see `solve.forgetful`. In the worst case that is sequential evaluation after a probe and
`max_passes` passes.

**Where scans are parallel (GPU, TPU).** There every operation is a launch, and nothing
is cheaper than evaluating f for all of time at once: short blocks are rolled out until
they fit together, see `solve.short_blocks`. What does not forget goes on with Newton's
method over the blocks with the gate; the exact prefix bounds it by T / C passes of C
steps.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from elk_ssm._memory import device_bytes, matrices_bytes
from elk_ssm._trees import static
from elk_ssm._values import Value, register_part
from elk_ssm.solve.gate import Gate
from elk_ssm.solve.method import Method, check_parts
from elk_ssm.solve.nodes import near_divisor
from elk_ssm.surrogate.jacobians import (
    DenseJacobian,
    ZeroJacobian,
)
from elk_ssm.surrogate.linearization import Linearization, is_zero
from elk_ssm.surrogate.policy import NoisePolicy

Strategy: TypeAlias = Literal[
    "auto", "forgetful", "short_blocks", "newton", "sequential"
]
# Matrices that a scan over them has in memory at once, and as much for all else.
_COPIES = 4
_DENSE_UP_TO, _CHEAP_UP_TO = 64, 8
# Measured break-even lengths on a CPU (docs/speed.md), for D <= 8 and above.
_SHORTEST_CHEAP, _SHORTEST = 2_000, 4_000
_LEAST_BLOCK, _LARGEST_BLOCK = 32, 1024
# Short blocks on an accelerator: bounds of C, most steps of all passes, and what moving
# a state costs beside two launches for a recurrence that forgets in some 40 steps.
_LEAST_SHORT, _LARGEST_SHORT, _MOST_STEPS = 8, 64, 512
_MOVING_OVER_LAUNCHING = 1.28e-4


@register_part
@dataclass(frozen=True, eq=False)
class Auto(Value):
    """The automatic method; every choice can be fixed by hand.

    Attributes:
        gate: Gate of the Newton strategy.
        linearization: Boundary linearisation of the Newton strategy; None chooses dense
            for D <= 64 and zero above.
        noise: Noise policy of the Newton strategy where its linearisation is not zero;
            None is undamped, which with the gate takes fewer and cheaper passes.
        block_size: Steps C in a block, or None to choose from T and D.
        strategy: `"forgetful"`, `"short_blocks"`, `"newton"`, `"sequential"`, or
            `"auto"` by platform.
        max_passes: Largest number of passes of the forgetful strategy, burn-in and
            collection, before what is left is evaluated sequentially. None is 4 for
            D <= 8, where a pass over blocks costs a fifth of a scan, and 2 above. Of
            short blocks, the passes before Newton's method takes over; None is as many
            as 512 steps give.

    Raises:
        TypeError: A part is a class, a word or a number.
        ValueError: An unknown strategy, or a size that is not positive.

    Example:
        >>> import elk_ssm as elk
        >>> elk.Auto().newton(length=1000, size=4).block_size
        16
    """

    gate: Gate | None = Gate()
    linearization: Linearization | None = None
    noise: NoisePolicy | None = None
    block_size: int | None = static(default=None)
    strategy: Strategy = static(default="auto")
    max_passes: int | None = static(default=None)

    def __post_init__(self) -> None:
        check_parts(self.linearization, self.noise, self.gate)
        if self.strategy not in get_args(Strategy):
            raise ValueError(
                f"strategy must be one of {', '.join(get_args(Strategy))}; got "
                f"{self.strategy!r}."
            )
        size = self.block_size
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ValueError(f"block_size must be a positive integer; got {size!r}.")
        if self.max_passes is not None and self.max_passes < 2:
            raise ValueError(f"max_passes must be at least 2; got {self.max_passes}.")

    def most_passes(self, size: int) -> int:
        """Largest number of passes of the forgetful strategy in D dimensions."""
        if self.max_passes is not None:
            return self.max_passes
        return 4 if size <= _CHEAP_UP_TO else 2

    def forgetful_block_size(self, length: int, size: int) -> int:
        """Block size C of the forgetful strategy.

        Every step of all lanes has a fixed cost, every block a burn-in, whose cost
        grows with D: the best C grows as sqrt(T D). A divisor of T leaves no rest.
        """
        if self.block_size is not None:
            return self.block_size
        best = (length * max(size, 4) / 16) ** 0.5
        return near_divisor(length, min(max(best, _LEAST_BLOCK), _LARGEST_BLOCK))

    def largest_batch_in_blocks(self, size: int) -> int:
        """Batches up to this size are evaluated in blocks, one after the other."""
        return 8 if size <= _CHEAP_UP_TO else 4

    def forgetful_pays(self, length: int, size: int) -> bool:
        """Whether blocks can win at all: each of their steps has a fixed cost."""
        if self.block_size is not None:
            return length >= 4 * self.block_size * (self.most_passes(size) - 1)
        return length >= (_SHORTEST_CHEAP if size <= _CHEAP_UP_TO else _SHORTEST)

    def short_block_size(self, length: int, width: int) -> int:
        """Block size C of short blocks, for `width` numbers in every step of a batch.

        A pass costs C launches or so, and the passes move the states about L / C times
        through memory: the best C grows as the square root of what there is to move.
        """
        if self.block_size is not None:
            return self.block_size
        best = round((length * width * _MOVING_OVER_LAUNCHING) ** 0.5)
        return min(max(best, _LEAST_SHORT), _LARGEST_SHORT)

    def most_short_passes(self, block_size: int) -> int:
        """Largest number of passes over short blocks before Newton's method."""
        if self.max_passes is not None:
            return self.max_passes
        return max(4, _MOST_STEPS // block_size)

    def newton(self, length: int, size: int, block_size: int | None = None) -> Method:
        """Return the method of the Newton strategy, its C chosen or given."""
        block_size = self.block_size if block_size is None else block_size
        if block_size is None:
            # Depth is passes * (C + 2 log2(T / C)), and passes fall slowly with C.
            block_size = 16 if length < 100_000 else 64
            block_size = max(block_size, _least_that_fits(length, size))
        linearization = self.linearization
        if linearization is None:
            dense = size <= _DENSE_UP_TO
            linearization = DenseJacobian() if dense else ZeroJacobian()
        # Without a Jacobian there is nothing to propagate that damping could tame.
        damped = not is_zero(linearization)
        return Method(
            linearization,
            noise=self.noise if damped else None,
            gate=self.gate,
            block_size=min(block_size, length),
        )


def _least_that_fits(length: int, size: int) -> int:
    """Smallest block size whose boundary Jacobians leave room on the device."""
    limit = device_bytes()
    if limit is None or size > _DENSE_UP_TO:
        return 1
    return -(-matrices_bytes(length, size, 8) * _COPIES // limit)
