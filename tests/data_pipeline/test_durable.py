import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from data_pipeline import durable
from data_pipeline.durable import new_folder, write_whole
from data_pipeline.errors import DataError, StorageError


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def half_written(folder: Path, error: BaseException) -> None:
    with new_folder(folder) as aside:
        (aside / "half").touch()
        raise error


def taken_meanwhile(folder: Path) -> None:
    with new_folder(folder) as aside:
        (aside / "ours").touch()
        folder.mkdir()
        (folder / "theirs").touch()


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_written_and_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    for content in (b"old", b"", b"newer\x00\xff"):
        write_whole(file, content)
        assert file.read_bytes() == content
    assert names(tmp_path) == ["state.json"]


def test_a_full_disk_leaves_the_old_file_unharmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "state.json"
    write_whole(file, b"old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError) as caught:
        write_whole(file, b"new")
    assert str(caught.value) == f"cannot write {file}: No space left on device"
    assert file.read_bytes() == b"old"
    assert names(tmp_path) == ["state.json"]


def test_a_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*a/b: No such file or directory"):
        write_whole(tmp_path / "a" / "b", b"")


def test_a_file_in_the_place_of_the_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(StorageError, match=r"cannot write .*a/b: Not a directory"):
        write_whole(tmp_path / "a" / "b", b"")


def test_a_folder_in_the_place_of_the_file_is_a_storage_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"cannot write .*a: Is a directory"):
        write_whole(tmp_path / "a", b"")
    assert names(tmp_path) == ["a", "a/b"]


def test_a_read_only_disk_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="cannot write /proc/distrain: "):
        write_whole(Path("/proc/distrain"), b"")


def test_the_bytes_reach_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "state.json"
    seen: list[tuple[str, bool]] = []
    fsync = os.fsync

    def recorded(handle: int) -> None:
        target = Path(f"/proc/self/fd/{handle}").readlink()
        seen.append(("folder" if target == tmp_path else "file", file.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    write_whole(file, b"new")
    assert seen == [("file", False), ("folder", True)]


def test_threads_that_write_one_file_leave_readers_a_whole_one(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    contents = {letter: letter * 300_000 for letter in (b"a", b"b", b"c")}
    write_whole(file, contents[b"a"])
    failures: list[BaseException] = []
    go = threading.Barrier(len(contents))

    def write(content: bytes) -> None:
        try:
            go.wait()
            for _ in range(15):
                write_whole(file, content)
        except BaseException as error:  # noqa: BLE001 - told by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents.values()]
    for thread in threads:
        thread.start()
    torn = 0
    while any(thread.is_alive() for thread in threads):
        torn += file.read_bytes() not in contents.values()
    for thread in threads:
        thread.join()
    assert failures == []
    assert torn == 0
    assert names(tmp_path) == ["status.json"]


WRITER = """
import sys
from pathlib import Path
from data_pipeline.durable import write_whole
contents = [letter * 500_000 for letter in (b"a", b"b")]
print("begun", flush=True)
while True:
    for content in contents:
        write_whole(Path(sys.argv[1]), content)
"""


def test_a_writer_killed_at_any_instant_leaves_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    whole = [letter * 500_000 for letter in (b"a", b"b")]
    write_whole(file, whole[0])
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"begun\n"
        seen = [file.read_bytes() for _ in range(200)]
        writer.send_signal(signal.SIGKILL)
    assert writer.returncode == -signal.SIGKILL
    assert [len(content) for content in seen if content not in whole] == []
    assert file.read_bytes() in whole
    # What the killed writer left does not hinder the next one.
    write_whole(file, b"next")
    assert file.read_bytes() == b"next"


def test_a_folder_takes_its_name_when_all_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with new_folder(folder) as aside:
        assert aside.parent == folder.parent
        (aside / "train").mkdir()
        (aside / "train" / "0").write_text("rows")
        assert not folder.exists()
    assert names(tmp_path) == ["a", "a/b", "a/b/train", "a/b/train/0"]
    assert (folder / "train" / "0").read_text() == "rows"
    assert folder.stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_is_taken_over(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    with new_folder(folder) as aside:
        (aside / "file").touch()
    assert names(tmp_path) == ["a", "a/file"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_exists_is_refused_and_unharmed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "folder":
        path.mkdir()
        (path / "precious").write_text("work")
    else:
        path.write_text("work")
    before = names(tmp_path)
    with pytest.raises(DataError) as caught, new_folder(path):
        pytest.fail("the block was entered")
    assert str(caught.value) == (
        f"{path} exists already: name another destination, or remove it first"
    )
    assert names(tmp_path) == before
    assert (path / "precious" if kind == "folder" else path).read_text() == "work"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), DataError("x")])
def test_an_error_in_the_block_leaves_nothing_and_is_raised_as_it_is(
    tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught:
        half_written(tmp_path / "a", error)
    assert caught.value is error
    assert names(tmp_path) == []


def test_a_full_disk_in_the_block_leaves_nothing_and_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        half_written(tmp_path / "a", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert str(caught.value) == f"cannot write {tmp_path / 'a'}: No space left on device"
    assert names(tmp_path) == []


def test_a_parent_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with (
        pytest.raises(StorageError, match=r"cannot write .*a/b: "),
        new_folder(tmp_path / "a" / "b"),
    ):
        pytest.fail("the block was entered")
    assert names(tmp_path) == ["a"]


def test_who_takes_the_name_meanwhile_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*a: "):
        taken_meanwhile(tmp_path / "a")
    assert names(tmp_path) == ["a", "a/theirs"]


def test_every_folder_reaches_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    seen: list[tuple[str, bool]] = []
    fsync_folder = durable.fsync_folder

    def recorded(path: Path) -> None:
        seen.append((path.name.split(".")[0] or "aside", folder.exists()))
        fsync_folder(path)

    monkeypatch.setattr(durable, "fsync_folder", recorded)
    with new_folder(folder) as aside:
        (aside / "train" / "deep").mkdir(parents=True)
    assert seen == [("deep", False), ("train", False), ("aside", False), (tmp_path.name, True)]
