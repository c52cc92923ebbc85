"""Which place a run's checkpoints stand in: its own folder, or where `checkpoint.store` says."""

import json
import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

from distrain.coordinator.checkpoint_store import CheckpointStore
from distrain.coordinator.folder_store import FolderStore
from distrain.coordinator.run_layout import CHECKPOINTS, JOB, STATUS
from distrain.errors import ConfigError, UsageError
from distrain.job_file import read_checkpoint_section

_NOT_BEGUN = "not-begun"
"""No run's id: nothing stands there."""


def open_store(run: Path, run_id: str, address: str | None) -> CheckpointStore:
    """The checkpoints of the run in a folder.

    In a store that several runs share each has a place of its own, by its id: `run_id` is empty
    for a run that has not begun, and so has none.

    Nobody is asked yet whether the place is there: see `CheckpointStore.check`.
    """
    if address is None:
        return FolderStore(run / CHECKPOINTS)
    if address.startswith("file:"):
        root = Path(unquote(urlsplit(address).path))
        return FolderStore(root / (run_id or _NOT_BEGUN), within=root)
    from distrain.coordinator.object_store import ObjectStore  # noqa: PLC0415 - pyarrow's weight

    return ObjectStore(address, run_id)


def recorded_address(run: Path) -> str | None:
    """Where the run in a folder has said that its checkpoints are; None for its own folder.

    Raises:
        ConfigError: its job.toml can't be read.
    """
    section = read_checkpoint_section(run / JOB) if (run / JOB).exists() else None
    return None if section is None else section.store


def store_of_run(run: Path) -> CheckpointStore:
    """The checkpoints of a run that was recorded; none may have been written yet.

    Raises:
        UsageError: there is no run in the folder.
        ConfigError: its job.toml, or the address there, can't be read.
        StorageError: the place gives no answer.
    """
    if not any((run / name).exists() for name in (JOB, STATUS, CHECKPOINTS)):
        raise UsageError(
            f"there is no run in {run}: name the folder that holds its {JOB} and {CHECKPOINTS}"
        )
    address = recorded_address(run)
    store = open_store(run, "" if address is None else _recorded_id(run), address)
    store.check()
    return store


def _recorded_id(run: Path) -> str:
    path = run / STATUS
    try:
        return str(json.loads(path.read_bytes())["run_id"]) if path.exists() else ""
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}), and it alone says which checkpoints in the store "
            "are this run's"
        ) from error


def begun_store(
    run: Path, run_id: str, address: str | None, before: CheckpointStore
) -> CheckpointStore:
    """The checkpoints of a run that begins: shows at once that they can be written.

    `before` is of the id that the folder had, which has no checkpoints; what is left there goes.

    Raises:
        StorageError: they can't be.
    """
    store = open_store(run, run_id, address)
    if address is not None:
        told = {"run_id": run_id, "folder": str(run.resolve()), "host": socket.gethostname()}
        store.begin(json.dumps(told, indent=2).encode() + b"\n")
        before.clear_leftovers()
    return store


def refuse_moved(run: Path, run_id: str, store: CheckpointStore) -> None:
    """Goes on only where no checkpoints would be left behind; `store` has none.

    Raises:
        ConfigError: there are some where the run kept them before.
    """
    before = recorded_address(run)
    old = open_store(run, run_id, before)
    if old.where != store.where and (steps := old.steps()):
        named = "without checkpoint.store" if before is None else f"with checkpoint.store {before}"
        raise ConfigError(
            f"the run in {run} has checkpoints up to step {steps[-1]} in {old.where}, and none in "
            f"{store.where}: go on {named}, copy the one to the other (each step's state.json "
            "last), or start with --fresh, which moves the run aside"
        )
