"""`distrain submit slurm` at the desk: what it prints, what it hands to sbatch, what it refuses."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.slurm.command import job_environment
from tests.conftest import ROOT, TIMEOUT_S, Completed, clean_environment

JOB = ROOT / "examples" / "digits.toml"

Run = Callable[..., Completed]


def submit(commands: Path, *arguments: object, **environment: str) -> Completed:
    """The command, where `commands` is all that the PATH has."""
    return subprocess.run(
        [sys.executable, "-m", "launch.main", "submit", "slurm", *map(str, arguments)],
        cwd=commands,
        env=clean_environment() | {"PATH": str(commands)} | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def stand_in(commands: Path, text: str) -> None:
    """An sbatch that does so."""
    (commands / "sbatch").write_text(f"#!/bin/sh\n{text}\n")
    (commands / "sbatch").chmod(0o755)


def test_a_dry_run_prints_the_script_and_the_command_and_needs_no_slurm(tmp_path: Path) -> None:
    done = submit(tmp_path, JOB, "--nodes", 2, "--run.seed", 5, "--env", "A=b c", "--dry-run")
    assert done.returncode == 0
    assert done.stderr == "distrain: would be the input of: sbatch --parsable\n"
    assert done.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=digits\n#SBATCH --nodes=2\n")
    assert "\nexport A='b c'\n" in done.stdout
    assert "\nseed = 5\n" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_is_sent_is_what_a_dry_run_prints(tmp_path: Path) -> None:
    shown = submit(tmp_path, JOB, "--seeds", "0-2", "--dry-run").stdout
    stand_in(tmp_path, '/bin/cat >script; echo "$@" >words; echo "77;cluster"')
    done = submit(tmp_path, JOB, "--seeds", "0-2")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "script").read_text() == shown
    assert (tmp_path / "words").read_text() == "--parsable\n"
    assert done.stdout.splitlines() == [
        "digits is submitted as job 77",
        "  its state        squeue --job 77",
        "  what it says     tail -F digits-77-seed-*.log",
        "  save, requeue    scancel --signal=USR1 77",
        "  save, end        scancel 77",
    ]


@pytest.mark.parametrize(
    ("said", "code", "told"),
    [
        (
            "sbatch: error: Batch job submission failed: Invalid qos specification",
            78,
            "distrain: SLURM has refused the job: Batch job submission failed: Invalid qos "
            "specification",
        ),
        (
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller "
            "(connect failure)",
            69,
            "distrain: SLURM does not answer, nothing is submitted: Batch job submission failed: "
            "Unable to contact slurm controller (connect failure)",
        ),
        ("", 78, "distrain: SLURM has refused the job: exit code 3"),
    ],
)
def test_what_sbatch_refuses_is_told_with_a_code_that_says_whether_to_try_again(
    tmp_path: Path, said: str, code: int, told: str
) -> None:
    stand_in(tmp_path, f"/bin/cat >/dev/null; echo '{said}' >&2; exit 3")
    done = submit(tmp_path, JOB)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (code, "", told)


def test_64_where_there_is_no_slurm(tmp_path: Path) -> None:
    done = submit(tmp_path, JOB)
    assert done.returncode == 64
    assert "there is no sbatch on this machine" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--nodes", "0"), "--nodes is 0; at least 1 is needed"),
        (("--nodes", "5", "--workers", "2"), "a global batch of 256 has only 8 micro-batches"),
        (("--output", "gone/log"), "there is no folder gone, and SLURM would end the job"),
        (("--name", "a; rm -rf /"), "--name is 'a; rm -rf /'"),
        (("--partition", "x\n#SBATCH --uid=0"), "--partition is "),
        (("--secret", "A=b/c"), "--secret"),
        (("--env", "HF_TOKEN=x"), "for SLURM export it where you submit"),
        (("--node-retries", "-1"), "--node-retries is -1"),
    ],
)
def test_what_cannot_be_run_is_refused_before_it_is_sent(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    stand_in(tmp_path, "touch sent")
    done = submit(tmp_path, JOB, *arguments)
    assert done.returncode in (64, 78)
    assert told in done.stderr
    assert not (tmp_path / "sent").exists()


def test_a_job_is_handed_no_settings_of_another_job_or_that_stand_above_its_script() -> None:
    script = "#!/bin/bash\n#SBATCH --partition=cpu\n#SBATCH --time=5\n#SBATCH --signal=TERM@45\n"
    script += "\n#SBATCH --account=not-a-setting-any-more\n"
    kept = {
        "PATH": "/bin",
        "SLURM_CONF": "/etc/slurm.conf",
        "SBATCH_ACCOUNT": "lab",
        "AWS_PROFILE": "mine",
    }
    above = {"SBATCH_PARTITION": "gpu", "SBATCH_TIMELIMIT": "1", "SBATCH_SIGNAL": "KILL"}
    dropped = {"SBATCH_NO_KILL": "1", "RANK": "1", "HOROVOD_SIZE": "2"}
    assert job_environment(kept | dropped | above, script) == kept
    outer = {"SLURM_JOB_ID": "5", "SLURM_MEM_PER_NODE": "100", "SLURM_NTASKS": "8"}
    assert job_environment(kept | outer, script) == kept
    assert job_environment({"SLURM_CLUSTERS": "a"}, script) == {"SLURM_CLUSTERS": "a"}


@pytest.mark.parametrize("name", ["p%j", "b\\s"])
def test_a_log_that_slurm_would_look_for_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    done = submit(tmp_path / name, JOB, "--dry-run")
    assert (done.returncode, done.stdout) == (64, "")
    assert "mean something else to SLURM" in done.stderr
    assert submit(tmp_path / name, JOB, "--dry-run", "--output", tmp_path / "log").returncode == 0


def test_seeds_that_would_write_into_one_file_are_told_of(tmp_path: Path) -> None:
    seeds = (JOB, "--seeds", "0-2", "--dry-run", "--output")
    assert "one file for all seeds: put %a in it" in submit(tmp_path, *seeds, "log").stderr
    for output in ("log-%a", "/dev/null"):
        assert "one file" not in submit(tmp_path, *seeds, output).stderr


def test_lines_of_a_file_are_put_before_what_runs(tmp_path: Path) -> None:
    setup = tmp_path / "set up.sh"
    setup.write_text("module load cuda\n")
    done = submit(tmp_path, JOB, "--setup", setup, "--dry-run")
    assert (done.returncode, "\nmodule load cuda\n" in done.stdout) == (0, True)
    for text, told in (
        (b"a\0", "--setup: the file holds NUL"),
        (b"\xff", "--setup "),
        (b"export T=ghp_" + b"a" * 36, "as if it held a secret (a GitHub token)"),
    ):
        setup.write_bytes(text)
        done = submit(tmp_path, JOB, "--setup", setup, "--dry-run")
        assert (done.returncode, done.stdout, told in done.stderr) == (64, "", True)
    done = submit(tmp_path, JOB, "--setup", tmp_path / "gone", "--dry-run")
    assert (done.returncode, done.stdout) == (64, "")
    assert "No such file" in done.stderr


def test_a_dry_run_imports_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom launch.main import _run\n"
        f"_run(['submit', 'slurm', {str(JOB)!r}, '--run.seed', '1', '--dry-run'])\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0
