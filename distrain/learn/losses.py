"""Losses as (sum, weight), so that micro-batches of any size add up to the right mean (rule 4).

Torch's own losses are run as sums, their weight being what their mean would divide by. Averaging
means instead is wrong as soon as weights differ: one class-weighted cross-entropy gave 0.7689
whole and 0.7596 as a mean of means.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch

from distrain.describe import describe
from distrain.errors import ConfigError, ProgramError

LossResult = tuple[torch.Tensor, torch.Tensor | float]
"""The sum of the losses, a scalar, and the weight that the mean divides by."""

_BY_CLASS = (torch.nn.CrossEntropyLoss, torch.nn.NLLLoss)
_OF_OTHER_ARGUMENTS = (
    torch.nn.CTCLoss,
    torch.nn.GaussianNLLLoss,
    torch.nn.TripletMarginLoss,
    torch.nn.TripletMarginWithDistanceLoss,
    torch.nn.CosineEmbeddingLoss,
    torch.nn.MarginRankingLoss,
)
_SAME_SHAPE = (
    torch.nn.MSELoss,
    torch.nn.L1Loss,
    torch.nn.HuberLoss,
    torch.nn.SmoothL1Loss,
    torch.nn.BCELoss,
    torch.nn.BCEWithLogitsLoss,
    torch.nn.PoissonNLLLoss,
    torch.nn.KLDivLoss,
    torch.nn.SoftMarginLoss,
    torch.nn.HingeEmbeddingLoss,
    torch.nn.MultiLabelSoftMarginLoss,
)
"""These would broadcast (B, 1) against (B,) to (B, B) without a word, or with a warning at most."""


class SummedLoss:
    """A loss of (outputs, target) that gives the sum over samples and its weight.

    Attributes:
        ignore_index: The target that is passed over, if any.
        probabilities: Whether a single output is one, and not a logit.
        threshold: Above which a single output means class 1: 0.5 for probabilities, else 0.
        description: Says what it is, for a run's identity.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device) -> None:
        """Wraps one of torch's loss modules, or a function that returns (sum, weight).

        Raises:
            ConfigError: a module that has no mean to be split, or takes other arguments.
        """
        self.ignore_index: int | None = None
        self.probabilities = isinstance(function, torch.nn.BCELoss)
        self.threshold = 0.5 if self.probabilities else 0.0
        self.description = describe(function)
        self._call: Callable[[torch.Tensor, torch.Tensor], LossResult]
        if not (isinstance(function, torch.nn.Module) and _is_of_torch(function)):
            self._call = function
            return
        module = copy.deepcopy(function).to(device)
        _check_splittable(module)
        if isinstance(module, _BY_CLASS):
            self.ignore_index = module.ignore_index
            self._call = _class_loss(module)
        else:
            self._call = _element_loss(module)

    def __call__(self, outputs: torch.Tensor, target: torch.Tensor) -> LossResult:
        """The sum, a scalar that can be differentiated, and the weight.

        Raises:
            ProgramError: an own loss does not return a pair of a scalar and a weight.
        """
        result = self._call(outputs, target)
        if not (isinstance(result, tuple) and len(result) == 2):
            what = f"a tensor of shape {tuple(result.shape)}" if torch.is_tensor(result) else result
            raise ProgramError(
                f"the loss {self.description} returned {what}; it must return (sum of the losses, "
                "weight): for a mean over samples wrap it, distrain.mean_over_samples(loss)"
            )
        return result


def mean_over_samples(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor, torch.Tensor], LossResult]:
    """Declares that a loss is a plain mean over the samples (the first dimension) of its batch."""

    def summed(outputs: torch.Tensor, target: torch.Tensor) -> LossResult:
        num_samples = target.shape[0]
        return function(outputs, target) * num_samples, float(num_samples)

    summed.__qualname__ = f"mean_over_samples({describe(function)})"
    return summed


def refuse_trainable(loss: object, model: torch.nn.Module) -> None:
    """A loss of the user's may hold the model, but nothing else that would have to be trained.

    Raises:
        ConfigError: it has a trainable parameter that is not the model's.
    """
    known = {id(parameter) for parameter in model.parameters()}
    for name, parameter in loss.named_parameters() if isinstance(loss, torch.nn.Module) else ():
        if parameter.requires_grad and id(parameter) not in known:
            raise ConfigError(
                f"the loss has a trainable parameter {name}, and gradients are summed for those of "
                "the model alone: make it a parameter of the model"
            )


def _is_of_torch(module: torch.nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.loss"


def _check_splittable(module: torch.nn.Module) -> None:
    name = type(module).__name__
    if isinstance(module, _OF_OTHER_ARGUMENTS):
        raise ConfigError(
            f"{name} takes more than (outputs, target), or weights its mean in a way of its own: "
            "write it in a micro_batch_step that returns (sum, weight, outputs)"
        )
    if any(True for _ in module.parameters()):
        raise ConfigError(
            f"{name} has weights of its own, which would not be trained: make them part of the "
            "model, and compute the loss in a function or a micro_batch_step"
        )
    reduction = getattr(module, "reduction", "mean")
    if reduction not in ("mean", "batchmean"):
        raise ConfigError(
            f"{name}(reduction={reduction!r}): the loss of a global batch is a mean here, whatever "
            'its split; use reduction="mean", or return (sum, weight) from a function of your own'
        )


def _class_loss(module: torch.nn.Module) -> Callable[[torch.Tensor, torch.Tensor], LossResult]:
    """Cross-entropy and NLL: the mean divides by the class weights of the targets that count."""
    class_weights, ignored = module.weight, module.ignore_index
    module.reduction = "sum"  # type: ignore[assignment]

    def summed(outputs: torch.Tensor, target: torch.Tensor) -> LossResult:
        loss: torch.Tensor = module(outputs, target)
        if target.is_floating_point():  # probabilities: the mean is over all places
            return loss, float(target.numel() // target.shape[1])
        if class_weights is None:
            return loss, (target != ignored).sum()
        counted = target[target != ignored]
        assert isinstance(class_weights, torch.Tensor)
        return loss, class_weights[counted].sum(dtype=torch.float64)

    return summed


def _element_loss(module: torch.nn.Module) -> Callable[[torch.Tensor, torch.Tensor], LossResult]:
    """The others: the mean divides by the number of losses there are before it is taken."""
    by_sample = getattr(module, "reduction", "mean") == "batchmean"
    module.reduction = "none"  # type: ignore[assignment]
    same_shape = isinstance(module, _SAME_SHAPE)

    def summed(outputs: torch.Tensor, target: torch.Tensor) -> LossResult:
        if same_shape and outputs.shape != target.shape:
            raise ConfigError(
                f"{type(module).__name__} compares outputs of shape {tuple(outputs.shape)} with a "
                f"target of shape {tuple(target.shape)}: give the model outputs of the target's "
                "shape, for instance by .squeeze(1)"
            )
        if same_shape and not target.is_floating_point():
            target = target.to(outputs.dtype)
        losses: torch.Tensor = module(outputs, target)
        return losses.sum(), float(len(target) if by_sample else losses.numel())

    return summed
