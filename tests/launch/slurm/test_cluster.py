"""Jobs on a real SLURM: preempted, out of time, requeued, failed; the bits are the same.

The jobs of all tests are submitted first and run side by side, and so is what happens to them: each
test waits for the end of its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import PROGRAMS
from tests.run_folders import last_step, named, outcome, status
from tests.slurm_cluster import SlurmCluster
from tests.started import FAULTY_JOB, to_end_faulty, unbroken_faulty

pytestmark = pytest.mark.slurm

LIMIT_S = 300.0

LONG = ("--training.epochs", 8)
SHORT = ("--training.epochs", 1)

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")
"""Of a job that was preempted another start follows."""

SAVED = "stopped by SIGTERM, with everything saved"

LOSE = """\
import os, signal
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@dataclass
class Job:
    """One that was submitted."""

    cluster: SlurmCluster
    number: str
    folder: Path
    log: Path

    @property
    def state(self) -> str:
        return self.known("JobState")

    def known(self, name: str) -> str:
        return self.cluster.job(self.number)[name]

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def until(self, condition: Callable[[], bool]) -> None:
        try:
            self.cluster.until(condition, LIMIT_S)
        except AssertionError as error:
            raise AssertionError(f"{self.state}, {self.said}\n{error}") from None

    def ends(self) -> tuple[str, str]:
        """How it has ended: SLURM's word, and the exit code with the signal."""
        self.until(lambda: self.state in ENDED)
        return self.state, self.known("ExitCode")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def submitted(
    cluster: SlurmCluster, folder: Path, *arguments: object, by_hand: bool = False
) -> Job:
    """A job by our command, or by what it prints, from the folder that the faulty model lies in."""
    log = folder / "log"
    options = ("--output", log, *(["--dry-run"] if by_hand else []))
    done = cluster.submit(*arguments, *options, cwd=PROGRAMS)
    assert done.returncode == 0, done.stderr
    if by_hand:
        (folder / "script").write_text(done.stdout)
        number = cluster.ask("sbatch", "--parsable", "--chdir", PROGRAMS, folder / "script")
        return Job(cluster, number, folder / "run", log)
    first = done.stdout.splitlines()[0]
    assert " is submitted as job " in first
    return Job(cluster, first.rpartition(" ")[2], folder / "run", log)


@pytest.fixture(scope="module")
def jobs(
    cluster: SlurmCluster, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Job]:
    """All of them, the ones that take longest first; what is to happen to two has happened."""

    def given(
        name: str,
        *more: object,
        program: object = None,
        data: Path = digits,
        by_hand: bool = False,
    ) -> Job:
        folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
        if program is not None:
            return submitted(cluster, folder, program, *more, by_hand=by_hand)
        file = folder / "faulty.toml"
        file.write_text(FAULTY_JOB.format(digits=data))
        run = ("--run.dir", folder / "run")
        return submitted(cluster, folder, file, *run, *more, by_hand=by_hand)

    scripts = tmp_path_factory.mktemp("scripts")
    (scripts / "raise.py").write_text("raise ValueError('planted')\n")
    (scripts / "lose.py").write_text(LOSE)
    alone = ("--max-restarts", 0)  # one worker, in its launcher's process
    found = {
        "preempted": given(
            *("preempted", "--partition", "low", "--nodes", 2, "--env", "STEP_S=0.3"),
            *LONG,
        ),
        "out of time": given(
            *("out of time", "--time", "10", "--run.grace-s", 60, *LONG, "--env", "STEP_S=2"),
            *alone,
        ),
        "lost": given(
            *("lost", "--workers", 2, "--cpus", 1, "--max-restarts", 0, "--node-retries", 1),
            program=scripts / "lose.py",
        ),
        "usage": given("usage", program=scripts / "gone.py"),
        "data": given("data", *SHORT, data=scripts / "gone"),
        "raises": given("raises", *alone, program=scripts / "raise.py", by_hand=True),
        "storage": given("storage", *SHORT, "--run.dir", "/proc/distrain-run", *alone),
        "seeds": given("seeds", "--seeds", "0-3:3%1", *SHORT, *alone),
    }
    preempted, late = found["preempted"], found["out of time"]
    preempted.until(lambda: last_step(preempted.folder) >= 12)
    # Who has more right to the nodes, without which nobody is told before.
    cluster.ask(
        *("sbatch", "--partition", "high", "--nodes", 2, "--exclusive", "--output", "/dev/null"),
        *("--wrap", "true"),
    )
    late.until(lambda: last_step(late.folder) >= 3)
    # SLURM looks every 30 s, and tells who has no more than 30 s and 60 s and 15 s left, which are
    # then there to save in.
    cluster.ask("scontrol", "update", f"JobId={late.number}", "EndTime=now+100")
    late.until(lambda: late.known("Restarts") == "1")
    # At once: its time limit is that short one still.
    cluster.ask("scontrol", "update", f"JobId={late.number}", "TimeLimit=10")
    return found


def test_a_job_that_is_out_of_time_saves_before_and_requeues_itself_and_a_cancelled_one_ends(
    digits: Path, jobs: dict[str, Job]
) -> None:
    job = jobs["out of time"]
    assert "distrain: all is saved, and the job goes back into the queue" in job.said
    stopped_at = last_step(job.folder)
    job.until(lambda: last_step(job.folder) > stopped_at)
    job.cluster.ask("scancel", job.number)
    assert job.ends()[0] == "CANCELLED"
    # SIGTERM came to the launcher and to the script, which has left the rest to SLURM.
    job.until(lambda: job.said.count(SAVED) == 2)
    assert status(job.folder)["state"] == "stopped"
    assert job.known("Restarts") == "1"
    assert to_end_faulty(digits, job.folder, *LONG) == unbroken_faulty(digits, *LONG)


def test_a_job_of_two_nodes_is_preempted_requeued_and_ends_with_the_bits_of_the_unbroken_run(
    digits: Path, jobs: dict[str, Job]
) -> None:
    job = jobs["preempted"]
    assert job.ends() == ("COMPLETED", "0:0"), job.said
    assert job.known("Restarts") == "1"
    assert "DUE TO PREEMPTION" in job.said
    (resumed,) = named(job.folder, "resume")
    assert (resumed["steps_again"], resumed["workers"]) == (0, 2)  # all was saved
    assert outcome(job.folder) == unbroken_faulty(digits, *LONG)


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("usage", 64, "there is no script "),
        ("data", 65, "no data set at "),
        ("raises", 70, "ValueError: planted"),
        ("storage", 74, "the run folder /proc/distrain-run cannot be written"),
    ],
)
def test_the_launchers_exit_code_is_the_jobs(
    jobs: dict[str, Job], name: str, code: int, words: str
) -> None:
    job = jobs[name]
    assert job.ends() == ("FAILED", f"{code}:0"), job.said
    assert job.said.count(words) == 1
    assert job.known("Restarts") == "0"


def test_69_for_a_worker_that_a_signal_has_killed_and_the_job_is_tried_so_and_so_often(
    jobs: dict[str, Job],
) -> None:
    job = jobs["lost"]
    assert job.ends() == ("FAILED", "69:0"), job.said
    assert job.said.count("worker 1 was killed by SIGKILL") == 2
    assert "distrain: loss 1 of 1, and the job goes back into the queue" in job.said
    assert (job.known("Restarts"), job.known("Comment")) == ("1", "distrain-lost-1")


def test_each_seed_of_an_array_is_a_run_with_the_bits_of_that_seed(
    digits: Path, tmp_path: Path, jobs: dict[str, Job]
) -> None:
    array = jobs["seeds"]
    for seed in (0, 3):
        job = Job(array.cluster, f"{array.number}_{seed}", array.folder, array.log)
        assert job.ends() == ("COMPLETED", "0:0"), job.said
        alone = to_end_faulty(digits, tmp_path / str(seed), *SHORT, "--run.seed", seed)
        assert outcome(array.folder / f"seed-{seed}") == alone


def test_a_job_of_a_range_of_nodes_loses_one_and_goes_on_to_the_same_bits(
    cluster: SlurmCluster, digits: Path, tmp_path: Path, jobs: dict[str, Job]
) -> None:
    jobs["preempted"].ends()  # whose nodes these are
    cluster.until(lambda: cluster.are_idle("n0", "n1"), LIMIT_S)  # else it has one of them
    file = tmp_path / "faulty.toml"
    file.write_text(FAULTY_JOB.format(digits=digits))
    where = ("--partition", "low", "--nodes", "1:2", "--run.dir", tmp_path / "run")
    job = submitted(cluster, tmp_path, file, *where, "--env", "STEP_S=0.5")
    job.until(lambda: last_step(job.folder) >= 3)
    assert job.known("NodeList") == "n[0-1]"
    cluster.ask("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=planted")
    job.until(lambda: bool(named(job.folder, "resume")))
    # srun tells of the lost node in the end: the next start finds the run done.
    assert job.ends() == ("COMPLETED", "0:0"), job.said
    assert [event["workers"] for event in named(job.folder, "resume")] == [1]
    assert "this run is finished already" in job.said
    assert outcome(job.folder) == unbroken_faulty(digits)


def test_a_job_that_slurm_refuses_is_told_in_its_words(cluster: SlurmCluster) -> None:
    done = cluster.submit(PROGRAMS / "failing.py", "--partition", "none")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("distrain: SLURM has refused the job: ")
    assert "invalid partition" in done.stderr


def test_hostile_text_comes_through_sbatch_unharmed(cluster: SlurmCluster, tmp_path: Path) -> None:
    hostile = "a\r\n#SBATCH --comment=evil\n'; touch gone; \"$(touch gone)` ü"
    script = tmp_path / "tell.py"
    script.write_text("import os, sys; print(ascii([sys.argv[1], os.environ['VALUE']]))\n")
    arguments = (script, "--env", f"VALUE={hostile}", "--output", tmp_path / "log")
    done = cluster.submit(*arguments, "--", hostile, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    number = done.stdout.splitlines()[0].rpartition(" ")[2]
    job = Job(cluster, number, tmp_path / "run", tmp_path / "log")
    assert job.ends() == ("COMPLETED", "0:0"), job.said
    assert job.said == f"{[hostile, hostile]!a}\n"
    assert "Comment" not in cluster.job(number)
    assert not (tmp_path / "gone").exists()
