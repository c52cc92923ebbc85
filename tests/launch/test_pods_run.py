"""The manifests' pods, really run: two processes find each other by the names that they are given.

What is printed by `submit --dry-run` is taken apart as the controllers and the kubelet do, without
a cluster: see `tests.pods` for what is done for a container.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.alone import distrain_alone
from tests.hosts import Hosts, connected_hosts, why_not
from tests.pods import Pod, expanded, form_in
from tests.run_folders import outcome, status
from tests.started import JOB, Started, unbroken

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no hosts can be had: {why_not()}")

EPOCHS = ("--training.epochs", 2)
LITERAL = "$(HOME) costs $5, or $$5; $(NOTHING) 'more' \"or\" less"


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with connected_hosts(2) as hosts:
        yield hosts


def submitted(form: str) -> list[dict[str, Any]]:
    """What a person would send."""
    nodes = ("--nodes", 2, "--workers", 2, "--env", f"GREETING={LITERAL}")
    done = distrain_alone("submit", "kubernetes", JOB, *nodes, "--form", form, "--dry-run", *EPOCHS)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def volumes_of(manifests: list[dict[str, Any]], digits: Path, folder: Path) -> dict[str, Path]:
    """The ConfigMap's files, and the two claims, one with data and one that the user may write."""
    (job_map,) = [each for each in manifests if each["kind"] == "ConfigMap"]
    volumes = {
        job_map["metadata"]["name"]: folder / "config",
        "distrain-shards": folder / "shards",
        "distrain-runs": folder / "runs",
    }
    for made in volumes.values():
        made.mkdir(mode=0o755)
    for name, text in job_map["data"].items():
        (folder / "config" / name).write_text(text)
    shutil.copytree(digits, folder / "shards" / "digits")
    (folder / "shards" / "digits").chmod(0o755)
    os.chown(folder / "runs", 1000, 1000)
    return volumes


FIRST_PODS = {
    "job": "digits-0",
    "jobset": "digits-node-0-0",
    "trainjob": "digits-node-0-0",  # it makes a JobSet
}


@pytest.mark.parametrize("form", list(FIRST_PODS))
def test_the_pods_of_each_form_meet_by_name_and_end_with_the_unbroken_runs_bits(
    form: str, hosts: Hosts, digits: Path, tmp_path: Path
) -> None:
    first, manifests = FIRST_PODS[form], submitted(form)
    found = form_in(manifests)
    volumes = volumes_of(manifests, digits, tmp_path)
    pods = [Pod(found, index, volumes, tmp_path / f"pod-{index}") for index in range(found.count)]
    assert [pod.hostname for pod in pods] == [first, f"{first[:-1]}1"]
    assert pods[1].variables()["GREETING"] == LITERAL
    # As in a cluster, where the others are there before the first one's name is.
    with Started(program=pods[1].on(hosts, 1)) as second:
        second.until(lambda: "can't be resolved" in second.said)
        hosts.call(f"{first}.{found.subdomain}", 0)
        with Started(program=pods[0].on(hosts, 0)) as keeper:
            assert (keeper.ends(), second.ends()) == (0, 0), keeper.said + second.said
    run = tmp_path / "runs" / "digits"
    assert (status(run)["host"], status(run)["workers"]) == (first, 4)
    assert {path.stat().st_uid for path in run.rglob("*")} == {1000}
    assert outcome(run) == unbroken(digits, *EPOCHS)


@pytest.mark.parametrize(
    ("written", "given"),
    [
        ("$(A)", "1"),
        ("--k=$(A)$(B)", "--k=12"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(NOBODY) $A $ $", "$(NOBODY) $A $ $"),
    ],
)
def test_a_word_is_expanded_as_the_kubelet_does(written: str, given: str) -> None:
    """Cases of kubernetes/kubernetes' third_party/forked/golang/expansion."""
    assert expanded(written, {"A": "1", "B": "2"}) == given
