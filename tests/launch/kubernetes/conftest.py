"""A server to ask, and the commands that ask it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api_server import ApiServer
from tests.cluster_objects import Commands


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as started:
        yield started


@pytest.fixture
def run(server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(server.kubeconfig(tmp_path), capsys)
