"""What `k8s/README.md` has a person type or write is taken."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from distrain.errors import ExitCode
from launch.job_spec import MOST_IN_NAME, JobFile, JobSpec
from launch.main import main
from tests.conftest import ROOT

TEXT = (ROOT / "k8s" / "README.md").read_text()
CONSOLE = re.findall(r"```console\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [
    shlex.split(line[2:].split("|")[0].split("#")[0])
    for block in CONSOLE
    for line in block.replace("\\\n", "").splitlines()
]
ASKED = [words for words in COMMANDS if words[:2] == ["distrain", "kubernetes"]]
SUBMITTED = [words for words in COMMANDS if words[:2] == ["distrain", "submit"]]


def test_there_are_commands() -> None:
    assert len(SUBMITTED) >= 3
    assert {words[2] for words in ASKED} == {"status", "follow", "cancel"}
    assert len(COMMANDS) >= 15


@pytest.mark.parametrize("words", SUBMITTED, ids=" ".join)
def test_what_is_submitted_is_taken(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main([*words[1:], "--dry-run"])
    assert not ended.value.code
    assert all(manifest["metadata"] for manifest in yaml.safe_load_all(capsys.readouterr().out))


@pytest.mark.parametrize("words", ASKED, ids=" ".join)
def test_what_is_asked_of_a_cluster_is_taken(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words[1:], "--kubeconfig", str(tmp_path / "none")])
    assert ended.value.code == ExitCode.CONFIG  # what was typed is taken, and there is no cluster
    assert "there is no kubeconfig" in capsys.readouterr().err


def test_every_folder_that_is_applied_is_there() -> None:
    applied = [words[-1] for words in COMMANDS if words[:3] == ["kubectl", "apply", "-k"]]
    assert applied == ["k8s/base", "k8s/data", "k8s/shell"]
    for folder in applied:
        assert (ROOT / folder / "kustomization.yaml").is_file()


@pytest.mark.parametrize("number", [0, 1])
def test_what_is_built_upon_the_folders_is_built(number: int, tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl here to build kustomizations with")
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    written = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)[number]
    file = tmp_path / written.splitlines()[0].removeprefix("# ")
    file.parent.mkdir(parents=True)
    file.write_text(written)
    done = subprocess.run(
        [kubectl, "kustomize", file.parent], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("ReadWriteOnce", "registry.example.org/distrain:0.1.0")[number] in done.stdout


def test_the_table_of_exit_codes_is_the_rules() -> None:
    table = TEXT.partition("## What becomes of a pod that ends")[2].partition("\n\nThe rules")[0]
    rows = {
        row.split("|")[2].strip(): row.split("|")[1] for row in table.splitlines() if "|" in row
    }
    fatal = JobSpec(name="a" * MOST_IN_NAME, program=JobFile(toml="")).fatal_codes
    assert [int(code) for code in re.findall(r"\d+", rows["`FailJob`"])] == list(fatal)
    assert f"{ExitCode.WORKER_LOST} a lost worker" in rows["counted"]
    ignored = [row for row in table.splitlines() if "| `Ignore` |" in row]
    assert "DisruptionTarget" in ignored[0]
    assert f"{ExitCode.STOPPED} stopped" in ignored[1]
