"""Conversions that were killed, or meet another one: nothing is lost, and nothing is left over."""

import json
import multiprocessing
import operator
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from data_pipeline import DataError, Dataset, convert, durable
from data_pipeline.conversion import passes, plan, pool, sharding
from data_pipeline.conversion.workplace import Workplace
from data_pipeline.verify import verify_folder
from tests.conftest import clean_environment
from tests.folders import hashes, names

ROOT = Path(__file__).parents[2]

KILLED_IN_SHARD = """
import os, sys
from data_pipeline import convert
from data_pipeline.conversion import sharding
write = sharding.write_shard
def killed(root, path, columns, rows):
    shard = write(root, path, columns, rows)
    if "00002" in path:
        os.kill(os.getpid(), 9)
    return shard
sharding.write_shard = killed
convert(sys.argv[1], sys.argv[2], rows_per_shard=10)
"""

KILLED_IN_MANIFEST = """
import os, sys
from data_pipeline import convert
from data_pipeline.conversion import passes
write = passes.write_manifest
def killed(folder, manifest):
    os.fsync = lambda _: os.kill(os.getpid(), 9)
    write(folder, manifest)
passes.write_manifest = killed
convert(sys.argv[1], sys.argv[2], rows_per_shard=10)
"""


def numbers(path: Path, count: int = 50) -> Path:
    np.savez(path, x=np.arange(count * 2, dtype=np.float32).reshape(count, 2))
    return path


def stop_at(what: str, number: int) -> Any:
    def progress(now: str, count: int, total: int) -> None:
        del total
        if (now, count) == (what, number):
            raise KeyboardInterrupt

    return progress


def broken_off(source: Path, folder: Path, what: str = "writing", number: int = 3) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(source, folder, rows_per_shard=10, progress=stop_at(what, number))


@pytest.mark.parametrize(
    ("script", "pattern"),
    [(KILLED_IN_SHARD, "train/*.partial"), (KILLED_IN_MANIFEST, ".manifest.json.*.partial")],
)
def test_what_a_killed_process_wrote_aside_is_not_in_the_data_set(
    tmp_path: Path, script: str, pattern: str
) -> None:
    source, folder = numbers(tmp_path / "a.npz"), tmp_path / "d"
    convert(source, tmp_path / "whole" / "d", rows_per_shard=10)
    command = [sys.executable, "-c", script, str(source), str(folder)]
    killed = subprocess.run(command, cwd=ROOT, env=clean_environment(), check=False)
    assert killed.returncode == -9
    assert list((tmp_path / ".d.partial" / "result").glob(pattern))
    convert(source, folder, rows_per_shard=10)
    verify_folder(folder)
    assert hashes(folder) == hashes(tmp_path / "whole" / "d")


def test_a_mark_without_its_whole_shard_is_not_believed(tmp_path: Path) -> None:
    source, folder = numbers(tmp_path / "a.npz"), tmp_path / "d"
    convert(source, tmp_path / "whole" / "d", rows_per_shard=10)
    broken_off(source, folder)
    shards = tmp_path / ".d.partial" / "result" / "train"
    (shards / "00000.arrow").unlink()
    os.truncate(shards / "00001.arrow", 100)
    convert(source, folder, rows_per_shard=10)
    verify_folder(folder)
    assert hashes(folder) == hashes(tmp_path / "whole" / "d")


def test_a_mark_without_its_staged_piece_is_not_believed(tmp_path: Path) -> None:
    source = numbers(tmp_path / "a.npz")
    broken_off(source, tmp_path / "d", "reading", 1)
    (tmp_path / ".d.partial" / "staged" / "00000000.arrow").unlink()
    convert(source, tmp_path / "d", rows_per_shard=10)
    assert len(Dataset(tmp_path / "d")) == 50


def test_a_shard_s_name_is_on_the_disk_before_its_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, write = durable.fsync_folder, durable.write_whole

    def synced(folder: Path) -> None:
        done.append(f"{folder.parent.name}/{folder.name}: {names(folder)[-1]}")
        sync(folder)

    def marked(path: Path, content: bytes) -> None:
        done.append(path.name)
        write(path, content)

    monkeypatch.setattr(sharding, "fsync_folder", synced)
    monkeypatch.setattr(sharding, "write_whole", marked)
    convert(numbers(tmp_path / "a.npz", 20), tmp_path / "d", rows_per_shard=10)
    assert done == [
        "result/train: 00000.arrow",
        "00000.arrow.json",
        "result/train: 00001.arrow",
        "00001.arrow.json",
    ]


def test_pictures_that_rows_name_by_path_are_part_of_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "h"
    (path / "files").mkdir(parents=True)
    files = [path / "files" / f"{number}.png" for number in range(3)]
    for number, file in enumerate(files):
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(file)
    kinds = {"a": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    rows: list[Any] = [
        {"a": {"bytes": None, "path": f"files/{name}"}} for name in ("0.png", "1.png", "no")
    ]
    rows.append({"a": {"bytes": files[2].read_bytes(), "path": "files/2.png"}})
    datasets.Dataset.from_list(rows, features=datasets.Features(kinds)).save_to_disk(path)
    info = json.loads((path / "dataset_info.json").read_text())
    info["features"] = {"a": {"_type": "Image"}}
    (path / "dataset_info.json").write_text(json.dumps(info))
    folder = tmp_path / "d"
    options: dict[str, Any] = {"rows_per_shard": 1, "skip_bad": 1}

    def stop() -> None:
        with pytest.raises(KeyboardInterrupt):
            convert(path, folder, progress=stop_at("writing", 1), **options)

    told: list[str] = []
    stop()
    Image.fromarray(np.full((4, 4), 9, np.uint8)).save(files[2])  # its row holds the bytes
    with pytest.raises(KeyboardInterrupt):
        convert(path, folder, progress=stop_at("writing", 2), tell=told.append, **options)
    assert told == []
    Image.fromarray(np.full((6, 6), 7, np.uint8)).save(files[1])
    convert(path, folder, tell=told.append, **options)
    assert len(told) == 1
    found = [
        values.row(int(local)).tobytes()
        for values, rows, _ in Dataset(folder).ragged("a", np.arange(3))
        for local in rows
    ]
    assert files[1].read_bytes() in found


def test_work_under_other_versions_is_started_anew_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan.versions()["numpy"] == np.__version__
    source, told = numbers(tmp_path / "a.npz"), list[str]()
    broken_off(source, tmp_path / "d")
    monkeypatch.setattr(plan, "version", lambda name: f"{name} 99")
    with pytest.raises(KeyboardInterrupt):
        convert(
            source,
            tmp_path / "d",
            rows_per_shard=10,
            progress=stop_at("writing", 2),
            tell=told.append,
        )
    convert(source, tmp_path / "d", rows_per_shard=10, tell=told.append)
    assert told == [
        f"{tmp_path}/.d.partial holds work on another source, or under other options or "
        "versions: it is started anew"
    ]


def test_a_successor_that_comes_while_the_folder_is_removed_keeps_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Workplace(tmp_path / "d")
    unlink = Path.unlink

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path.name == "lock":
            monkeypatch.setattr(Path, "unlink", unlink)
            path.touch()
            place.staged.mkdir()

    with place.held():
        place.prepare("plan")
        (place.folder / "other").mkdir()
        (place.folder / "other" / "file").touch()
        monkeypatch.setattr(Path, "unlink", unlinked)
        place.remove()
    assert names(place.folder) == ["lock", "staged"]


def test_a_data_set_that_is_finished_while_the_lock_is_waited_for_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, other = numbers(tmp_path / "a.npz"), numbers(tmp_path / "b.npz", 7)
    planned = plan.plan_of

    def overtaken(*arguments: Any) -> str:
        monkeypatch.setattr(passes, "plan_of", planned)
        convert(other, tmp_path / "d")
        return planned(*arguments)

    monkeypatch.setattr(passes, "plan_of", overtaken)
    with pytest.raises(DataError, match="exists already"):
        convert(source, tmp_path / "d")
    assert len(Dataset(tmp_path / "d")) == 7
    assert names(tmp_path) == ["a.npz", "b.npz", "d"]


def test_a_pool_that_is_left_early_ends_its_own_processes_alone(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    results = pool.map_in_order(operator.add, 1, range(1_000), workers=2, lock=tmp_path / "lock")
    with closing(results):
        assert next(results) == 1
        other = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(60,))
        other.start()
    try:
        other.join(0.5)
        assert other.is_alive()
        assert multiprocessing.active_children() == [other]
    finally:
        other.kill()
        other.join()


def test_staged_work_that_is_damaged_is_named_with_what_its_removal_loses(tmp_path: Path) -> None:
    source = numbers(tmp_path / "a.npz")
    broken_off(source, tmp_path / "d", "reading", 1)
    staged = tmp_path / ".d.partial" / "staged" / "00000000.arrow"
    os.truncate(staged, 100)
    with pytest.raises(DataError, match=r"remove .*\.d\.partial and convert again: what is staged"):
        convert(source, tmp_path / "d", rows_per_shard=10)
