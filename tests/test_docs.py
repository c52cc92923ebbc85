"""The README's tree of files is the one that stands there, and the guides name no file in vain."""

import re

import pytest

from tests.conftest import ROOT

TREE = (ROOT / "README.md").read_text().partition("## What stands where")[2].split("```")[1]
FILE = re.compile(r"[\w./]*\w\.py\b")


def own_files(folder: str) -> set[str]:
    return {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}


@pytest.mark.parametrize("folder", ["distrain", "distrain/parallel"])
def test_the_tree_has_every_file(folder: str) -> None:
    named = {name.rsplit("/", 1)[-1] for name in FILE.findall(TREE)}
    assert own_files(folder) - named == set()


NAMES = ["numerics", "parallel", "metrics", "elastic", "stores"]
GUIDES = ["README.md", *(f"docs/{name}.md" for name in NAMES)]


@pytest.mark.parametrize("guide", GUIDES)
def test_every_file_that_is_named_is_there(guide: str) -> None:
    text = TREE if guide == "README.md" else (ROOT / guide).read_text()
    paths = [
        f"/{path.relative_to(ROOT)}" for path in ROOT.rglob("*.py") if ".venv" not in path.parts
    ]
    missing = [
        name for name in FILE.findall(text) if not any(p.endswith(f"/{name}") for p in paths)
    ]
    assert missing == []
