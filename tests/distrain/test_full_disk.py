"""A disk that gets full under a run: a small real one, filled and emptied while the run goes on."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data_pipeline.errors import StorageError
from distrain.coordinator.background_writer import LAST_SAVE_PAUSES_S
from distrain.coordinator.checkpoint import CheckpointContents, newest_checkpoint, read_checkpoint
from distrain.coordinator.checkpointing import TRY_AGAIN_S, Checkpoint, CheckpointKeeper
from distrain.coordinator.folder_store import FolderStore
from distrain.coordinator.run_layout import steps_in
from distrain.coordinator.run_state import RunState
from tests.alone import distrain_alone
from tests.conftest import PROGRAMS, clean_environment
from tests.run_folders import events, result, told
from tests.started import FAULTY_JOB, LIMIT_S

DISK_BYTES = 6 * 2**20
EPOCHS, STEPS = 20, 120
FULL = "No space left on device"

MOUNT = f'mount -t tmpfs -o size={DISK_BYTES} tmpfs "$0" && echo mounted && exec cat'


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A tmpfs in a namespace of its own, which ends with its holder; others see it through /proc.

    Root may mount one; anybody else needs a user namespace.
    """
    refusals = []
    for namespace in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        with subprocess.Popen(
            ["unshare", *namespace, "sh", "-c", MOUNT, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as holder:
            assert holder.stdout is not None
            assert holder.stderr is not None
            if holder.stdout.readline() == "mounted\n":
                yield Path(f"/proc/{holder.pid}/root{folder}")
                return
            refusals.append(holder.stderr.read().strip())
    pytest.skip(f"this machine lets nobody mount a tmpfs, as root or in a namespace: {refusals}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 6 MiB."""
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk") as found:
        yield found


def fill(disk: Path) -> None:
    """Takes all the room that is left."""
    with (disk / "ballast").open("ab", buffering=0) as file:
        for size in (2**16, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass


def make_room(disk: Path) -> None:
    (disk / "ballast").unlink()


def command(digits: Path, folder: Path, job: Path) -> list[str]:
    """Writes the job of the faulty model to a file, and names it."""
    job.write_text(FAULTY_JOB.format(digits=digits))
    return ["train", str(job), "--run.dir", str(folder), "--training.epochs", str(EPOCHS)]


class Run:
    """`distrain train` in a process of its own, which writes to a run folder on a disk."""

    def __init__(self, digits: Path, folder: Path, outputs: Path) -> None:
        outputs.mkdir(exist_ok=True)
        self._out, self._err = outputs / "out", outputs / "err"
        self.folder = folder
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "launch.main",
                    *command(digits, folder, outputs / "job.toml"),
                ],
                cwd=PROGRAMS,
                # Slow enough for a test to act between two checkpoints.
                env=clean_environment() | {"STEP_S": "0.05"},
                stdout=out,
                stderr=err,
            )

    @property
    def said(self) -> str:
        return self._out.read_text()

    @property
    def complained(self) -> str:
        return self._err.read_text()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Waits for something that has to come while the run goes on."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            has_ended = self.process.poll() is not None  # what it did last is looked for after that
            if condition():
                return
            assert not has_ended, self.said + self.complained
            assert time.monotonic() < deadline, self.said + self.complained
            time.sleep(0.005)

    def end(self) -> int:
        return self.process.wait(timeout=LIMIT_S)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def has_checkpoint(run: Run) -> bool:
    return bool(steps_in(run.folder / "checkpoints"))


def run_onto_full_disk(run: Run, disk: Path) -> None:
    """Fills the disk after the first checkpoint, and waits until the next can't be written."""
    run.wait_until(lambda: has_checkpoint(run))
    fill(disk)
    run.wait_until(lambda: "no checkpoint at step" in run.said)
    fill(disk)  # the room that the failed one has given back


def assert_nothing_half_written(folder: Path) -> None:
    """All that bears a checkpoint's name verifies, and nothing else lies beside it."""
    root = folder / "checkpoints"
    for step in steps_in(root):
        assert read_checkpoint(FolderStore(root), step).state["run"]["step"] == step
    assert len(list(root.iterdir())) == len(steps_in(root))


@pytest.fixture(scope="module")
def unbroken(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken")
    done = distrain_alone(*command(digits, folder / "run", folder / "job.toml"), cwd=PROGRAMS)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def assert_goes_on_to_the_same_bits(digits: Path, folder: Path, good: Path) -> None:
    done = distrain_alone(*command(digits, folder, good.with_name("job.toml")), cwd=PROGRAMS)
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stdout
    assert result(folder) == result(good)
    assert told(folder) == told(good)


def test_a_disk_that_is_full_for_a_while_costs_checkpoints_and_not_the_run(
    digits: Path, disk: Path, tmp_path: Path, unbroken: Path
) -> None:
    with Run(digits, disk / "run", tmp_path / "outputs") as run:
        run_onto_full_disk(run, disk)
        before = steps_in(run.folder / "checkpoints")
        assert_nothing_half_written(run.folder)
        make_room(disk)
        run.wait_until(lambda: steps_in(run.folder / "checkpoints") != before)
        assert run.end() == 0, run.complained
        said = run.said
    assert f"no checkpoint at step {before[-1] + 10}: cannot write {run.folder}" in said
    assert FULL in said
    assert "Traceback" not in run.complained
    assert result(run.folder) == result(unbroken)
    assert told(run.folder) == told(unbroken), "the events of that time are not lost"
    kinds = [event["event"] for event in events(run.folder)]
    assert "checkpoint" in kinds[kinds.index("checkpoint_failed") :]
    assert_nothing_half_written(run.folder)
    assert steps_in(run.folder / "checkpoints") == [STEPS - 10, STEPS]


def test_with_a_disk_full_to_the_end_the_run_says_so_and_can_go_on_from_before(
    digits: Path, disk: Path, tmp_path: Path, unbroken: Path
) -> None:
    with Run(digits, disk / "run", tmp_path / "outputs") as run:
        run_onto_full_disk(run, disk)
        assert run.end() == 74, run.said + run.complained
        assert f"cannot write {run.folder / 'model.safetensors'}: {FULL}" in run.complained
        assert "Traceback" not in run.complained
        assert f"epoch {EPOCHS}/{EPOCHS}: loss" in run.said, "it went on to the last step"
    assert not (run.folder / "model.safetensors").exists()
    assert_nothing_half_written(run.folder)
    newest = newest_checkpoint(FolderStore(run.folder / "checkpoints"))
    assert newest is not None
    assert 10 <= newest.step < STEPS
    assert not newest.damaged
    make_room(disk)
    assert_goes_on_to_the_same_bits(digits, run.folder, unbroken)


def test_a_run_that_is_asked_to_stop_on_a_full_disk_says_what_it_could_not_save(
    digits: Path, disk: Path, tmp_path: Path
) -> None:
    with Run(digits, disk / "run", tmp_path / "outputs") as run:
        run_onto_full_disk(run, disk)
        run.process.send_signal(signal.SIGTERM)
        asked_at = time.monotonic()
        assert run.end() == 74, run.said + run.complained
        assert time.monotonic() - asked_at > sum(LAST_SAVE_PAUSES_S), "it has tried again"
        assert time.monotonic() - asked_at < 60.0, "but not for ever, also on a busy machine"
        failed_at = re.findall(r"no checkpoint at step (\d+)", run.said)
        assert "stopped by SIGTERM, and the last save failed: cannot write" in run.complained
        assert f"{run.folder}/" in run.complained
        assert FULL in run.complained
        assert "Traceback" not in run.complained
    assert_nothing_half_written(run.folder)
    newest = newest_checkpoint(FolderStore(run.folder / "checkpoints"))
    assert newest is not None
    assert (newest.step, newest.damaged) == (int(failed_at[0]) - 10, []), "the last good one"


def test_room_that_comes_during_the_last_tries_is_enough_to_stop_with_all_saved(
    digits: Path, disk: Path, tmp_path: Path
) -> None:
    with Run(digits, disk / "run", tmp_path / "outputs") as run:
        run_onto_full_disk(run, disk)
        failed = run.said.count("no checkpoint at step")
        run.process.send_signal(signal.SIGTERM)
        run.wait_until(lambda: run.said.count("no checkpoint at step") > failed)
        make_room(disk)
        assert run.end() == 75, run.said + run.complained
    status = json.loads((run.folder / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 75)
    assert steps_in(run.folder / "checkpoints")[-1] == status["step"]
    assert_nothing_half_written(run.folder)


def test_a_disk_that_is_full_at_the_start_is_named_before_anything_is_trained(
    digits: Path, disk: Path, tmp_path: Path
) -> None:
    fill(disk)
    with Run(digits, disk / "run", tmp_path / "outputs") as run:
        assert run.end() == 74, run.complained
        assert (
            run.complained == f"distrain: the run folder {run.folder} cannot be written: {FULL}\n"
        )
    make_room(disk)
    with Run(digits, disk / "run", tmp_path / "again") as run:
        run.wait_until(lambda: has_checkpoint(run))


def some_contents(step: int) -> CheckpointContents:
    return CheckpointContents({"model": {"weight": torch.ones(50_000)}}, {"run": {"step": step}})


def test_what_could_not_be_written_is_tried_again_within_ten_seconds(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("distrain.coordinator.checkpointing.time", clock)
    policy = Checkpoint(every_steps=100, every_seconds=None)
    keeper = CheckpointKeeper(policy, FolderStore(disk / "checkpoints"), lambda: None)
    keeper.write(RunState(step=100), some_contents(100))
    fill(disk)
    with pytest.raises(StorageError, match=rf"cannot write .*step-000000200: .*{FULL}"):
        keeper.write(RunState(step=200), some_contents(200))
    assert not keeper.is_time(), "not at every step"
    now += TRY_AGAIN_S
    assert TRY_AGAIN_S <= 10
    assert keeper.is_time()
    with pytest.raises(StorageError):
        keeper.write(RunState(step=207), some_contents(207))
    assert not keeper.is_time()
    now += TRY_AGAIN_S
    make_room(disk)
    assert keeper.is_time()
    keeper.write(RunState(step=213), some_contents(213))
    now += TRY_AGAIN_S
    assert not keeper.is_time(), "there is nothing left to try again"
    assert steps_in(disk / "checkpoints") == [100, 213]
    assert newest_checkpoint(FolderStore(disk / "checkpoints")).damaged == []  # type: ignore[union-attr]
