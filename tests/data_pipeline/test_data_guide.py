"""docs/data.md names what there is."""

import re

from data_pipeline.augment.registry import TRANSFORMS
from data_pipeline.manifest import Column
from data_pipeline.sources.detect import KINDS
from tests.conftest import ROOT

GUIDE = (ROOT / "docs" / "data.md").read_text()


def first_cells(head: str) -> list[str]:
    """The first cell of each row of the table with this head."""
    _, found, after = GUIDE.partition(head)
    assert found, head
    rows = after.split("\n\n")[0].splitlines()[2:]
    return [row.split("|")[1].strip() for row in rows]


def test_the_guide_has_all_kinds_of_sources() -> None:
    assert sorted(first_cells("| kind | what it is | columns |")) == sorted(
        f"`{kind}`" for kind in KINDS
    )


def test_the_guide_has_all_kinds_of_columns() -> None:
    kinds = Column.__annotations__["kind"].__args__
    assert sorted(first_cells("| kind | a row | in a batch |")) == sorted(
        f"`{kind}`" for kind in kinds
    )


def test_the_guide_has_all_transforms() -> None:
    cells = first_cells("| on the raw values | |")
    cells += first_cells("| on the scaled values, after all of those | |")
    named = re.findall(r"`(\w+)`", " ".join(cells))
    assert sorted(named) == sorted(TRANSFORMS)
    for table in re.findall(r"^\[data\.(?:augment|prepare)\.(\w+)\]", GUIDE, re.MULTILINE):
        assert table in TRANSFORMS
