"""Checks of what a transform was made with, and of the images that it is given."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.augment.transform import check_images
from data_pipeline.errors import DataError


def require(transform: object, argument: str, holds: bool, rule: str) -> None:
    """Refuses an argument for which its rule does not hold.

    Raises:
        ValueError: then; it names the class, the argument, its value and the rule.
    """
    if not holds:
        value = getattr(transform, argument)
        name = type(transform).__name__
        raise ValueError(f"{name}({argument}={value!r}): {argument} must {rule}")


def require_probability(transform: object, argument: str) -> None:
    """Refuses what is no probability."""
    require(transform, argument, 0.0 <= getattr(transform, argument) <= 1.0, "lie in [0, 1]")


def require_at_least(transform: object, argument: str, least: float) -> None:
    """Refuses what is smaller, infinite or not a number."""
    value = getattr(transform, argument)
    require(transform, argument, math.isfinite(value) and value >= least, f"be {least:g} or more")


def require_positive(transform: object, argument: str) -> None:
    """Refuses zero, what is negative, infinite or not a number."""
    value = getattr(transform, argument)
    require(transform, argument, math.isfinite(value) and value > 0, "be above 0")


def require_range(transform: object, low: str, high: str, least: float) -> None:
    """Refuses two arguments that are no range with both ends finite, the lower at least `least`."""
    bottom, top = getattr(transform, low), getattr(transform, high)
    require_at_least(transform, low, least)
    require(transform, high, math.isfinite(top) and bottom <= top, f"be finite and not below {low}")


def check_pixels(transform: object, rows: NDArray[Any]) -> None:
    """Refuses inputs that are no pictures `(B, C, H, W)` of uint8 or float32.

    Raises:
        DataError: always then; it names the transform's class.
    """
    name = type(transform).__name__
    check_images(name, rows)
    if rows.dtype not in (np.uint8, np.float32):
        raise DataError(
            f"{name} works on images of uint8 or float32, not of {rows.dtype}: write the data set "
            "anew as one of them"
        )
