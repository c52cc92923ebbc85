"""Each launcher's exit code for each way to end; what is not said elsewhere is tried here.

`CELLS` is the table: who is asked to run something, how that ends, and the test that has seen it.
A plain torchrun exits with 1 whatever happens: there `status.json` in the run's folder tells, or,
where the run has not got as far, torchrun's own report of its worker. With `distrain train` for its
program that names our code; of a script that has raised it is Python's 1, below the error itself.
"""

import ast
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from torch.distributed import run as torchrun

from tests.alone import distrain_alone, script_alone
from tests.conftest import Completed
from tests.hosts import Hosts, connected_hosts, why_not
from tests.pods import Pod, form_in
from tests.run_folders import last_step, outcome, status
from tests.started import FAULTY_JOB, JOB, STOPPED, Started, train, unbroken

OUTCOMES = ("success", "usage", "data", "program", "preemption", "storage", "killed worker")

SHORT = ("--training.epochs", 2)

_HERE = "test_exit_codes_of_launchers"

CELLS: dict[str, dict[str, str]] = {
    "distrain train": {
        "success": "test_exit_codes::test_0_for_a_run_that_is_done",
        "usage": "test_exit_codes::test_64_for_wrong_usage",
        "data": "test_exit_codes::test_65_for_data_that_is_missing",
        "program": "test_exit_codes::test_70_for_a_model_that_raises_which_is_not_tried_again",
        "preemption": "test_exit_codes::test_75_for_a_run_that_was_stopped",
        "storage": "test_exit_codes::test_74_for_a_run_folder_that_cannot_be_made",
        "killed worker": "test_exit_codes::test_69_for_a_worker_that_is_lost_more_often_than_"
        "restarts_were_granted",
    },
    "distrain launch": {
        "success": "test_workers::test_a_worker_that_leaves_with_0_has_done_its_work",
        "usage": "test_train_command::test_wrong_commands_exit_with_64",
        **dict.fromkeys(
            ("data", "program", "preemption", "storage"),
            "test_script_exit_codes::test_launch_with_one_worker",
        ),
        "killed worker": "test_workers::test_a_killed_worker_ends_all_and_is_named",
    },
    "torchrun": {
        "success": f"{_HERE}::test_a_job_is_one_run_of_torchruns_workers_which_start_no_others",
        "usage": f"{_HERE}::test_torchruns_report_names_the_code_of_a_command_of_ours",
        "data": "test_script_exit_codes::test_under_torchrun_a_run_that_cannot_be_says_why_and_"
        "leaves_nothing",
        "storage": "test_script_exit_codes::test_under_torchrun_a_run_that_cannot_be_says_why_and_"
        "leaves_nothing",
        **dict.fromkeys(
            ("program", "preemption", "killed worker"),
            "test_script_exit_codes::test_under_torchrun_the_status_says_what_its_exit_code_does_"
            "not",
        ),
    },
    "distrain train on Horovod": {
        "success": "test_horovod_workers::test_the_bits_are_those_of_the_torch_backend",
        "usage": f"{_HERE}::test_64_on_horovod_for_wrong_usage",
        "data": "test_horovod_workers::test_65_for_a_shard_that_a_worker_finds_damaged",
        "program": "test_horovod_workers::test_70_for_a_model_that_raises",
        "preemption": "test_horovod_workers::test_stopped_on_horovod_and_then_on_torch_a_run_ends_"
        "at_the_same_bits",
        "storage": f"{_HERE}::test_74_on_horovod_for_a_run_folder_that_cannot_be_made",
        "killed worker": "test_horovod_workers::test_69_for_a_worker_that_is_lost_too_often_and_"
        "torch_goes_on",
    },
    "distrain train on Horovod, of several hosts": {
        "success": "test_horovod_hosts::test_workers_on_two_networks_give_the_bits_of_one_worker",
        **dict.fromkeys(
            ("usage", "data", "storage", "killed worker"),
            "test_horovod_hosts::test_what_a_worker_ends_by_is_how_the_command_ends",
        ),
        "program": "test_horovod_hosts::test_a_fault_of_the_program_is_told_once_with_its_code",
        "preemption": "test_horovod_hosts::test_a_stop_saves_and_the_run_goes_on_to_the_same_bits",
    },
    "sbatch": {
        "success": "slurm/test_cluster::test_a_job_of_two_nodes_is_preempted_requeued_and_ends_"
        "with_the_bits_of_the_unbroken_run",
        **dict.fromkeys(
            ("usage", "data", "program", "storage"),
            "slurm/test_cluster::test_the_launchers_exit_code_is_the_jobs",
        ),
        "preemption": "slurm/test_cluster::test_a_job_that_is_out_of_time_saves_before_and_"
        "requeues_itself_and_a_cancelled_one_ends",
        "killed worker": "slurm/test_cluster::test_69_for_a_worker_that_a_signal_has_killed_and_"
        "the_job_is_tried_so_and_so_often",
    },
    "a pod": {
        "success": "test_pods_run::test_the_pods_of_each_form_meet_by_name_and_end_with_the_"
        "unbroken_runs_bits",
        **dict.fromkeys(
            ("usage", "data", "program", "storage", "killed worker"),
            f"{_HERE}::test_a_pod_ends_with_the_code",
        ),
        "preemption": f"{_HERE}::test_a_pod_that_is_told_to_go_has_saved_and_ends_with_75",
    },
}
"""By launcher and outcome, ROOM::TEST."""


def test_every_launcher_and_outcome_has_a_test() -> None:
    for launcher, cells in CELLS.items():
        assert set(cells) == set(OUTCOMES), launcher
    for cell in {cell for cells in CELLS.values() for cell in cells.values()}:
        room, _, name = cell.partition("::")
        tree = ast.parse((Path(__file__).parent / f"{room}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, cell


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train", "gone.toml"], 64, "there is no job file gone.toml"),
        (["train", "faulty.toml"], 65, "no data set at"),
    ],
)
def test_torchruns_report_names_the_code_of_a_command_of_ours(
    tmp_path: Path, arguments: Sequence[str], code: int, said: str
) -> None:
    job = tmp_path / "faulty.toml"
    job.write_text(FAULTY_JOB.format(digits=tmp_path / "gone"))
    given = [str(job) if each == job.name else each for each in arguments]
    done = under_torchrun("-m", "launch.main", *given)
    assert done.returncode == 1
    assert done.stderr.count(said) == 1
    assert re.findall(r"exitcode +: (\d+)", done.stderr) == [str(code)]


def test_a_job_is_one_run_of_torchruns_workers_which_start_no_others(
    digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    given = ("train", JOB, "--data.path", digits, "--run.dir", folder, *SHORT)
    nested = under_torchrun("-m", "launch.main", *given, "--workers", 2, workers=2)
    assert nested.returncode == 1
    assert "each of torchrun's workers would start workers of its own" in nested.stderr
    assert not folder.exists()
    assert under_torchrun("-m", "launch.main", *given, workers=2).returncode == 0
    assert outcome(folder) == unbroken(digits, *SHORT)


def under_torchrun(*program: object, workers: int = 1) -> Completed:
    options = ("--standalone", "--nproc-per-node", workers)
    return script_alone(Path(torchrun.__file__), *options, *program)


@pytest.mark.horovod
def test_64_on_horovod_for_wrong_usage(tmp_path: Path) -> None:
    options = ("--parallel.backend", "horovod", "--workers", "none")
    done = distrain_alone("train", "gone.toml", *options, cwd=tmp_path)
    assert done.returncode == 64
    assert done.stderr == "distrain: --workers is 'none'; give a number, or MIN:MAX such as 1:4\n"


@pytest.mark.horovod
def test_74_on_horovod_for_a_run_folder_that_cannot_be_made(digits: Path) -> None:
    folder = Path("/proc/distrain-run")
    with train(digits, folder, 2, "--parallel.backend", "horovod") as run:
        assert run.ends() == 74, run.said
    assert run.said.startswith(f"distrain: the run folder {folder} cannot be written")
    assert len(run.lines) == 1


SCRIPTS = {
    "raise.py": "raise ValueError('planted')\n",
    # The image's own files can't be written to.
    "store.py": "from pathlib import Path\nfrom data_pipeline.durable import write_whole\n"
    "write_whole(Path('/opt/distrain/model'), b'bytes')\n",
    "lose.py": "import os, signal\nos.environ['RANK'] == '1' and os.kill(os.getpid(), 9)\n",
}

needs_hosts = pytest.mark.skipif(bool(why_not()), reason=f"no hosts can be had: {why_not()}")


@pytest.fixture(scope="module")
def host() -> Iterator[Hosts]:
    with connected_hosts(1) as hosts:
        yield hosts


def pod(program: Path | str, folder: Path, *more: object) -> Pod:
    """The pod of a job of one node, which finds SCRIPTS with its data."""
    options = ("--form", "job", "--max-restarts", 0, "--dry-run")
    done = distrain_alone("submit", "kubernetes", program, *options, *more)
    assert done.returncode == 0, done.stderr
    manifests = list(yaml.safe_load_all(done.stdout))
    config, shards, runs = (folder / name for name in ("config", "shards", "runs"))
    for made in (config, shards, runs):
        made.mkdir(mode=0o755)
    for name, text in SCRIPTS.items():
        (shards / name).write_text(text)
    os.chown(runs, 1000, 1000)
    volumes = {"distrain-shards": shards, "distrain-runs": runs}
    for each in manifests:
        if each["kind"] == "ConfigMap":
            volumes[each["metadata"]["name"]] = config
            for name, text in each["data"].items():
                (config / name).write_text(text)
    return Pod(form_in(manifests), 0, volumes, folder / "pod")


@needs_hosts
@pytest.mark.parametrize(
    ("program", "more", "code", "said"),
    [
        ("shards/gone.py", (), 64, "there is no script /workspace/shards/gone.py"),
        ("job.toml", (), 65, "no data set at shards/gone"),
        ("shards/raise.py", (), 70, "ValueError: planted"),
        ("shards/store.py", (), 74, "Read-only file system"),
        ("shards/lose.py", ("--workers", 2), 69, "worker 1 was killed by SIGKILL"),
    ],
)
def test_a_pod_ends_with_the_code(
    host: Hosts, tmp_path: Path, program: str, more: Sequence[object], code: int, said: str
) -> None:
    job = tmp_path / "job.toml"
    job.write_text(FAULTY_JOB.format(digits="shards/gone"))
    one = pod(job if program == job.name else f"/workspace/{program}", tmp_path, *more)
    with Started(program=one.on(host, 0)) as run:
        assert run.ends() == code, run.said
    assert run.said.count(said) == 1


@needs_hosts
def test_a_pod_that_is_told_to_go_has_saved_and_ends_with_75(
    host: Hosts, digits: Path, tmp_path: Path
) -> None:
    """The kubelet's SIGTERM, with whose grace time the pod is preempted."""
    one = pod(JOB, tmp_path, "--training.epochs", 500)
    shutil.copytree(digits, tmp_path / "shards" / "digits")
    folder = tmp_path / "runs" / "digits"
    with Started(program=one.on(host, 0)) as run:
        run.until(lambda: last_step(folder) >= 2)
        run.process.terminate()
        assert run.ends() == 75, run.said
    assert run.said == f"distrain: stopped by SIGTERM, {STOPPED}"
    assert (status(folder)["exit_code"], status(folder)["step"]) == (75, last_step(folder))
