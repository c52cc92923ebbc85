"""Objects as a cluster keeps them while a job of two nodes runs, and the commands on it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from launch.kubernetes.kinds import NODE_LABEL
from launch.kubernetes.labels import own_labels
from launch.main import main
from tests.api_server import ApiServer, Object

API_VERSIONS = {
    "Job": "batch/v1",
    "JobSet": "jobset.x-k8s.io/v1alpha2",
    "TrainJob": "trainer.kubeflow.org/v1alpha1",
}
_MOST_S = 120

BEGUN = "2026-11-23T07:00:00Z"
STAMP = "2026-11-23T07:05:00"


def job(
    kind: str = "Job", name: str = "digits", status: Object | None = None, **spec: Any
) -> Object:
    """A job as it was submitted."""
    if kind == "JobSet":
        spec = {"replicatedJobs": [{"name": "node", "replicas": 1}], **spec}
    return {
        "apiVersion": API_VERSIONS[kind],
        "kind": kind,
        "metadata": {"name": name, "labels": own_labels(name), "creationTimestamp": BEGUN},
        "spec": spec,
        "status": status or {},
    }


def ended(kind: str, reason: str = "", message: str = "") -> Object:
    """A `status` by which a job has ended."""
    told = {"type": kind, "status": "True", "reason": reason, "message": message}
    return {"conditions": [told]}


def pod(
    number: int,
    phase: str = "Running",
    code: int | None = None,
    *,
    name: str | None = None,
    job_name: str = "digits",
    created: str = BEGUN,
    **status: Any,
) -> Object:
    """A node's pod; with an exit code its container has ended."""
    state: Object = {"running": {}} if phase == "Running" else {}
    if phase == "Pending":
        state = {"waiting": {"reason": "ContainerCreating"}}
    if code is not None:
        state = {"terminated": {"exitCode": code, "finishedAt": "2026-11-23T07:10:00Z"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name or f"{job_name}-{number}-abcde",
            "labels": {**own_labels(job_name), NODE_LABEL: str(number)},
            "creationTimestamp": created,
        },
        "spec": {"containers": [{"name": "node"}], "nodeName": f"worker-{number}"},
        "status": {
            "phase": phase,
            "containerStatuses": [{"name": "node", "state": state}],
            **status,
        },
    }


def event(of: Object, reason: str, message: str, *, number: int = 1, **more: Any) -> Object:
    """An event about an object."""
    names = ("name", "uid")
    about = {"kind": of["kind"], **{name: of["metadata"].get(name) for name in names}}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{about['name']}.{reason.lower()}.{number}"},
        "involvedObject": about,
        "reason": reason,
        "message": message,
        "type": "Warning",
        "lastTimestamp": "2026-11-23T07:01:00Z",
        **more,
    }


def lines(first: int, last: int) -> list[str]:
    """Lines of a log, three to a second, so that a log asked for again repeats some of them."""
    return [f"{STAMP[:-2]}{n // 3:02}.{n % 3}00000000Z step {n}" for n in range(first, last + 1)]


def steps(first: int, last: int) -> str:
    """What such lines say."""
    return "".join(f"step {n}\n" for n in range(first, last + 1))


def finish(server: ApiServer) -> None:
    """Has the job's two nodes end well."""
    for number in (0, 1):
        server.put(pod(number, "Succeeded", 0))
    server.change("Job", "digits", status=ended("Complete"))


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it has said."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> str:
        """What it said of the job, in one line however a terminal would wrap it."""
        return " ".join(self.err.split())


class Commands:
    """Runs `distrain` in this process against a server."""

    def __init__(self, kubeconfig: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._kubeconfig, self._capsys = kubeconfig, capsys

    def __call__(self, *arguments: object) -> Said:
        words = [*map(str, arguments)]
        with pytest.raises(SystemExit) as ended, _in_time():
            main([*words[:2], "--kubeconfig", str(self._kubeconfig), *words[2:]])
        code = ended.value.code
        assert isinstance(code, int)
        told = self._capsys.readouterr()
        return Said(code, told.out, told.err)


@contextmanager
def _in_time() -> Iterator[None]:
    """What waits in vain fails the test, and does not hold up the others."""

    def give_up(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_MOST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def meanwhile(happens: Callable[[], None]) -> Iterator[None]:
    """Has something happen beside what is done within; what fails there fails the test."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            happens()
        except BaseException as error:  # noqa: BLE001 - raised by the test's own thread
            failures.append(error)

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        for failure in failures:
            raise failure
