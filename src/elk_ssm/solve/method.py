"""A method is data: how to linearise, how much to damp, which estimate and blocks."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from elk_ssm._trees import static
from elk_ssm._values import Value, register_part
from elk_ssm.solve.anderson import Anderson
from elk_ssm.solve.gate import Gate
from elk_ssm.surrogate.linearization import Linearization
from elk_ssm.surrogate.policy import NoisePolicy

Estimate: TypeAlias = Literal["filter", "smoother"]


def check_parts(linearization: Any, noise: Any, gate: Any) -> None:
    """Raise `TypeError` for a class, a word or a number where an object belongs."""
    examples = {
        "linearization": (linearization, "elk.DiagonalJacobian()"),
        "noise": (noise, "elk.Constant(1e2), or pass a number to elk.quasi_elk"),
        "gate": (gate, "elk.Gate()"),
    }
    for name, (part, example) in examples.items():
        number = isinstance(part, type | str | bool | int | float | np.generic)
        if number or isinstance(part, jax.Array | np.ndarray):
            raise TypeError(
                f"{name} must be an object such as {example}; got {part!r}."
            )


@register_part
@dataclass(frozen=True, eq=False)
class Method(Value):
    """A pairing of small parts; the published names are factories for it.

    Numbers inside the parts (noise, gate factor) are data: they may be traced, mapped
    over and changed without recompiling. Choices are static.

    Attributes:
        linearization: What stands for the Jacobian of f.
        noise: Policy for the observation noise s^2, or None for no damping.
        gate: The gate, or None.
        estimate: `"filter"` (causal) or `"smoother"` (the Levenberg-Marquardt step).
            Without noise the two are the same.
        block_size: Steps C of f between two unknowns.
        anderson: How undamped steps are mixed with those of earlier passes, or None.

    Raises:
        TypeError: A part is a class, a word or a number, or what mixes no `Anderson`.
        ValueError: An unknown estimate, a block size that is not a positive integer, or
            noise and `anderson` together.

    Example:
        >>> import elk_ssm as elk
        >>> elk.Method(elk.DiagonalJacobian(), noise=elk.Constant(1e2)).block_size
        1
    """

    linearization: Linearization
    noise: NoisePolicy | None = None
    gate: Gate | None = None
    estimate: Estimate = static(default="filter")
    block_size: int = static(default=1)
    anderson: Anderson | None = None

    def __post_init__(self) -> None:
        check_parts(self.linearization, self.noise, self.gate)
        if self.estimate not in ("filter", "smoother"):
            raise ValueError(
                f'estimate must be "filter" or "smoother"; got {self.estimate!r}.'
            )
        if not isinstance(self.block_size, int) or self.block_size < 1:
            raise ValueError(
                f"block_size must be a positive integer; got {self.block_size!r}."
            )
        if not isinstance(self.anderson, Anderson | None):
            raise TypeError(
                f"anderson must be an elk.Anderson or None; got {self.anderson!r}."
            )
        if self.anderson is not None and self.noise is not None:
            raise ValueError(
                "anderson mixes undamped steps, and noise damps them: leave one out."
            )
