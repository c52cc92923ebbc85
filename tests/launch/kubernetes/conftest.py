"""A server to ask, and the commands that ask it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api_server import ApiServer
from tests.cluster_objects import Commands, job, pod


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as started:
        yield started


@pytest.fixture
def begun(server: ApiServer) -> ApiServer:
    """A server with a job whose two nodes run."""
    server.put(job())
    server.put(pod(0))
    server.put(pod(1))
    return server


@pytest.fixture
def run(server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(server.kubeconfig(tmp_path), capsys)
