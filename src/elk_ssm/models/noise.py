"""The observation noise of a model: a kind without a state."""

from dataclasses import dataclass

from elk_ssm.models.bijections import positive
from elk_ssm.models.component import Kind, Parameter


@dataclass(frozen=True)
class Noise(Kind):
    """Independent noise of every emission."""

    count: int

    @property
    def specs(self) -> dict[str, Parameter]:
        """A variance, or one for each of several emissions."""
        default = 1.0 if self.count == 1 else (1.0,) * self.count
        return {"variance": Parameter(default, positive, 0.3)}

    @property
    def states(self) -> tuple[str, ...]:
        """None."""
        return ()
