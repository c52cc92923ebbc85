"""How the weights of a job move, as frozen dataclasses that check themselves. No torch here."""

from dataclasses import dataclass, field
from typing import Any

from distrain.checks import check_above_zero, check_at_least, check_known
from distrain.errors import ConfigError

OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum", "nesterov"),
    "rmsprop": ("momentum", "alpha", "eps"),
    "adagrad": ("eps",),
    "adadelta": ("rho", "eps"),
    "adam": ("betas", "eps"),
    "adamw": ("betas", "eps"),
    "adamax": ("betas", "eps"),
    "nadam": ("betas", "eps"),
}
"""The optimizers by name, each with the fields it takes beside lr and weight_decay."""

AVERAGES: dict[str, tuple[str, ...]] = {
    "ema": ("decay", "every_steps", "start_step"),
    "swa": ("start_epoch", "every_steps"),
}
"""The averages by name, each with the fields it takes."""

_OPTIONS = ("momentum", "nesterov", "betas", "eps", "alpha", "rho")


@dataclass(frozen=True, kw_only=True)
class OptimizerGroupConfig:
    """Parameters with settings of their own; fields left out are those of `[optimizer]`."""

    match: str
    """Pattern for the parameters' full names: * is any text, ? one letter, [ab] one of them."""
    lr: float | None = None
    """Learning rate, before the schedule's factor; 0 leaves the weights as they are."""
    weight_decay: float | None = None
    """L2 penalty, 0 or more; decoupled from the gradient in adamw."""
    momentum: float | None = None
    """For sgd and rmsprop."""
    nesterov: bool | None = None
    """For sgd with momentum."""
    betas: tuple[float, float] | None = None
    """For the Adam family."""
    eps: float | None = None
    """Added to a denominator."""
    alpha: float | None = None
    """Smoothing of rmsprop."""
    rho: float | None = None
    """Smoothing of adadelta."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the weights move. Fields left out have torch's defaults."""

    name: str = "sgd"
    """sgd, rmsprop, adagrad, adadelta, adam, adamw, adamax or nadam."""
    lr: float = 0.01
    """Learning rate, before the schedule's factor."""
    weight_decay: float | None = None
    """L2 penalty; decoupled from the gradient in adamw."""
    momentum: float | None = None
    """For sgd and rmsprop."""
    nesterov: bool | None = None
    """For sgd with momentum."""
    betas: tuple[float, float] | None = None
    """For the Adam family."""
    eps: float | None = None
    """Added to a denominator."""
    alpha: float | None = None
    """Smoothing of rmsprop."""
    rho: float | None = None
    """Smoothing of adadelta."""
    decay_norms_and_biases: bool = True
    """Whether weight_decay reaches the parameters of norms (batch, layer,
    group, ...) and biases, those of groups as well."""
    groups: dict[str, OptimizerGroupConfig] = field(default_factory=dict)
    """Parameters with settings of their own; of several that match, the first counts."""

    def __post_init__(self) -> None:
        """Checks names, ranges, and that the optimizer takes what is given."""
        check_known("optimizer.name", self.name, OPTIMIZERS)
        check_above_zero("optimizer.lr", self.lr)
        check_at_least("optimizer.weight_decay", self.weight_decay, 0)
        self._check_options("optimizer", self)
        for name, group in self.groups.items():
            self._check_options(f"optimizer.groups.{name}", group)
            check_at_least(f"optimizer.groups.{name}.lr", group.lr, 0)
            check_at_least(f"optimizer.groups.{name}.weight_decay", group.weight_decay, 0)
        if self.nesterov and not self.momentum:
            raise ConfigError(
                f"optimizer.nesterov is true and optimizer.momentum is {self.momentum}; give a "
                "momentum above 0, or leave nesterov out"
            )

    def _check_options(self, where: str, given: "OptimizerConfig | OptimizerGroupConfig") -> None:
        takes = OPTIMIZERS[self.name]
        for name in _OPTIONS:
            if getattr(given, name) is not None and name not in takes:
                known = ", ".join(("lr", "weight_decay", *takes))
                raise ConfigError(f"{where}.{name} is not for {self.name}, which takes {known}")


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """An average of the weights, which is what is evaluated and the result; off unless named."""

    name: str | None = None
    """ema (exponential moving average) or swa (stochastic weight averaging, equal shares)."""
    decay: float | None = None
    """ema: share of the old average that each update keeps, above 0 and
    below 1; 0.999 unless given."""
    every_steps: int | None = None
    """Steps between two updates, 1 or more; unless given 1 for ema, an epoch's for swa."""
    start_step: int | None = None
    """ema: steps done before averaging begins, 0 or more; 0 unless given."""
    start_epoch: int | None = None
    """swa, which needs it: the first epoch, counted from 1, whose weights are averaged."""

    def __post_init__(self) -> None:
        """Checks names, and that the average takes what is given and is given what it needs."""
        if self.name is not None:
            check_known("average.name", self.name, AVERAGES)
        takes = AVERAGES.get(self.name or "", ())
        for name in self.given:
            if name not in takes and self.name is None:
                raise ConfigError(
                    f"average.{name} is given, and average.name is not: name ema or swa"
                )
            if name not in takes:
                raise ConfigError(
                    f"average.{name} is not for {self.name}, which takes {', '.join(takes)}"
                )
        if self.name == "swa" and self.start_epoch is None:
            raise ConfigError(
                "average.start_epoch is missing: swa needs the first epoch that is averaged, such "
                "as 21"
            )

    @property
    def given(self) -> dict[str, Any]:
        """The fields beside the name that are given."""
        names = ("decay", "every_steps", "start_step", "start_epoch")
        return {name: v for name in names if (v := getattr(self, name)) is not None}


def given_settings(section: OptimizerConfig | OptimizerGroupConfig) -> dict[str, Any]:
    """What a section gives of the settings that torch's optimizers take."""
    settings = {name: getattr(section, name) for name in ("lr", "weight_decay", *_OPTIONS)}
    return {name: value for name, value in settings.items() if value is not None}
