"""What stands in `k8s/` is what `distrain submit kubernetes` prints, in each form.

`make manifests` records it anew, for a person to look at what has changed.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.kubernetes.options import FORMS
from tests.conftest import ROOT, TIMEOUT_S, clean_environment
from tests.manifest_checks import check

JOB = "examples/digits.toml"

Leaves = dict[tuple[str | int, ...], Any]


def distrain(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "launch.main", *arguments],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )


def printed(form: str, *options: str) -> str:
    arguments = ("kubernetes", JOB, "--nodes", "2", "--form", form, "--dry-run", *options)
    return distrain("submit", *arguments).stdout


def recorded(form: str) -> str:
    return (ROOT / "k8s" / form / "digits.yaml").read_text()


def leaves(found: Any, *path: str | int) -> Leaves:
    """Every single value, by where it stands."""
    if isinstance(found, dict):
        parts: Any = found.items()
    elif isinstance(found, list):
        parts = enumerate(found)
    else:
        return {path: found}
    inner: Leaves = {}
    for name, value in parts:
        inner |= leaves(value, *path, name)
    return inner or {path: type(found)()}


def of(text: str) -> Leaves:
    return leaves({manifest["kind"]: manifest for manifest in yaml.safe_load_all(text)})


@pytest.mark.parametrize("form", FORMS)
def test_what_is_printed_is_what_is_recorded(form: str) -> None:
    assert printed(form) == recorded(form), "make manifests records it anew"


@pytest.mark.parametrize("form", FORMS)
def test_what_is_recorded_fits_the_schemas(form: str) -> None:
    found = list(yaml.safe_load_all(recorded(form)))
    assert len(found) == 4 - (form == "jobset")
    for manifest in found:
        check(manifest)


NODE = {
    "job": ("Job", "spec", "template", "spec", "containers", 0),
    "jobset": (
        *("JobSet", "spec", "replicatedJobs", 0, "template", "spec"),
        *("template", "spec", "containers", 0),
    ),
    "trainjob": ("TrainJob", "spec", "trainer"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("options", "differs"),
    [
        (("--workers", "4"), {("args", 9): "4"}),
        (("--max-restarts", "0"), {("args", 11): "0"}),
        (
            ("--env", "NCCL_DEBUG=INFO"),
            {("env", 7, "name"): "NCCL_DEBUG", ("env", 7, "value"): "INFO"},
        ),
    ],
)
def test_it_differs_in_nothing_but_what_was_asked(
    form: str, options: tuple[str, ...], differs: Leaves
) -> None:
    before, after = of(recorded(form)), of(printed(form, *options))
    assert {path: value for path, value in after.items() if before.get(path) != value} == {
        (*NODE[form], *path): value for path, value in differs.items()
    }
    assert before.keys() <= after.keys()


def test_a_job_is_sent_as_resolved() -> None:
    before, after = of(recorded("job")), of(printed("job", "--optimizer.lr", "0.25"))
    (changed,) = (path for path, value in after.items() if before.get(path) != value)
    assert changed == ("ConfigMap", "data", "job.toml")
    lines = dict(zip(before[changed].splitlines(), after[changed].splitlines(), strict=True))
    assert {was: is_ for was, is_ in lines.items() if was != is_} == {"lr = 0.1": "lr = 0.25"}


@pytest.mark.parametrize(
    "arguments", [("--help",), ("submit", "kubernetes", JOB, "--nodes", "2", "--dry-run")]
)
def test_half_a_second_is_enough(arguments: tuple[str, ...]) -> None:
    def seconds() -> float:
        before = os.times()
        distrain(*arguments)
        after = os.times()
        return (
            after.children_user
            + after.children_system
            - (before.children_user + before.children_system)
        )

    # The processor's, which is what the command takes where nothing else runs.
    assert min(seconds() for _ in range(3)) < 0.5


def test_no_torch_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from launch.main import main\n"
        "try:\n"
        f"    main(['submit', 'kubernetes', {str(ROOT / JOB)!r}, '--nodes', '2', '--dry-run'])\n"
        "except SystemExit as ended:\n"
        "    assert ended.code == 0\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(),
        cwd=tmp_path,
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0
