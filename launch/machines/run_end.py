"""How a run has ended, from its folder: for a launcher that was away when the others were told."""

import json
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import StorageError
from distrain.coordinator.generation import launch_in
from distrain.coordinator.run_layout import DONE, FAILED, STATUS, STOPPED
from distrain.coordinator.stops import OTHER_SIZE
from distrain.errors import ExitCode
from launch.failure import Cause, is_retried


@dataclass(frozen=True)
class RunEnd:
    """It has ended, by `cause`; None where that was well."""

    cause: Cause | None


def end_in(run: Path, launch: str) -> RunEnd | None:
    """The end of that launch's run; None where its folder tells of none.

    A status that fits a run which goes on after a restart is no end.
    """
    try:
        if not launch or launch_in(run) != launch:
            return None
        status = json.loads((run / STATUS).read_bytes())
        state, reason = status["state"], str(status.get("reason"))
        code = int(status.get("exit_code", ExitCode.WORKER_LOST))
    except (StorageError, OSError, ValueError, KeyError, TypeError):
        return None  # this machine doesn't see it; who keeps the rendezvous may come yet
    if state == DONE:
        return RunEnd(None)
    cause = Cause(0, code, reason)
    is_change = state == STOPPED and reason.endswith(OTHER_SIZE)
    if state not in (STOPPED, FAILED) or is_change or is_retried(cause):
        return None
    return RunEnd(cause)
