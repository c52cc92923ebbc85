"""`MIN:MAX` of the command line: how many workers or machines there may be."""

from dataclasses import dataclass
from typing import Self

from distrain.errors import UsageError


@dataclass(frozen=True)
class NumberRange:
    """Two numbers from 1 on, the smaller one first."""

    least: int
    most: int

    @classmethod
    def parse(cls, option: str, text: str) -> Self:
        """From the command line: one number stands for both.

        Raises:
            UsageError: it is no such range, or a number is below 1.
        """
        first, colon, second = text.partition(":")
        least, most = first.strip(), (second if colon else first).strip()
        if not all(number.isdecimal() and len(number) < 10 for number in (least, most)):
            raise UsageError(f"{option} is {text[:80]!r}; give a number, or MIN:MAX such as 1:4")
        found = cls(int(least), int(most))
        if found.least < 1:
            raise UsageError(f"{option} is {text}; at least 1 is needed")
        if found.most < found.least:
            raise UsageError(f"{option} is {text}; MIN:MAX has the smaller number first")
        return found

    @property
    def is_elastic(self) -> bool:
        """Whether the number may change while a run goes on."""
        return self.least < self.most

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.least}:{self.most}" if self.is_elastic else str(self.least)
