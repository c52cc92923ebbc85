"""The gradients as one flat vector: nothing lost on the way, and what can't be summed refused."""

import pytest
import torch
from torch import nn

from distrain.errors import ConfigError
from distrain.parallel.gradients import FlatGradients, block_norms, norm_of_blocks


class Odd(nn.Module):
    """Parameters whose sizes are no multiples of 16: a number, rows, a block, an unused one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.layer = nn.Linear(5, 7)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(7, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(torch.tanh(self.layer(x))) * self.scale
        return outputs


def backward(model: nn.Module, inputs: torch.Tensor) -> None:
    model(inputs).square().sum().backward()


def collected(gradients: FlatGradients) -> tuple[torch.Tensor, torch.Tensor]:
    flat = torch.zeros(gradients.num_floats)
    present = torch.full((len(gradients.names),), 9, dtype=torch.int64)
    gradients.collect(gradients.views(flat))
    gradients.mark(present)
    return flat, present


def test_collected_gradients_come_back_as_they_were() -> None:
    torch.manual_seed(0)
    model = Odd()
    gradients = FlatGradients(model)
    backward(model, torch.randn(4, 5))
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    flat, present = collected(gradients)
    gradients.clear()
    assert all(parameter.grad is None for parameter in model.parameters())
    gradients.assign(gradients.views(flat), present.tolist())
    after = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_every_parameter_starts_at_a_multiple_of_16_floats_and_overlaps_no_other() -> None:
    model = Odd()
    gradients = FlatGradients(model)
    flat = torch.zeros(gradients.num_floats)
    views = gradients.views(flat)
    assert [view.shape for view in views] == [parameter.shape for parameter in model.parameters()]
    assert all(view.storage_offset() % 16 == 0 for view in views)
    for view in views:
        view.add_(1.0)
    assert flat.max() == 1.0
    assert int(flat.sum()) == sum(parameter.numel() for parameter in model.parameters())


def test_gaps_between_parameters_stay_zero() -> None:
    model = Odd()
    gradients = FlatGradients(model)
    backward(model, torch.randn(4, 5))
    flat, _ = collected(gradients)
    mask = torch.ones_like(flat)
    for view in gradients.views(mask):
        view.zero_()
    assert mask.sum() > 0
    assert not flat[mask.bool()].any()


def test_a_parameter_that_no_micro_batch_used_has_no_gradient() -> None:
    model = Odd()
    gradients = FlatGradients(model)
    backward(model, torch.randn(4, 5))
    flat, present = collected(gradients)
    by_name = dict(zip(gradients.names, present.tolist(), strict=True))
    assert by_name == {name: int(not name.startswith("unused")) for name in gradients.names}
    gradients.assign(gradients.views(flat), present.tolist())
    assert model.unused.weight.grad is None
    assert model.unused.bias.grad is None
    assert model.scale.grad is not None


def test_an_unused_parameters_part_of_a_buffer_that_is_used_again_is_zeroed() -> None:
    model = Odd()
    gradients = FlatGradients(model)
    backward(model, torch.randn(4, 5))
    flat = torch.full((gradients.num_floats,), 7.0)
    gradients.collect(gradients.views(flat))
    unused = dict(zip(gradients.names, gradients.views(flat), strict=True))["unused.weight"]
    assert not unused.any()


def test_a_tied_parameter_is_laid_out_once_with_the_gradient_of_both_uses() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    gradients = FlatGradients(model)
    assert gradients.names == ["0.weight"]
    inputs = torch.randn(3, 4)
    backward(model, inputs)
    flat, _ = collected(gradients)
    weight = first.weight.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad((inputs @ weight.T @ weight.T).square().sum(), weight)
    torch.testing.assert_close(gradients.views(flat)[0], expected)


def test_a_frozen_parameter_is_left_out() -> None:
    model = Odd()
    model.layer.requires_grad_(False)
    names = FlatGradients(model).names
    assert names == ["scale", "unused.weight", "unused.bias", "head.weight", "head.bias"]


def test_a_sparse_gradient_is_made_dense_with_repeated_rows_added() -> None:
    model = nn.Embedding(6, 3, sparse=True)
    gradients = FlatGradients(model)
    model(torch.tensor([1, 4, 1])).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.is_sparse
    flat, present = collected(gradients)
    assert present.tolist() == [1]
    assert gradients.views(flat)[0].tolist() == [[float(n)] * 3 for n in (0, 2, 0, 0, 1, 0)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_a_parameter_that_is_not_float32_is_refused_by_name(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Module())
    model[1].weight = nn.Parameter(torch.zeros(2, dtype=dtype))
    with pytest.raises(ConfigError, match=rf"parameter 1\.weight is {dtype}; .*\.float\(\)"):
        FlatGradients(model)


def test_a_frozen_parameter_may_have_any_dtype() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).to(torch.bfloat16))
    model[1].requires_grad_(False)
    assert FlatGradients(model).names == ["0.weight", "0.bias"]


@pytest.mark.parametrize("model", [nn.Linear(2, 2).requires_grad_(False), nn.ReLU()])
def test_a_model_without_a_trainable_parameter_is_refused(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="no parameter that requires a gradient"):
        FlatGradients(model)


@pytest.mark.parametrize("width", [3, 100])
def test_the_norm_is_that_of_torchs_clip_grad_norm(width: int) -> None:
    torch.manual_seed(0)
    # 100 x 100 weights are several blocks of 4,096 floats, 3 x 3 less than one.
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    gradients = FlatGradients(model)
    backward(model, torch.randn(5, width))
    flat, _ = collected(gradients)
    theirs = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    assert norm_of_blocks(block_norms(flat)) == pytest.approx(float(theirs), rel=1e-6)


def test_the_norm_of_what_is_not_finite_is_not_finite() -> None:
    gradients = FlatGradients(nn.Linear(3, 3))
    for value in (float("nan"), float("inf")):
        flat = torch.zeros(gradients.num_floats)
        flat[5] = value
        assert not torch.isfinite(torch.tensor(norm_of_blocks(block_norms(flat))))


def test_views_have_the_parameters_strides_also_in_dimensions_of_one() -> None:
    """A weight with one input channel is contiguous either way, and kernels look at its strides."""
    for channels in (1, 3):
        model = nn.Conv2d(channels, 8, 3)
        model.weight.data = model.weight.data.as_strided(
            model.weight.shape, (9 * channels, 1, 3 * channels, channels)
        )
        gradients = FlatGradients(model)
        view, _ = gradients.views(torch.zeros(gradients.num_floats))
        assert view.stride() == model.weight.stride()
        view.copy_(model.weight)
        assert torch.equal(view, model.weight)
