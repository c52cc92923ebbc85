"""The gradients of a model's trainable parameters as one flat vector (rule 9)."""

from collections.abc import Sequence

import torch

from distrain.errors import ConfigError
from distrain.numerics import FLOATS_PER_LINE, NORM_BLOCK


class FlatGradients:
    """Where each parameter's gradient lies in a vector of float32.

    Attributes:
        names: Of the trainable parameters, a tied one once.
        num_floats: Length of the vector; the gaps between parameters are always 0.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Lays out the parameters that require a gradient now.

        Raises:
            ConfigError: there are none, or one is not float32.
        """
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ConfigError(
                "the model has no parameter that requires a gradient: nothing to train"
            )
        for name, parameter in named:
            if parameter.dtype != torch.float32:
                raise ConfigError(
                    f"parameter {name} is {parameter.dtype}; gradients are summed in float32: "
                    "convert it with .float(), or freeze it with requires_grad_(False)"
                )
        self.names = [name for name, _ in named]
        self._parameters = [parameter for _, parameter in named]
        self._offsets: list[int] = []
        at = 0
        for parameter in self._parameters:
            self._offsets.append(at)
            at += -(-parameter.numel() // FLOATS_PER_LINE) * FLOATS_PER_LINE
        self.num_floats = -(-at // NORM_BLOCK) * NORM_BLOCK if at > NORM_BLOCK else at

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The parameters' parts of a flat vector, in the parameters' shapes."""
        return [
            flat[offset : offset + parameter.numel()].view_as(parameter)
            for offset, parameter in zip(self._offsets, self._parameters, strict=True)
        ]

    def clear(self) -> None:
        """Forgets the parameters' gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def collect(self, views: Sequence[torch.Tensor], present: torch.Tensor) -> None:
        """Copies the gradients of one backward pass to the views, 0 where there is none.

        `present` `(num_parameters,)`, int64, is set to 1 where there is one.
        """
        given = [parameter.grad is not None for parameter in self._parameters]
        to, gradients = [], []
        for view, parameter in zip(views, self._parameters, strict=True):
            gradient = parameter.grad
            if gradient is None:
                view.zero_()
            else:
                to.append(view)
                gradients.append(gradient.to_dense() if gradient.is_sparse else gradient)
        if to:
            torch._foreach_copy_(to, gradients)
        if all(given):
            present.fill_(1)
        else:
            present.copy_(torch.tensor(given, dtype=torch.int64))

    def assign(self, views: Sequence[torch.Tensor], present: Sequence[int]) -> None:
        """Gives each parameter its part of the sum, of which these are the views, as gradient.

        A parameter that no micro-batch used has none, as in a plain loop: an optimizer passes it
        over, where a gradient of 0 would still be decayed and moved by momentum.
        """
        for parameter, view, count in zip(self._parameters, views, present, strict=True):
            parameter.grad = view if count else None

    def norm(self, flat: torch.Tensor) -> float:
        """The 2-norm, folded in float64 over blocks of a fixed size (rule 8)."""
        block = min(NORM_BLOCK, self.num_floats)
        blocks = torch.linalg.vector_norm(flat.view(-1, block), dim=1)
        return float(blocks.double().square().sum().sqrt())
