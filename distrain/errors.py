"""What can end a run, each with the exit code that tells it apart.

Exception
|-- DistrainError
|   |-- UsageError        64   the command line is wrong
|   |-- ProgramError      70   the model, the loss or the program is at fault
|   |   |-- HangError          a worker gives no sign of life
|   |   `-- BadStepError       a step whose numbers are bad
|   |       |-- NonFiniteError     a loss or gradient is NaN or infinite
|   |       |-- SpikeError         a loss, or a gradient's norm, has jumped
|   |       `-- RuinedWeightsError a weight is NaN or infinite
|   |-- DivergedError     70   the workers no longer hold the same state
|   |-- LostPeerError     69   an exchange failed: another worker has ended, or stands still
|   `-- ConfigError       78   the job can't be run as it is described
|-- DataError             65   (data_pipeline) missing, damaged or not as described
`-- StorageError          74   (data_pipeline) a file or folder could not be written
"""

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Literal

from data_pipeline.errors import DataError, StorageError

_LOST_PEER = re.compile(r"/gloo/|NCCL error|TCPStore|Connection (closed|reset) by peer")


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


RETRIED = frozenset({ExitCode.WORKER_LOST, ExitCode.STOPPED})
"""After these the same command is worth another try."""

FATAL = frozenset(ExitCode) - RETRIED - {ExitCode.DONE, ExitCode.CTRL_C}
"""After these another try would end the same way."""


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


class UndefinedScoreWarning(UserWarning):
    """A metric is not defined on a data set, and is NaN."""


class BadStepError(ProgramError):
    """A step's numbers are bad; all workers see so alike.

    Attributes:
        kind: `non_finite` or `spike`.
        step: Counted from 1, as in the log.
        epoch: Counted from 1.
        problem: What is wrong, in a few words.
        rows: Row numbers in the data set of the samples of the micro-batches at fault.
        history: What the run has done about earlier ones, in words.
    """

    kind: Literal["non_finite", "spike"] = "non_finite"

    def __init__(
        self, text: str, *, step: int, epoch: int, problem: str, rows: Sequence[int] = ()
    ) -> None:
        """`text` is the message."""
        super().__init__(text)
        self.step, self.epoch, self.problem, self.rows = step, epoch, problem, tuple(rows)
        self.history = ""

    def __str__(self) -> str:
        """The message, and the history."""
        return f"{super().__str__()}{self.history}"


class NonFiniteError(BadStepError):
    """A loss or gradient is NaN or infinite; says at which step and for which samples.

    Attributes:
        what: The loss, the gradient, or their sum.
    """

    def __init__(
        self, *, step: int, epoch: int, what: str, rows: Sequence[int], cause: str = ""
    ) -> None:
        """Words the message; it names at most 32 rows. `cause` says what it can't be, or must."""
        super().__init__(
            f"the {what} is not finite at step {step} (epoch {epoch}); the samples of the "
            f"micro-batches at fault are the data set's rows {named_rows(rows)}. {cause}The "
            "weights are those before the step; look at these samples, lower the learning rate, "
            "clip the gradient, or have such steps skipped (bad_numbers)",
            step=step,
            epoch=epoch,
            problem=f"the {what} is not finite",
            rows=rows,
        )
        self.what = what


class SpikeError(BadStepError):
    """A step's loss, or its gradient's norm, has jumped; the weights are those before it."""

    kind = "spike"

    def __init__(
        self, *, step: int, epoch: int, watch: str, value: float, above: float, rows: Sequence[int]
    ) -> None:
        """Words the message; it names at most 32 rows, those of the highest losses."""
        named = {"grad_norm": "gradient's norm"}.get(watch, watch)
        problem = f"the {named} jumps to {value:.6g}, and {above:.6g} is the limit"
        super().__init__(
            f"{problem}, at step {step} (epoch {epoch}); the micro-batch with the highest loss has "
            f"the data set's rows {named_rows(rows)}. The weights are those before the step; look "
            "at these samples, lower the learning rate, or have such steps skipped (bad_numbers)",
            step=step,
            epoch=epoch,
            problem=problem,
            rows=rows,
        )
        self.value, self.above = value, above


class RuinedWeightsError(BadStepError):
    """An update has left a weight that is not finite."""

    def __init__(self, *, step: int, epoch: int, name: str) -> None:
        """Names the first one."""
        problem = f"parameter {name} is not finite after step {step}"
        super().__init__(
            f"{problem}: lower the learning rate or the weight decay, or clip the gradient",
            step=step,
            epoch=epoch,
            problem=problem,
        )


def named_rows(rows: Sequence[int]) -> str:
    """At most 32 of them."""
    return ", ".join(map(str, rows[:32])) + (", ..." if len(rows) > 32 else "")


class HangError(ProgramError):
    """A worker has given no sign of life for too long.

    Attributes:
        rank: Which.
        step: The one in hand, counted from 1.
        phase: Where it stands, such as `forward`.
    """

    def __init__(self, text: str, *, rank: int, step: int, phase: str) -> None:
        """`text` names them for a person."""
        super().__init__(text)
        self.rank, self.step, self.phase = rank, step, phase

    @property
    def details(self) -> dict[str, Any]:
        """Who, and where."""
        return {"rank": self.rank, "step": self.step, "phase": self.phase}


class DivergedError(DistrainError):
    """The workers no longer hold the same state: a machine's silent error, or code of one alone.

    Its exit code is that of a fault, and not of a lost worker, so that no launcher tries again by
    itself: a faulty device spoils the next start as well, and might do so before anything is
    summed, where no check sees it. A person has to look.

    Attributes:
        step: After this step the states were found to differ.
        alike_after: The newest step before, after which they were alike.
        ranks: The workers that differ from the majority; without one, all of them.
        names: The tensors that differ, the first one first.
        outvoted: Whether there is a majority.
    """

    def __init__(
        self,
        *,
        step: int,
        alike_after: int,
        ranks: Sequence[int],
        names: Sequence[str],
        outvoted: bool,
    ) -> None:
        """Words the message; it names at most 4 tensors."""
        who = named_ranks(ranks)
        if outvoted:
            one = len(ranks) == 1
            said = f"{who} {'holds' if one else 'hold'} another state than the other workers"
            blame = f"look at the memory and the device of {who}"
        else:
            said = f"{who} hold different states"
            blame = "there is no majority, so any of them may be at fault: look at the memory and"
            blame += " the device of each"
        rest = f" (then {', '.join(names[1:4])}{', ...' * (len(names) > 4)})" * (len(names) > 1)
        super().__init__(
            f"{said} after step {step}: {names[0]} is the first tensor that differs{rest}. All "
            f"were alike after step {alike_after}, and at every checkpoint that there is: each is "
            "checked before it is written. Code that changes the model on some ranks only does "
            f"this, else a silent error of a machine: {blame}, then run the same command again"
        )
        self.step, self.alike_after = step, alike_after
        self.ranks, self.names, self.outvoted = tuple(ranks), tuple(names), outvoted


class LostPeerError(DistrainError):
    """An exchange failed: another worker has ended, stands still or can't be reached."""

    exit_code = ExitCode.WORKER_LOST


def named_ranks(ranks: Sequence[int]) -> str:
    """`rank 2`, or `ranks 0, 1 and 3`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code for an error; whatever is not known above is a fault of the program."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.CTRL_C
    if isinstance(error, (DistrainError, DataError, StorageError, LostPeerError)):
        return ExitCode(error.exit_code)
    return ExitCode.FAULT


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that an exchange with other workers has failed."""
    if isinstance(error, LostPeerError):
        return True
    return isinstance(error, RuntimeError) and bool(_LOST_PEER.search(str(error)))


def is_for_the_user(error: BaseException) -> bool:
    """Whether the message alone says what to do, so that a traceback would only hide it."""
    return isinstance(error, (DistrainError, DataError, StorageError, KeyboardInterrupt))
