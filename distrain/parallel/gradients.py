"""The gradients of a model's trainable parameters as one flat vector (rule 9)."""

from collections.abc import Collection, Sequence

import torch

from distrain.errors import ConfigError
from distrain.numerics import FLOATS_PER_LINE, NORM_BLOCK


class FlatGradients:
    """Where each parameter's gradient lies in a vector of float32.

    A parameter's elements stand in the order of its memory, whatever its strides: those of a
    convolution in channels-last order as well.

    Attributes:
        names: Of the trainable parameters, a tied one once.
        parameters: These parameters.
        num_floats: Length of the vector; the gaps between parameters are always 0.
        spans: Each parameter's part of the vector.
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
        self.parameters = [parameter for _, parameter in named]
        self.spans: list[range] = []
        at = 0
        for parameter in self.parameters:
            self.spans.append(range(at, at + parameter.numel()))
            at += -(-parameter.numel() // FLOATS_PER_LINE) * FLOATS_PER_LINE
        self.num_floats = -(-at // NORM_BLOCK) * NORM_BLOCK if at > NORM_BLOCK else at
        self._strides = [_dense_strides(parameter) for parameter in self.parameters]
        self._buffers: dict[int, list[torch.Tensor]] = {}

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """The parameters' parts of a flat vector, in the parameters' shapes."""
        return [
            flat[span.start : span.stop].as_strided(parameter.shape, strides)
            if strides is not None
            else flat[span.start : span.stop].view(parameter.shape)
            for span, parameter, strides in zip(
                self.spans, self.parameters, self._strides, strict=True
            )
        ]

    def buffer_views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """`views` of a vector that is used again and again: made once, and it is kept alive."""
        key = buffer.data_ptr()
        if key not in self._buffers:
            self._buffers[key] = self.views(buffer)
        return self._buffers[key]

    def clear(self) -> None:
        """Forgets the parameters' gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def collect(self, views: Sequence[torch.Tensor], numbers: Sequence[int] | None = None) -> None:
        """Copies the gradients of one backward pass to the views, 0 where there is none.

        Of all parameters, or of those with these numbers.
        """
        to, gradients = [], []
        for number in range(len(views)) if numbers is None else numbers:
            gradient = self.parameters[number].grad
            if gradient is None:
                views[number].zero_()
            else:
                to.append(views[number])
                gradients.append(gradient.to_dense() if gradient.is_sparse else gradient)
        if to:
            torch._foreach_copy_(to, gradients)

    def mark(self, present: torch.Tensor, taken: Collection[int] = ()) -> None:
        """Sets `present` `(num_parameters,)`, int64, to 1 where there is a gradient, else to 0.

        `taken` are the numbers of parameters whose gradient has been taken away.
        """
        given = [
            parameter.grad is not None or number in taken
            for number, parameter in enumerate(self.parameters)
        ]
        if all(given):
            present.fill_(1)
        else:
            present.copy_(torch.tensor(given, dtype=torch.int64))

    def assign(self, views: Sequence[torch.Tensor], present: Sequence[int]) -> None:
        """Gives each parameter its part of the sum, of which these are the views, as gradient.

        A parameter that no micro-batch used has none, as in a plain loop: an optimizer passes it
        over, where a gradient of 0 would still be decayed and moved by momentum.
        """
        for parameter, view, count in zip(self.parameters, views, present, strict=True):
            parameter.grad = view if count else None


def _dense_strides(parameter: torch.Tensor) -> tuple[int, ...] | None:
    """The strides if the elements fill their memory without gaps, in C's order or another.

    Those of dimensions of size 1 count as well: by them torch tells whether a weight has its
    channels last, and takes another kernel.
    """
    sizes = sorted(zip(parameter.stride(), parameter.shape, strict=True))
    expected = 1
    for stride, size in sizes:
        if size > 1 and stride != expected:
            return None
        expected *= size
    return parameter.stride()


def block_norms(flat: torch.Tensor) -> torch.Tensor:
    """2-norms of the vector's blocks of a fixed size, `(num_blocks,)`; of all, if it is shorter."""
    norms: torch.Tensor = torch.linalg.vector_norm(flat.view(-1, min(NORM_BLOCK, len(flat))), dim=1)
    return norms


def norm_of_blocks(norms: torch.Tensor) -> float:
    """The 2-norm of the vector, folded in float64 in one order (rule 8)."""
    return float(norms.double().square().sum().sqrt())


def gradient_parts(num_words: int, whole_words: int, part_words: int) -> tuple[range, ...]:
    """The parts in which a gradient travels, in the order in which a backward pass fills them.

    None for one of at most `whole_words`, which travels with the rest of a payload. `part_words` is
    a multiple of the norm's blocks.
    """
    if num_words <= whole_words:
        return ()
    starts = range(0, num_words, part_words)
    return tuple(range(at, min(at + part_words, num_words)) for at in reversed(starts))
