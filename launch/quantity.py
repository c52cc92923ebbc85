"""Amounts as Kubernetes writes them: 500m, 16Gi."""

from fractions import Fraction

_UNITS = {
    "m": Fraction(1, 1000),
    **{unit: Fraction(1000) ** power for power, unit in enumerate(("", "k", "M", "G", "T"))},
    **{unit: Fraction(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti"), 1)},
}


def as_number(amount: str) -> Fraction:
    """The number that an amount stands for, exactly; it is one by `launch.job_spec`'s rules."""
    digits = amount.rstrip("mkMGTi")
    return Fraction(digits) * _UNITS[amount[len(digits) :]]
