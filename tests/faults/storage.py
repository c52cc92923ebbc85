"""Disks that fill up, folders that can't be written, checkpoints that are no longer as written."""

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distrain.coordinator.host_memory import SnapshotFolder
from distrain.coordinator.run_layout import CHECKPOINTS, folder_name, steps_in
from tests.faults.deaths import kill_all
from tests.faults.job import CHECKPOINT_EVERY
from tests.faults.oracle import uses
from tests.faults.trial import Injection, MissingToolError, Trial
from tests.run_folders import named

DISK_BYTES = 20 * 2**20
MOUNT = f'mount -t tmpfs -o size={DISK_BYTES} tmpfs "$0" && echo mounted && exec cat'


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A tmpfs of 20 MB in a namespace of its own; others see it through /proc."""
    folder.mkdir()
    for namespace in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        with subprocess.Popen(
            ["unshare", *namespace, "sh", "-c", MOUNT, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as holder:
            assert holder.stdout is not None
            if holder.stdout.readline() == "mounted\n":
                yield Path(f"/proc/{holder.pid}/root{folder}")
                return
    raise MissingToolError("this machine lets nobody mount a tmpfs, neither as root nor otherwise")


def fill(disk: Path) -> None:
    """Takes all the room that is left."""
    with (disk / "ballast").open("ab", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass


def full_for_a_while(trial: Trial) -> None:
    """Full at a drawn moment, and with room again some steps later: the run bears it."""
    with small_disk(trial.folder / "disk") as disk:
        trial.run = disk / "run"
        with trial.start() as run:
            trial.until_a_moment(run, 5, 25)
            fill(disk)
            trial.let_go_on()
            # The log tells of no step now: what the workers are given does.
            begun = len(uses(trial.points)) + CHECKPOINT_EVERY + trial.draw.randint(1, 12)
            run.until(lambda: len(uses(trial.points)) >= begun)
            (disk / "ballast").unlink()
            trial.injected += 1
            trial.ends(run)
        assert named(trial.run, "checkpoint_failed")
        keep(trial)


def full_to_the_end(trial: Trial) -> None:
    """Full from a drawn moment on: the run ends with 74, and goes on once there is room."""
    with small_disk(trial.folder / "disk") as disk:
        trial.run = disk / "run"
        with trial.start() as run:
            trial.until_a_moment(run, 5)
            fill(disk)
            trial.ends(run, 74)
        (disk / "ballast").unlink()
        trial.injected += 1
        with trial.start() as run:
            trial.ends(run)
        keep(trial)


def keep(trial: Trial) -> None:
    """Takes the run from a disk that is about to vanish."""
    kept = trial.folder / "kept"
    subprocess.run(["cp", "-r", str(trial.run), str(kept)], check=True)
    trial.run = kept


def read_only(trial: Trial) -> None:
    """The folder of the checkpoints takes nothing for a while, and a worker dies meanwhile."""
    checkpoints = trial.run / CHECKPOINTS
    with trial.start() as run:
        trial.until_a_moment(run, 9, 20)
        with immutable(checkpoints):
            trial.let_go_on()
            before = len(named(trial.run, "checkpoint_failed"))
            run.until(lambda: len(named(trial.run, "checkpoint_failed")) > before)
            if trial.draw.random() < 0.5:
                run.worker(trial.draw.randrange(3)).kill()
                run.until(lambda: len(named(trial.run, "resume")) == 1)
        trial.injected += 1
        trial.ends(run)


@contextmanager
def immutable(folder: Path) -> Iterator[None]:
    """Nobody can make or remove anything in it, not even root."""
    done = subprocess.run(
        ["chattr", "+i", str(folder)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise MissingToolError(f"chattr +i does not work here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True)


def damaged(change: Callable[[bytes, random.Random], bytes]) -> Injection:
    """Each file of the newest checkpoint in turn, while no process is there."""

    def inject(trial: Trial) -> None:
        files, number = [""], 0
        while number < len(files):
            with trial.start() as run:
                # Always one more than the one that the run goes on from if the newest is damaged.
                enough = len(named(trial.run, "checkpoint")) + (1 if number else 2)
                run.until(lambda: len(named(trial.run, "checkpoint")) >= enough)  # noqa: B023
                time.sleep(trial.draw.uniform(0.0, 0.1))
                kill_all(run)
                trial.ends(run, -signal.SIGKILL)
            SnapshotFolder(trial.run).remove()  # as where the machine starts anew
            newest = trial.run / CHECKPOINTS / folder_name(steps_in(trial.run / CHECKPOINTS)[-1])
            files = sorted(path.name for path in newest.iterdir())
            damage(newest / files[number], change, trial.draw)
            number += 1
            trial.injected += 1
        with trial.start() as run:
            trial.ends(run)
        aside = list((trial.run / CHECKPOINTS).glob("damaged-step-*"))
        assert len(aside) == trial.injected, f"only {aside} were found to be damaged"

    return inject


def damage(
    path: Path, change: Callable[[bytes, random.Random], bytes], draw: random.Random
) -> None:
    """Changes a file so that it says something else; JSON does not with a space less."""
    before = path.read_bytes()
    path.write_bytes(change(before, draw))
    while path.suffix == ".json" and says(path.read_bytes()) == says(before):
        path.write_bytes(change(before, draw))


def says(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None


def bit_flipped(content: bytes, draw: random.Random) -> bytes:
    place, bit = draw.randrange(len(content)), draw.randrange(8)
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def byte_cut(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + content[place + 1 :]
