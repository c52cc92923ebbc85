"""Checkpoints in an object store: the upload of state.json is the commit, and nothing less."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import distrain as library
from data_pipeline import Dataset
from data_pipeline.errors import StorageError
from distrain.coordinator.checkpoint import (
    CheckpointContents,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from distrain.coordinator.checkpoint_listing import listed_checkpoints
from distrain.coordinator.checkpoint_store import CheckpointStore, DamagedCheckpointError
from distrain.coordinator.checkpoint_verification import damages
from distrain.coordinator.checkpointing import Checkpoint, CheckpointKeeper
from distrain.coordinator.run_state import RunState
from distrain.coordinator.stored_checkpoints import open_store, store_of_run
from distrain.errors import ConfigError, exit_code_of
from launch.main import main
from tests.conftest import Completed
from tests.object_stores import S3Server, s3_server
from tests.run_folders import events, named, outcome, status
from tests.started import JOB, train, unbroken

RUN_ID = "0123abcd"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(params=["s3", "file"])
def address(request: pytest.FixtureRequest, tmp_path: Path, s3: S3Server) -> str:
    """A place that is there, and holds nothing yet."""
    if request.param == "s3":
        return s3.address(tmp_path.name)
    (tmp_path / "disk").mkdir()
    return (tmp_path / "disk").as_uri()


@pytest.fixture
def store(address: str, tmp_path: Path) -> CheckpointStore:
    return open_store(tmp_path / "run", RUN_ID, address)


@pytest.fixture
def objects(s3: S3Server, tmp_path: Path) -> CheckpointStore:
    """In the server, under the name of the test's folder."""
    return open_store(tmp_path / "run", RUN_ID, s3.address(tmp_path.name))


def some_contents(step: int) -> CheckpointContents:
    tensors = {"model": {"w": torch.arange(9.0) + step}, "optimizer": {"m": torch.ones(4) * step}}
    return CheckpointContents(tensors, {"run": {"step": step, "epochs": []}})


def assert_same(found: CheckpointContents, wanted: CheckpointContents) -> None:
    assert found.state == wanted.state
    assert found.tensors.keys() == wanted.tensors.keys()
    for group, tensors in wanted.tensors.items():
        assert all(torch.equal(found.tensors[group][name], own) for name, own in tensors.items())


def test_what_is_written_is_read_whole_and_listed(store: CheckpointStore) -> None:
    store.check()
    store.begin(b"{}")
    assert newest_checkpoint(store) is None
    began = time.time()
    sizes = {step: write_checkpoint(store, step, some_contents(step)) for step in (8, 1200)}
    assert store.steps() == [8, 1200]
    assert_same(read_checkpoint(store, 8), some_contents(8))
    newest = newest_checkpoint(store)
    assert newest is not None
    assert (newest.step, newest.damaged) == (1200, [])
    assert damages(store, 8) == []
    for one in listed_checkpoints(store):
        assert (one.size_bytes, one.problem) == (sizes[one.step], "")
        assert one.written is not None
        assert abs(one.written - began) < 60
        assert one.path == f"{store.where}/step-{one.step:09d}"
    assert RUN_ID in store.where


def test_a_step_has_one_state_only(store: CheckpointStore) -> None:
    write_checkpoint(store, 3, some_contents(3))
    write_checkpoint(store, 3, some_contents(4))
    assert_same(read_checkpoint(store, 3), some_contents(3))


def test_retention_is_that_of_a_folder(store: CheckpointStore) -> None:
    policy = Checkpoint(keep_last=2, keep_every=6)
    keeper = CheckpointKeeper(policy, store, lambda: None)
    for step in range(2, 21, 2):
        keeper.write(RunState(step=step), some_contents(step))
    assert store.steps() == [6, 12, 18, 20]


def test_of_a_checkpoint_that_goes_state_json_goes_first(
    objects: CheckpointStore, s3: S3Server, tmp_path: Path
) -> None:
    write_checkpoint(objects, 4, some_contents(4))
    s3.gate.seen.clear()
    objects.remove(4)
    removals = [path for method, path in s3.gate.seen if method == "DELETE" or "?delete" in path]
    assert removals[0].endswith("/step-000000004/state.json")
    assert [name for name in s3.names(tmp_path.name) if "step" in name] == []


class PowerCutError(Exception):
    """The writer is no more."""


def cut_off() -> None:
    raise PowerCutError


def test_an_upload_without_its_manifest_is_no_checkpoint_and_is_cleared_away(
    store: CheckpointStore,
) -> None:
    write_checkpoint(store, 4, some_contents(4))
    with pytest.raises(PowerCutError):
        write_checkpoint(store, 8, some_contents(8), cut_off)
    assert store.steps() == [4]
    newest = newest_checkpoint(store)
    assert newest is not None
    assert (newest.step, newest.damaged) == (4, [])
    keeper = CheckpointKeeper(Checkpoint(keep_last=2), store, lambda: None)
    keeper.write(RunState(step=12), some_contents(12))
    assert store.steps() == [4, 12]
    assert store.files(12).keys() == {"state.json", "model.safetensors", "optimizer.safetensors"}


def test_what_a_cut_off_upload_has_left_is_no_part_of_the_next_of_that_step(
    objects: CheckpointStore, s3: S3Server, tmp_path: Path
) -> None:
    other = CheckpointContents({"best": {"w": torch.ones(2)}}, {})
    with pytest.raises(PowerCutError):
        write_checkpoint(objects, 8, other, cut_off)
    assert s3.names(f"{tmp_path.name}/{RUN_ID}") == ["step-000000008/best.safetensors"]
    write_checkpoint(objects, 8, some_contents(8))
    assert_same(read_checkpoint(objects, 8), some_contents(8))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_turned_bit_is_found_named_and_the_one_before_is_taken(
    objects: CheckpointStore, s3: S3Server, tmp_path: Path, name: str
) -> None:
    for step in (4, 8):
        write_checkpoint(objects, step, some_contents(step))
    s3.flip(f"{tmp_path.name}/{RUN_ID}/step-000000008/{name}", 60)
    (found,) = damages(objects, 8)
    assert found.startswith(name)
    newest = newest_checkpoint(objects)
    assert newest is not None
    assert newest.step == 4
    assert_same(newest.contents, some_contents(4))
    (told,) = newest.damaged
    assert f"/step-000000008/{name}" in told
    assert told.endswith("(kept as step-000000008/damaged.json)")
    assert objects.steps() == [4]
    assert objects.kept_aside() == ["step-000000008"]
    objects.clear_leftovers()
    assert len(objects.files(8)) == 3, "what is damaged is kept, to be looked at"
    write_checkpoint(objects, 8, some_contents(8))
    assert_same(read_checkpoint(objects, 8), some_contents(8))
    assert objects.kept_aside() == []


def test_an_object_that_is_missing_or_too_many_is_named(
    objects: CheckpointStore, s3: S3Server, tmp_path: Path
) -> None:
    root = f"{tmp_path.name}/{RUN_ID}"
    write_checkpoint(objects, 4, some_contents(4))
    s3.write(f"{root}/step-000000004/more.pkl", b"x")
    assert damages(objects, 4) == ["more.pkl does not belong to it"]
    s3.files.delete_file(f"checkpoints/{root}/step-000000004/more.pkl")
    s3.files.delete_file(f"checkpoints/{root}/step-000000004/model.safetensors")
    assert damages(objects, 4) == ["model.safetensors is missing"]
    with pytest.raises(DamagedCheckpointError, match=r"model\.safetensors is missing"):
        read_checkpoint(objects, 4)


def test_a_store_that_gives_no_answer_damages_nothing(
    objects: CheckpointStore, s3: S3Server
) -> None:
    for step in (4, 8):
        write_checkpoint(objects, step, some_contents(step))
    s3.gate.close(lambda method, path: method == "GET" and "model" in path, refuses=True)
    with pytest.raises(StorageError, match=r"cannot read .*step-000000008: .*look at the cred"):
        newest_checkpoint(objects)
    s3.gate.open()
    assert objects.steps() == [4, 8]
    assert objects.kept_aside() == []


def test_who_may_use_the_prefix_alone_need_not_see_the_bucket(
    objects: CheckpointStore, s3: S3Server
) -> None:
    s3.gate.close(lambda method, path: (method, path) == ("HEAD", "/checkpoints"), refuses=True)
    objects.check()
    assert s3.gate.reached.is_set()
    s3.gate.open()


def test_an_upload_that_fails_is_an_error_and_the_earlier_ones_stand(
    objects: CheckpointStore, s3: S3Server
) -> None:
    keeper = CheckpointKeeper(Checkpoint(keep_last=1), objects, lambda: None)
    keeper.write(RunState(step=4), some_contents(4))
    s3.gate.close(lambda method, path: method == "POST" and "state.json" in path, refuses=True)
    with pytest.raises(StorageError, match=r"cannot write s3://.*state\.json: .*ACCESS_DENIED"):
        keeper.write(RunState(step=8), some_contents(8))
    assert objects.steps() == [4]
    s3.gate.open()
    keeper.write(RunState(step=9), some_contents(9))
    assert objects.steps() == [9]


def test_large_objects_come_in_parts_and_are_the_same(objects: CheckpointStore) -> None:
    """Beyond the size that is waited for in between, and of a part."""
    tensors = {"w": torch.arange(18_000_000, dtype=torch.float32), "v": torch.ones(3)}
    write_checkpoint(objects, 4, CheckpointContents({"model": tensors}, {}))
    assert_same(read_checkpoint(objects, 4), CheckpointContents({"model": tensors}, {}))


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("checkpoints/here", "give the address of a place that is there"),
        ("s3://", "names no bucket"),
        ("s3://key:hidden@bucket/prefix", "an address with a key in it"),
        ("file://disk", "write the whole path"),
        ("file:///", "write the whole path"),
        ("s3://[", "Invalid IPv6 URL"),
    ],
)
def test_what_can_be_no_address_is_refused_before_anything_starts(
    address: str, told: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.store"):
        Checkpoint(store=address)
    paths = ["--data.path", str(digits), "--run.dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        main(["train", str(JOB), *paths, "--checkpoint.store", address])
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code in (64, 78), said
    assert told in said
    assert "hidden" not in said
    assert not (tmp_path / "run").exists()


def test_what_pyarrow_cannot_read_or_reach_is_refused_by_name(tmp_path: Path, s3: S3Server) -> None:
    def opened(address: str) -> CheckpointStore:
        return open_store(tmp_path, RUN_ID, address)

    with pytest.raises(ConfigError, match="xx://bucket/here': Unrecognized filesystem type"):
        opened("xx://bucket/here").check()
    with pytest.raises(ConfigError, match="Unexpected query parameter in S3 URI: 'fo'"):
        opened(s3.address("here") + "&fo=1").check()
    with pytest.raises(ConfigError, match=r"the bucket nowhere, and there is none of that name"):
        opened(s3.address("here", "nowhere")).check()
    with pytest.raises(ConfigError, match=r"there is no such folder: make it first"):
        opened((tmp_path / "unmounted").as_uri()).check()


def test_an_endpoint_that_never_answers_is_given_up_within_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distrain.coordinator.object_store.SILENCE_S", 1.0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"s3://b/p?endpoint_override=127.0.0.1:{silent.getsockname()[1]}&scheme=http"
        began = time.monotonic()
        with pytest.raises(StorageError, match=r"cannot reach s3://b/p/0123abcd: .*endpoint_over"):
            open_store(tmp_path, RUN_ID, address).check()
        assert time.monotonic() - began < 60


def test_a_run_ends_at_its_start_where_its_store_cannot_be_reached(
    distrain: Callable[..., Completed], digits: Path, tmp_path: Path
) -> None:
    """And says so within 80 columns of words, not of a traceback."""
    address = "s3://b/p?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
    paths = ("--data.path", digits, "--run.dir", tmp_path / "run")
    done = distrain("train", JOB, *paths, "--checkpoint.store", address)
    assert done.returncode == 74, done.stderr
    assert done.stderr.startswith("distrain: cannot reach s3://b/p: ")
    assert "look whether the address and its endpoint_override are right" in done.stderr
    assert "Traceback" not in done.stderr
    assert named(tmp_path / "run", "step") == []


OPTIONS = (
    *("--checkpoint.every_steps", 5, "--checkpoint.snapshot_every", 0),
    *("--checkpoint.keep_every", 12, "--checkpoint.keep_best", 1, "--training.epochs", 5),
)


@pytest.fixture(scope="module")
def killed(
    tmp_path_factory: pytest.TempPathFactory, digits: Path, s3: S3Server
) -> tuple[Path, int, int]:
    """A run of 30 steps, whose worker, and then all, were killed just before a commit.

    The newest checkpoint was damaged in between. And the steps that the last two starts began at.
    """
    folder = tmp_path_factory.mktemp("stored") / "digits"
    options = (*OPTIONS, "--checkpoint.store", s3.address("runs"), "--max-restarts", 1)

    def commits(step: int) -> Callable[[str, str], bool]:
        return lambda method, path: method == "POST" and f"/step-{step:09d}/state.json" in path

    s3.gate.close(commits(10))
    with train(digits, folder, 2, *options) as run:
        run.until(s3.gate.reached.is_set)
        os.kill(run.worker(0).pid, signal.SIGKILL)
        s3.gate.open()
        s3.gate.close(commits(20))
        run.until(s3.gate.reached.is_set)
        (first,) = [event["step"] for event in named(folder, "resume")]
    s3.gate.open()
    root = f"runs/{status(folder)['run_id']}"
    newest = max(name for name in s3.names(root) if name.endswith("/state.json"))
    s3.flip(f"{root}/{newest.replace('state.json', 'optimizer.safetensors')}", 100)
    with train(digits, folder, 3, *options) as run:
        assert run.ends() == 0, run.said
    return folder, first, named(folder, "resume")[-1]["step"]


def test_a_run_through_s3_that_is_killed_twice_and_damaged_once_has_the_same_bits(
    killed: tuple[Path, int, int], digits: Path
) -> None:
    folder, first, second = killed
    assert outcome(folder) == unbroken(digits, "--training.epochs", 5)
    assert first == 6, "the newest that was committed: the best epoch's so far"
    assert all(event["source"] == "disk" for event in named(folder, "resume"))
    assert second < 18
    (told,) = [event["text"] for event in named(folder, "damaged")]
    assert "optimizer.safetensors is damaged" in told


def test_all_tools_find_what_is_in_the_store(
    killed: tuple[Path, int, int],
    s3: S3Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = killed[0]
    run_id = status(folder)["run_id"]
    assert not (folder / "checkpoints").exists()
    assert json.loads(s3.read(f"runs/{run_id}/run.json"))["folder"] == str(folder)
    names = s3.names(f"runs/{run_id}")
    steps = sorted({int(name[5:14]) for name in names if name.endswith("/state.json")})
    assert {12, 24, 30} <= set(steps)
    assert all(event["bytes"] > 0 < event["write_s"] for event in named(folder, "checkpoint"))
    assert events(folder)[-1]["event"] == "end"
    monkeypatch.setenv("COLUMNS", "80")

    def shown(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments)])
        out = capsys.readouterr().out
        assert not ended.value.code, out
        return out

    text = shown("status", folder)
    assert "newest checkpoint: step 30, in s3://checkpoints/runs" in text
    assert max(len(line.replace(str(folder), "runs/digits")) for line in text.splitlines()) <= 80
    listed = json.loads(shown("checkpoint", "list", folder, "--json"))["checkpoints"]
    assert [one["step"] for one in listed] == steps
    assert listed[-1]["path"] == f"s3://checkpoints/runs/{run_id}/step-000000030"
    table = shown("checkpoint", "list", folder).splitlines()
    assert [line.split()[0] for line in table[1:] if line[:4].strip()] == list(map(str, steps))
    verified = shown("checkpoint", "verify", folder).splitlines()
    assert [line.partition(", ")[0] for line in verified] == [f"step {n}: good" for n in steps]
    weights = tmp_path / "weights.safetensors"
    shown("checkpoint", "export", folder, weights)
    assert load_file(weights).keys() == load_file(folder / "model.safetensors").keys()
    start = max(number for number in steps if number < 27)
    assert f"from after the checkpoint of step {start}" in shown("replay", folder, "--step", 27)


def fit(run: Path, data: Path, store: str | None, epochs: int = 1, *, fresh: bool = False) -> None:
    """Trains by a script, in this process; 3 steps an epoch, a checkpoint after each second."""
    trainer = library.Trainer(
        model=lambda: torch.nn.Linear(4, 3),
        run=run,
        inputs="features",
        target="label",
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        checkpoint=library.Checkpoint(every_steps=2, snapshot_every=0, store=store),
        fresh=fresh,
        progress=False,
    )
    trainer.fit(Dataset(data, "train"), epochs=epochs, global_batch=30, micro_batch=10)


def as_if_killed(run: Path) -> None:
    (run / "status.json").write_text(json.dumps(status(run) | {"state": "running"}))


def test_a_run_that_begins_anew_shares_nothing_with_the_one_before(
    address: str, iris: Path, tmp_path: Path
) -> None:
    run, aside = tmp_path / "run", tmp_path / "run.old-1"
    fit(run, iris, address)
    before = store_of_run(run)
    fit(run, iris, address, fresh=True)
    assert named(run, "resume") == []
    kept, new = store_of_run(aside), store_of_run(run)
    assert kept.where == before.where != new.where
    assert kept.steps() == new.steps() == [2]
    assert new.where.rpartition("/")[0] == kept.where.rpartition("/")[0]


def test_a_run_whose_checkpoints_are_elsewhere_is_not_begun_again_silently(
    address: str, iris: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fit(run, iris, address)
    as_if_killed(run)
    where = re.escape(store_of_run(run).where)
    with pytest.raises(ConfigError, match=rf"has checkpoints up to step 2 in {where}, and none in"):
        fit(run, iris, None)
    assert len(named(run, "step")) == 3, "its log stands"
    fit(run, iris, address)
    assert [event["step"] for event in named(run, "resume")] == [2]


def test_a_run_that_stood_in_its_folder_goes_on_in_a_store_that_it_was_copied_to(
    iris: Path, tmp_path: Path
) -> None:
    run, disk = tmp_path / "run", tmp_path / "disk"
    fit(run, iris, None)
    as_if_killed(run)
    disk.mkdir()
    with pytest.raises(ConfigError, match=r"go on without checkpoint\.store, copy the one"):
        fit(run, iris, disk.as_uri())
    (run / "checkpoints").rename(disk / status(run)["run_id"])
    fit(run, iris, disk.as_uri())
    assert [event["step"] for event in named(run, "resume")] == [2]


def test_a_bucket_that_is_not_there_ends_a_run_at_its_start_with_78(
    s3: S3Server, iris: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="the bucket nowhere, and there is none") as refused:
        fit(tmp_path / "run", iris, s3.address("here", "nowhere"))
    assert exit_code_of(refused.value) == 78


def test_a_store_that_takes_nothing_ends_a_run_at_its_start_with_74(
    s3: S3Server, iris: Path, tmp_path: Path
) -> None:
    s3.gate.close(lambda method, path: method == "POST" and "run.json" in path, refuses=True)
    with pytest.raises(StorageError, match="look at the credentials") as refused:
        fit(tmp_path / "run", iris, s3.address(tmp_path.name))
    s3.gate.open()
    assert exit_code_of(refused.value) == 74
    assert named(tmp_path / "run", "step") == []


def test_the_last_save_into_a_store_that_takes_nothing_fails_the_run_with_74(
    s3: S3Server, digits: Path, tmp_path: Path
) -> None:
    options = ("--checkpoint.every_seconds", 3600, "--training.epochs", 2000)
    run = tmp_path / "run"
    with train(digits, run, 1, *options, "--checkpoint.store", s3.address(tmp_path.name)) as going:
        going.until(lambda: len(named(run, "step")) > 2)
        s3.gate.close(lambda method, path: method == "POST" and "step-" in path, refuses=True)
        going.process.terminate()
        assert going.ends() == 74, going.said
    s3.gate.open()
    assert "the last save failed: cannot write s3://checkpoints/" in going.said
    assert len(named(run, "checkpoint_failed")) == 2
