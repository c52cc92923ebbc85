"""What can be wrong in a trainer's arguments before anything is built from them."""

from collections.abc import Sequence

from distrain.coordinator.torch_metric import TorchMetric
from distrain.errors import ConfigError
from distrain.learn.averaging import Average
from distrain.learn.parameter_groups import ParameterGroup


def check_arguments(
    *,
    metrics: Sequence[str | TorchMetric],
    groups: Sequence[ParameterGroup],
    average: Average | None,
    max_time_s: float | None,
    saves: bool,
) -> None:
    """Refuses values that can't be; `saves` says whether the run's state is written anywhere.

    Raises:
        ConfigError: names what was given, and what would do.
    """
    if isinstance(metrics, str):
        raise ConfigError(f"metrics is the text {metrics!r}; give a list: [{metrics!r}]")
    for one in metrics:
        if not isinstance(one, str | TorchMetric):
            raise ConfigError(
                f"metrics has {one!r}; give names, or distrain.TorchMetric(NAME, function that "
                "makes it)"
            )
    wrong: object = groups
    if isinstance(groups, list | tuple):
        wrong = next((one for one in groups if not isinstance(one, ParameterGroup)), None)
    if wrong is not None:
        raise ConfigError(
            f"groups has {wrong!r}; give a list such as [distrain.ParameterGroup('head.*', lr=0.1)]"
        )
    if not isinstance(average, Average | None):
        raise ConfigError(
            f"average is {average!r}; give distrain.ExponentialAverage(...) or "
            "distrain.StochasticAverage(...)"
        )
    if max_time_s is not None and not saves:
        raise ConfigError(
            f"max_time_s is {max_time_s}, and nothing would be saved: give a run folder, and a "
            "checkpoint policy"
        )
