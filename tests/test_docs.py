"""The README's tree is the one that stands there; the guides name no file or command in vain."""

import re
import shlex

import pytest

from launch.main import command_line
from tests.conftest import ROOT

TREE = (ROOT / "README.md").read_text().partition("## What stands where")[2].split("```")[1]
FILE = re.compile(r"[\w./]*\w\.py\b")


def own_files(folder: str) -> set[str]:
    return {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}


ROOMS = ["distrain", "distrain/parallel"]
ROOMS += ["launch", *(f"launch/{name}" for name in ("kubernetes", "machines", "output", "slurm"))]


@pytest.mark.parametrize("folder", ROOMS)
def test_the_tree_has_every_file(folder: str) -> None:
    named = {name.rsplit("/", 1)[-1] for name in FILE.findall(TREE)}
    assert own_files(folder) - named == set()


DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
GUIDES = ["README.md", "k8s/README.md", "SECURITY.md", *DOCS]


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


def commands_in(guide: str) -> list[str]:
    """What a person is to type, without the prompt."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / guide).read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    return [line[2:] for line in lines if line.startswith("$ distrain ")]


COMMANDS = [command for guide in GUIDES for command in commands_in(guide)]


def test_the_guides_have_commands() -> None:
    assert {command.split()[1] for command in COMMANDS} >= {"train", "launch", "submit", "replay"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_guides_is_one_that_there_is(command: str) -> None:
    words = shlex.split(command.split("|", maxsplit=1)[0], comments=True)[1:]
    _, left = command_line().parse_known_args(words)
    options = [word for word in left if word.startswith("-")]
    assert all(re.match(r"--[a-z_]+\.[a-z]", option) for option in options)
