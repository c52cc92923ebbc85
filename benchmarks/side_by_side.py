"""One file of a checkpoint from a host's memory to its disk: by threads, or by processes.

The bytes lie in shared memory, as a snapshot does. Each writer hashes chunks of 16 MiB and writes
them where they belong, each chunk once:

    threads_N      N threads of one process, as a checkpoint is written (`write_chunks`)
    processes_N    N processes, each the chunks whose number is its own modulo N

Processes are there before and wait: only the work is timed, from its begin to the end of one fsync.
The disk is synced before each, and who comes first changes by round.

    python -m benchmarks.side_by_side [--megabytes 600] [--rounds 5] [--writers 1,2,4]
        [--folder DIR] [--out FILE.json]
"""

import argparse
import hashlib
import json
import mmap
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conditions import conditions, ratios, spread
from distrain.coordinator.folder_store import write_chunks
from distrain.coordinator.tensor_file import CHUNK_BYTES

SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def in_shared_memory(num_bytes: int) -> Iterator[Path]:
    """A file in memory, of bytes that no disk compresses."""
    with tempfile.NamedTemporaryFile(dir=SHARED_MEMORY, prefix="side-by-side-") as file:
        file.write(np.random.default_rng(0).bytes(num_bytes))
        file.flush()
        yield Path(file.name)


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        view = memoryview(memory)
        try:
            yield view
        finally:
            view.release()


def by_threads(source: Path, target: Path, num_threads: int) -> tuple[float, list[str]]:
    """Seconds, and the SHA-256 of each chunk."""
    with mapped(source) as content:
        chunks = [[content[at : at + CHUNK_BYTES]] for at in range(0, len(content), CHUNK_BYTES)]
        began = time.perf_counter()
        digests = write_chunks(target, len(content), iter(chunks), num_threads)
        seconds = time.perf_counter() - began
        for (piece,) in chunks:
            piece.release()
    return seconds, digests


def write_share(source: Path, target: Path, number: int, of: int, told: Connection) -> None:
    """One of several processes: says that it is there, waits for the word, writes its chunks."""
    with mapped(source) as content:
        told.send(None)
        told.recv()
        file = os.open(target, os.O_WRONLY)
        digests = {}
        for place in range(number, -(-len(content) // CHUNK_BYTES), of):
            with content[place * CHUNK_BYTES : (place + 1) * CHUNK_BYTES] as chunk:
                digests[place] = hashlib.sha256(chunk).hexdigest()
                start = place * CHUNK_BYTES
                while start < place * CHUNK_BYTES + len(chunk):
                    start += os.pwrite(file, chunk[start - place * CHUNK_BYTES :], start)
        os.close(file)
    told.send(digests)


def by_processes(source: Path, target: Path, num_processes: int) -> tuple[float, list[str]]:
    """The same."""
    context = multiprocessing.get_context("spawn")
    file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    workers, ends = [], []
    for number in range(num_processes):
        here, there = context.Pipe()
        given = (source, target, number, num_processes, there)
        workers.append(context.Process(target=write_share, args=given, daemon=True))
        workers[-1].start()
        ends.append(here)
    for end in ends:
        end.recv()
    began = time.perf_counter()
    for end in ends:
        end.send(None)
    digests: dict[int, str] = {}
    for end in ends:
        digests |= end.recv()
    os.fsync(file)
    seconds = time.perf_counter() - began
    os.close(file)
    for worker in workers:
        worker.join()
    return seconds, [digests[place] for place in range(len(digests))]


def measure(source: Path, root: Path, writers: Sequence[int], rounds: int) -> dict[str, Any]:
    """Seconds by way and round; all ways give one file with the same digests."""
    size = source.stat().st_size
    whole = hashlib.sha256(source.read_bytes()).hexdigest()
    wanted: list[str] | None = None
    seconds: dict[str, list[float]] = {}
    ways = {"threads": by_threads, "processes": by_processes}
    for turn in range(rounds):
        for number in writers:
            for name, way in sorted(ways.items(), reverse=bool(turn % 2)):
                target = root / "model.safetensors"
                os.sync()
                took, digests = way(source, target, number)
                assert wanted is None or digests == wanted
                wanted = digests
                assert hashlib.sha256(target.read_bytes()).hexdigest() == whole
                target.unlink()
                seconds.setdefault(f"{name}_{number}", []).append(took)
    speeds = {name: [size / 1e6 / one for one in values] for name, values in seconds.items()}
    compared = {
        str(number): ratios(seconds[f"processes_{number}"], seconds[f"threads_{number}"])
        for number in writers
    }
    return {
        "seconds": {name: spread(values, 4) for name, values in seconds.items()},
        "megabytes_per_s": {name: spread(values, 1) for name, values in speeds.items()},
        "processes_as_a_ratio_to_as_many_threads": {
            number: spread(values) for number, values in compared.items()
        },
        "config": {"bytes": size, "chunk_bytes": CHUNK_BYTES, "rounds": rounds},
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--writers", default="1,2,4")
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder)")
    parser.add_argument("--out", type=Path)
    known = parser.parse_args(argv)
    writers = [int(number) for number in known.writers.split(",")]
    if min(known.megabytes, known.rounds, *writers) < 1:
        parser.error("give at least 1 megabyte, 1 round and 1 writer")
    with (
        tempfile.TemporaryDirectory(prefix="side-by-side-", dir=known.folder) as root,
        in_shared_memory(known.megabytes * 10**6) as source,
    ):
        found = measure(source, Path(root), writers, known.rounds)
    text = json.dumps(found | conditions(), indent=2)
    print(text)
    if known.out is not None:
        known.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
