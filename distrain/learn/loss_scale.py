"""Dynamic loss scaling for float16, as pure logic.

float16 has no number below 6e-8: most small gradients would be 0. So the backward pass runs on the
loss times a scale, and the summed gradient is divided by it again, which is exact: the scale is a
power of two. Where it is too large a gradient overflows; that step is skipped and the scale halved
(Micikevicius et al., Mixed Precision Training, https://arxiv.org/abs/1710.03740, section 3.2). The
numbers are the defaults of torch.amp.GradScaler,
https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling.
"""

from dataclasses import dataclass

INITIAL_SCALE = 2.0**16
FACTOR = 2.0
GROWTH_INTERVAL = 2000
"""Good steps in a row after which the scale grows."""


@dataclass(frozen=True)
class LossScale:
    """The scale for the next step.

    Attributes:
        scale: A power of two.
        good_steps: Steps without an overflow since the scale has moved.
    """

    scale: float = INITIAL_SCALE
    good_steps: int = 0

    def after(self, *, overflow: bool) -> "LossScale":
        """The scale after a step."""
        if overflow:
            return LossScale(self.scale / FACTOR)
        if self.good_steps + 1 == GROWTH_INTERVAL:
            return LossScale(self.scale * FACTOR)
        return LossScale(self.scale, self.good_steps + 1)

    @property
    def is_spent(self) -> bool:
        """Whether it is below 1, where an overflow has another cause than the scale."""
        return self.scale < 1.0
