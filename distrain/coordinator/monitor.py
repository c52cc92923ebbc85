"""Which score a rule goes by, and which way is better."""

from collections.abc import Mapping
from typing import Literal

from distrain.checks import near_names
from distrain.errors import ConfigError
from distrain.metric_names import is_error

Mode = Literal["auto", "min", "max"]
MODES = ("auto", "min", "max")


def settled_mode(
    rule: str, monitor: str, mode: Mode, directions: Mapping[str, bool | None]
) -> Literal["min", "max"]:
    """Whether less or more of a score is better.

    Args:
        rule: What goes by it, for messages: "early stopping watches".
        monitor: The score.
        mode: As the user gave it.
        directions: By score that each epoch will have: whether less is better, None where nobody
            says.

    Raises:
        ConfigError: no epoch will have the score (the near ones are named), or nobody says.
    """
    if monitor not in directions:
        validation = [name for name in directions if name.startswith("val_")]
        same = [name for name in validation if name.endswith(f"_{monitor.removeprefix('val_')}")]
        hint = near_names(monitor, list(directions))
        if same:
            hint = f"on validation sets it measures {', '.join(same)}"
        raise ConfigError(f"{rule} {monitor!r}, which this run does not measure; {hint}")
    if mode != "auto":
        return mode
    less = directions[monitor]
    if less is None:
        raise ConfigError(
            f"{rule} {monitor!r}, and nothing says whether less of it is better: give mode "
            '"min" or "max", or TorchMetric(..., less_is_better=...)'
        )
    return "min" if less else "max"


def beats(name: str, mode: str, score: float, best: float, min_delta: float = 0.0) -> bool:
    """Whether a score of that name is better than another by more than `min_delta`."""
    less = mode == "min" or (mode == "auto" and is_error(name))
    return score < best - min_delta if less else score > best + min_delta
