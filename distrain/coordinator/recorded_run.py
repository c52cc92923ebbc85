"""A run from its begin to its end: whatever ends it is noted in its folder."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.errors import StorageError
from distrain.coordinator.generation import is_restart, refuse_stranger
from distrain.coordinator.recording import Recording
from distrain.coordinator.run_folder import RunFolder
from distrain.coordinator.stops import StoppedError
from distrain.errors import ConfigError
from distrain.parallel.replicas import refuse_differences
from distrain.parallel.roll_call import explained
from distrain.parallel.world import World


@contextmanager
def open_recording(
    world: World,
    folder: str | Path | None,
    identity: Mapping[str, Any],
    job: Mapping[str, Any],
    *,
    fresh: bool,
    show: bool,
    prometheus_port: int | None = None,
) -> Iterator[Recording]:
    """A run's recording; an error that leaves the block is noted in the folder.

    Raises:
        StorageError: the folder can't be used; see `RunFolder`.
        ConfigError: the same; or the workers were given different runs.
    """
    refuse_differences(identity, world)
    with ExitStack() as stack:
        held: RunFolder | None = None
        if world.rank == 0 and folder is not None:
            refuse_stranger(Path(folder))
            held = stack.enter_context(
                RunFolder(folder, identity, fresh=fresh and not is_restart(Path(folder)))
            )
        recording = Recording(world, held, job, show=show, prometheus_port=prometheus_port)
        try:
            yield recording
        except StoppedError:
            raise
        except BaseException as error:
            told = explained(error, world, recording.steps_done)
            _note(recording, told)
            if told is error:
                raise
            raise told from error


def _note(recording: Recording, error: BaseException) -> None:
    try:
        recording.fail(error)
    except (StorageError, ConfigError) as second:
        # The first error is the one to report; that it could not be noted goes with it. A newer
        # start (ConfigError) keeps its own status.
        error.add_note(f"(and this could not be noted in the run's folder: {second})")
