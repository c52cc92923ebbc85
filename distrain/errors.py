"""What can end a run, each with the exit code that tells it apart.

Exception
|-- DistrainError
|   |-- UsageError        64   the command line is wrong
|   |-- ProgramError      70   the model, the loss or the program is at fault
|   |   `-- NonFiniteError     a loss or gradient is NaN or infinite
|   `-- ConfigError       78   the job can't be run as it is described
|-- DataError             65   (data_pipeline) missing, damaged or not as described
`-- StorageError          74   (data_pipeline) a file or folder could not be written
"""

from collections.abc import Sequence
from enum import IntEnum

from data_pipeline.errors import DataError, StorageError


class ExitCode(IntEnum):
    """How a run ended, for scripts and schedulers; the numbers follow sysexits.h."""

    DONE = 0
    USAGE = 64
    DATA = 65
    WORKER_LOST = 69
    FAULT = 70
    STORAGE = 74
    STOPPED = 75
    CONFIG = 78
    CTRL_C = 130


class DistrainError(Exception):
    """Base of the errors that are meant for the person who runs a job."""

    exit_code = ExitCode.FAULT


class UsageError(DistrainError):
    """The command line is wrong."""

    exit_code = ExitCode.USAGE


class ConfigError(DistrainError):
    """The job can't be run as it is described."""

    exit_code = ExitCode.CONFIG


class ProgramError(DistrainError):
    """The model, the loss or the program is at fault."""


class NonFiniteError(ProgramError):
    """A loss or gradient is NaN or infinite; says at which step and for which samples.

    Attributes:
        step: Counted from 1, as in the log.
        epoch: Counted from 1.
        what: The loss, the gradient, or their sum.
        rows: Row numbers in the data set of the samples of the micro-batches at fault.
    """

    def __init__(
        self, *, step: int, epoch: int, what: str, rows: Sequence[int], cause: str = ""
    ) -> None:
        """Words the message; it names at most 32 rows. `cause` says what it can't be, or must."""
        named = ", ".join(map(str, rows[:32])) + (", ..." if len(rows) > 32 else "")
        super().__init__(
            f"the {what} is not finite at step {step} (epoch {epoch}); the samples of the "
            f"micro-batches at fault are the data set's rows {named}. {cause}The weights are "
            "those before the step; look at these samples, lower the learning rate, or clip the "
            "gradient"
        )
        self.step, self.epoch, self.what, self.rows = step, epoch, what, tuple(rows)


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code for an error; whatever is not known above is a fault of the program."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.CTRL_C
    if isinstance(error, (DistrainError, DataError, StorageError)):
        return ExitCode(error.exit_code)
    return ExitCode.FAULT


def is_for_the_user(error: BaseException) -> bool:
    """Whether the message alone says what to do, so that a traceback would only hide it."""
    return isinstance(error, (DistrainError, DataError, StorageError, KeyboardInterrupt))
