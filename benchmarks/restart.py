"""Where do the seconds go between the death of a worker and the next step?

The digits job runs on some workers; one of them is killed by SIGKILL while it trains, several times
in the same run. For each time, by the clock of this process:

    noticed     until the launcher says which worker died (the others are dead by then)
    started     until the new workers' processes exist: rendezvous
    prepared    until the run's log says that it goes on: Python, imports, joining, data, checkpoint
    stepped     until the first new step

    python -m benchmarks.restart [--workers 3] [--kills 7] [--out FILE.json]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.conditions import conditions, spread
from data_pipeline.sources.bundled import make_bundled

STAGES = ("noticed", "started", "prepared", "stepped")
STEPS_BETWEEN = 20
LIMIT_S = 120.0

_JOB = Path(__file__).parent.parent / "examples" / "digits.toml"


class TrainingRun:
    """A run that is being killed; its launcher's stderr lines with the time that each came."""

    def __init__(self, folder: Path, workers: int, kills: int) -> None:
        """Starts it, with a checkpoint every tenth step."""
        data = folder / "digits"
        make_bundled("digits", data)
        self._log = folder / "run" / "events.jsonl"
        command = [sys.executable, "-m", "launch.main", "train", str(_JOB)]
        command += ["--data.path", str(data), "--run.dir", str(folder / "run")]
        command += ["--workers", str(workers), "--max-restarts", str(kills)]
        command += ["--training.epochs", "100000", "--checkpoint.every-steps", "10"]
        self.launcher = psutil.Popen(
            [*command, "--early-stopping.monitor", "None"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[float] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.launcher.stderr:
            if "was killed by SIGKILL" in line:
                self.said.append(time.time())

    def workers(self) -> list[Any]:
        """The workers' processes, by rank."""
        found = {}
        for process in self.launcher.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                found[process.name()] = process
        return [found[name] for name in sorted(found) if name.startswith("distrain-r")]

    def events(self, name: str, since: float) -> list[float]:
        """When events of a name were logged, since a time."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        events = [json.loads(line) for line in lines if line.startswith('{"event": "' + name)]
        return [event["time"] for event in events if event["time"] >= since]

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something that has to come.

        Raises:
            TimeoutError: it did not.
        """
        end = time.monotonic() + LIMIT_S
        while not condition():
            if self.launcher.poll() is not None or time.monotonic() > end:
                raise TimeoutError(f"the run has ended or hangs: {self.launcher.poll()}")
            time.sleep(0.005)


def measure_one(run: TrainingRun, since: float) -> dict[str, float]:
    """Kills the last worker once the run has done some steps; the seconds of each stage."""
    run.until(lambda: len(run.events("step", since)) >= STEPS_BETWEEN)
    before, said = {process.pid for process in run.workers()}, len(run.said)
    killed = time.time()
    run.workers()[-1].kill()
    run.until(lambda: len(run.said) > said)
    run.until(lambda: len(run.workers()) == len(before) and not before & _pids(run))
    started = time.time()  # a process's own create_time is some 100 ms off this clock
    run.until(lambda: bool(run.events("step", started)))
    moments = [killed, run.said[said], started]
    moments += [run.events("begin", started)[0], run.events("step", started)[0]]
    return {
        stage: after - at for stage, at, after in zip(STAGES, moments, moments[1:], strict=False)
    } | {"whole": moments[-1] - killed}


def _pids(run: TrainingRun) -> set[int]:
    return {process.pid for process in run.workers()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--kills", type=int, default=7)
    parser.add_argument("--out", type=Path)
    known = parser.parse_args(argv)
    if known.workers < 2 or known.kills < 1:
        parser.error("at least 2 workers and 1 kill are needed")
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(Path(folder), known.workers, known.kills)
        try:
            found: list[dict[str, float]] = []
            for _ in range(known.kills):
                since = time.time() if found else 0.0
                found.append(measure_one(run, since))
        finally:
            run.launcher.kill()
            run.launcher.wait()
    seconds = {name: spread([one[name] for one in found]) for name in (*STAGES, "whole")}
    text = json.dumps({"workers": known.workers, "seconds": seconds, **conditions()}, indent=2)
    print(text)
    if known.out is not None:
        known.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
