"""What `distrain COMMAND --help` shows: all of it, at the width of a terminal."""

import argparse
from collections.abc import Iterator

import pytest

from launch.main import command_line


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """This one, and those of all commands below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


ALL = list(parsers(command_line()))


def test_there_are_commands() -> None:
    assert len(ALL) > 20


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("parser", ALL, ids=lambda parser: parser.prog)
def test_help_fits_a_terminal(
    monkeypatch: pytest.MonkeyPatch, parser: argparse.ArgumentParser, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert max(map(len, parser.format_help().splitlines())) <= columns


@pytest.mark.parametrize("parser", ALL, ids=lambda parser: parser.prog)
def test_every_option_is_explained(parser: argparse.ArgumentParser) -> None:
    bare = [
        action.dest
        for action in parser._actions
        if not action.help and not isinstance(action, argparse._SubParsersAction)
    ]
    assert bare == []


def test_every_command_is_listed() -> None:
    text = command_line().format_help()
    (commands,) = (
        action for action in ALL[0]._actions if isinstance(action, argparse._SubParsersAction)
    )
    listed = {line.split()[0] for line in text.splitlines() if line.startswith("  ")}
    assert set(commands.choices) <= listed
