"""Checks of a job's values: what was given, the rule, and what would do. Nothing imports torch."""

import math
from collections.abc import Collection
from difflib import get_close_matches

from distrain.errors import ConfigError


def near_names(name: str, known: Collection[str]) -> str:
    """A hint for a name that is not known: the near ones, or all where none is near."""
    near = get_close_matches(name, known, n=3)
    near = near or [other for other in known if other in name or name in other]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known are {', '.join(sorted(known))}"


def check_known(where: str, name: str, known: Collection[str]) -> None:
    """Refuses a name that is not among the known ones."""
    if name not in known:
        raise ConfigError(f"{where} is {name!r}, which is not known; {near_names(name, known)}")


def check_at_least(where: str, value: float | None, least: float) -> None:
    """Refuses what is less, and NaN; None is nothing given."""
    if value is not None and not value >= least:
        raise ConfigError(f"{where} is {value}; it must be {least} or more")


def check_above_zero(where: str, value: float | None) -> None:
    """Refuses 0, what is less, NaN and infinity; None is nothing given."""
    if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"{where} is {value}; it must be above 0, and finite")
