"""What becomes of a step whose numbers are bad: a rule, and a state that moves by it. Pure.

A loss or gradient that is not finite, and a loss that jumps, are seen in the step's sum, before the
weights move. All workers hold the same sum and the same state, so they come to one verdict. Nothing
here imports torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Literal

from distrain.checks import check_above_zero, check_at_least, check_known
from distrain.errors import BadStepError, ConfigError

Kind = Literal["non_finite", "spike"]
Action = Literal["ignore", "stop", "skip", "go_back"]

NORMAL_MAD = 0.6744897501960817
"""The median absolute deviation of a normal distribution whose standard deviation is 1."""

LEAST_SPREAD = 0.01
"""Share of the median that the deviation is taken to be at least: a loss may stand still."""


@dataclass(frozen=True, kw_only=True)
class BadNumbers:
    """What to do about numbers that are not finite, and about spikes."""

    non_finite: Literal["stop", "skip", "go_back"] = "stop"
    """A loss or gradient is NaN or infinite. stop: the run ends with 70,
    the state before the step saved. skip: the step moves nothing, and
    counts. go_back: the run goes on from an earlier step."""
    spike: Literal["ignore", "stop", "skip", "go_back"] = "ignore"
    """What is watched lies far above the median of the last steps, which
    is judged before the update: by more than so many deviations. A
    deviation is the median absolute one over 0.6745, and 1% of the
    median at least."""
    watch: Literal["loss", "grad_norm"] = "loss"
    """What spikes are looked for in: a step's mean loss, or its gradient's
    norm before clipping."""
    deviations: float = 10.0
    """So far above the median a spike begins."""
    window_steps: int = 100
    """The median is that of so many last steps; those skipped don't count."""
    least_steps: int = 20
    """There are no spikes before so many steps."""
    every_steps: int = 100
    """go_back: to the newest step that is a multiple of this, whatever
    checkpoints there are. The state after it is kept in each worker's
    memory, and in each checkpoint, which then has twice the bytes."""
    skip_batches: bool = True
    """go_back: leave out the samples of the steps from there to the bad one;
    these steps are counted, and move nothing."""
    lr_factor: float = 1.0
    """go_back: multiply all learning rates by this from there on, once more
    each time."""
    most: int = 10
    """After so many steps skipped and ways gone back, the next bad step ends
    the run."""

    def __post_init__(self) -> None:
        """Checks names and ranges, and that going back leads elsewhere."""
        check_known("bad_numbers.non_finite", self.non_finite, ("stop", "skip", "go_back"))
        check_known("bad_numbers.spike", self.spike, ("ignore", "stop", "skip", "go_back"))
        check_known("bad_numbers.watch", self.watch, ("loss", "grad_norm"))
        check_above_zero("bad_numbers.deviations", self.deviations)
        check_at_least("bad_numbers.least_steps", self.least_steps, 2)
        check_at_least("bad_numbers.every_steps", self.every_steps, 1)
        check_at_least("bad_numbers.most", self.most, 1)
        if self.window_steps < self.least_steps:
            raise ConfigError(
                f"bad_numbers.window_steps is {self.window_steps}; it must be "
                f"{self.least_steps} or more, which is bad_numbers.least_steps"
            )
        if not 0 < self.lr_factor <= 1:
            raise ConfigError(
                f"bad_numbers.lr_factor is {self.lr_factor}; it must be above 0, and 1 at most"
            )
        if self.may_go_back and self.lr_factor == 1 and not self.skip_batches:
            raise ConfigError(
                "bad_numbers: a run that goes back and changes nothing comes to the same numbers "
                "again: give skip_batches = true, or an lr_factor below 1"
            )

    @property
    def may_go_back(self) -> bool:
        """Whether an earlier state has to be kept."""
        return "go_back" in (self.non_finite, self.spike)

    @property
    def identity(self) -> dict[str, Any]:
        """What defines a run's result as long as nothing bad was seen.

        Up to the first bad step a run that would stop there is the one that would skip it: it can
        be taken up with the other rule.
        """
        found: dict[str, Any] = {}
        if self.spike != "ignore":
            found |= self._given("watch", "deviations", "window_steps", "least_steps")
        if self.may_go_back:
            found |= self._given("non_finite", "spike", "every_steps", "skip_batches", "lr_factor")
        return found

    def _given(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}

    def action(self, kind: Kind, state: "NumbersState") -> Action:
        """What a bad step of this kind leads to."""
        if len(state.interventions) >= self.most:
            return "stop"
        return self.non_finite if kind == "non_finite" else self.spike

    def limits(self, state: "NumbersState", lr_factor: float = 1.0) -> "StepLimits":
        """What the next step is judged by, and how its rates, times a factor, are lowered."""
        kinds: tuple[Kind, ...] = ("non_finite", "spike")
        return StepLimits(
            lr_factor=state.lr_factor * lr_factor,
            watch=self.watch,
            spike_above=self.spike_above(state.recent),
            skips=frozenset(kind for kind in kinds if self.action(kind, state) == "skip"),
        )

    def spike_above(self, recent: Sequence[float]) -> float:
        """What a spike exceeds, from the values of the last steps; infinity for none.

        Robust: up to half of the values may be anything. Rousseeuw and Croux (1993),
        https://doi.org/10.1080/01621459.1993.10476408.
        """
        if self.spike == "ignore" or len(recent) < self.least_steps:
            return math.inf
        middle = median(recent)
        deviation = median(abs(value - middle) for value in recent) / NORMAL_MAD
        deviation = max(deviation, LEAST_SPREAD * abs(middle))
        return middle + self.deviations * deviation if deviation else math.inf

    def after_step(self, state: "NumbersState", loss: float, grad_norm: float) -> "NumbersState":
        """The state after a step that has moved the weights."""
        value = loss if self.watch == "loss" else grad_norm
        if self.spike == "ignore" or not math.isfinite(value):
            return state
        return replace(state, recent=(*state.recent, value)[-self.window_steps :])

    def after_skip(self, state: "NumbersState", bad: BadStepError) -> "NumbersState":
        """The state after a bad step that has moved nothing."""
        return replace(state, interventions=(*state.interventions, _noted(bad, None)))

    def after_going_back(
        self, there: "NumbersState", now: "NumbersState", bad: BadStepError, step: int
    ) -> "NumbersState":
        """The state to go on with after a step; `there` is what it was, `now` at the bad step."""
        return NumbersState(
            recent=there.recent,
            lr_factor=now.lr_factor * self.lr_factor,
            pass_until=bad.step if self.skip_batches else 0,
            interventions=(*now.interventions, _noted(bad, step)),
        )

    def check(self, state: "NumbersState") -> None:
        """Refuses a run in which another rule has done something already.

        Raises:
            ConfigError: names the step, and what was done.
        """
        for one in state.interventions:
            done = "skip" if one.back_to is None else "go_back"
            if done != (self.non_finite if one.kind == "non_finite" else self.spike):
                raise ConfigError(
                    f'the run has taken up step {one.step} by bad_numbers.{one.kind} = "{done}": '
                    "go on with that, name another folder with --run.dir, or start with --fresh, "
                    "which moves it aside"
                )


@dataclass(frozen=True)
class StepLimits:
    """What a step is judged by before its update.

    Attributes:
        lr_factor: Multiplies its learning rates, beside the schedule's factor.
        watch: What a spike is one of.
        spike_above: What a spike exceeds.
        skips: The kinds of bad steps that move nothing; others are raised.
    """

    lr_factor: float = 1.0
    watch: Literal["loss", "grad_norm"] = "loss"
    spike_above: float = math.inf
    skips: frozenset[Kind] = frozenset()


@dataclass(frozen=True)
class Intervention:
    """What was done about one bad step.

    Attributes:
        step: The bad one, counted from 1.
        kind: `non_finite` or `spike`.
        problem: In words.
        back_to: Steps done in the state that the run went back to; None where it was skipped.
    """

    step: int
    kind: Kind
    problem: str
    back_to: int | None = None

    def __str__(self) -> str:
        """For a person."""
        done = "skipped" if self.back_to is None else f"gone back from, to step {self.back_to}"
        return f"step {self.step} ({self.problem}) was {done}"


def _noted(bad: BadStepError, back_to: int | None) -> Intervention:
    return Intervention(bad.step, bad.kind, bad.problem, back_to)


@dataclass(frozen=True)
class NumbersState:
    """How a run's numbers have gone so far; part of its state.

    Attributes:
        recent: What is watched, of the last steps that have moved the weights.
        lr_factor: Multiplies the learning rates.
        pass_until: Steps up to this one are counted and not done.
        interventions: What was done about bad steps, the first one first.
    """

    recent: tuple[float, ...] = ()
    lr_factor: float = 1.0
    pass_until: int = 0
    interventions: tuple[Intervention, ...] = ()

    @property
    def times_back(self) -> int:
        """How often the run has gone back."""
        return sum(one.back_to is not None for one in self.interventions)

    def to_json(self) -> dict[str, Any]:
        """Plain values; floats come back bit for bit."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "NumbersState":
        """The state that `to_json` gave."""
        return cls(
            recent=tuple(values["recent"]),
            lr_factor=values["lr_factor"],
            pass_until=values["pass_until"],
            interventions=tuple(Intervention(**one) for one in values["interventions"]),
        )
