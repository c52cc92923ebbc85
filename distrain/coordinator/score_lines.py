"""Scores for a person, in lines that fit 80 columns. No torch here: `distrain status` has them."""

import math
import textwrap
from collections.abc import Mapping

_COLUMNS = 80
INDENT = "  "
_TOGETHER = "\u00a0"
"""What no line is broken at."""


def score_lines(scores: Mapping[str, float | None]) -> list[str]:
    """An epoch's scores, those of training and then those of validation; None is not a number.

    They are to stand indented by two columns.
    """
    lines: list[str] = []
    for title, of_validation in (("training", False), ("validation", True)):
        texts = [
            f"{name.removeprefix('val_')}{_TOGETHER}{math.nan if score is None else score:.4f}"
            for name, score in scores.items()
            if name.startswith("val_") == of_validation
        ]
        lines += textwrap.wrap(
            ", ".join(texts),
            _COLUMNS - len(INDENT),
            initial_indent=f"{title:<10}  ",
            subsequent_indent=" " * 12,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return [line.replace(_TOGETHER, " ") for line in lines]
