"""The models that a job file can name: shapes, parts, and what they refuse."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from distrain.errors import ConfigError
from distrain.learn.models import cnn, mlp


def parts(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize(
    ("build", "input_shape"),
    [
        (mlp, (4,)),
        (mlp, (3, 8, 8)),
        (mlp, ()),
        (cnn, (1, 8, 8)),
        (cnn, (3, 32, 20)),
        (cnn, (3, 4, 5)),
    ],
)
@pytest.mark.parametrize(("num_outputs", "shape"), [(10, (6, 10)), (1, (6, 1)), (None, (6,))])
def test_outputs_are_logits_or_one_number_a_sample(
    build: Callable[..., nn.Module],
    input_shape: Sequence[int],
    num_outputs: int | None,
    shape: tuple[int, ...],
) -> None:
    outputs = build(input_shape, num_outputs)(torch.randn(6, *input_shape))
    assert outputs.shape == shape
    assert outputs.requires_grad


def test_an_mlps_layers_are_those_that_it_is_asked_for() -> None:
    model = mlp((3, 2), 5, hidden=(7, 11), activation="tanh", dropout=0.5, batch_norm=True)
    sizes = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert sizes == [(6, 7), (7, 11), (11, 5)]
    assert parts(model, nn.Tanh) == parts(model, nn.Dropout) == parts(model, nn.BatchNorm1d) == 2
    plain = mlp((6,), 5)
    assert parts(plain, nn.Dropout) == parts(plain, nn.BatchNorm1d) == 0
    assert parts(plain, nn.ReLU) == 1


def test_an_mlp_without_hidden_layers_is_linear() -> None:
    model = mlp((4,), 3, hidden=())
    assert parts(model, nn.ReLU) == 0
    assert parts(model, nn.Linear) == 1


def test_an_mlp_of_a_known_size_has_the_parameters_counted_by_hand() -> None:
    model = mlp((64,), 10, hidden=(16,))
    assert sum(p.numel() for p in model.parameters()) == 64 * 16 + 16 + 16 * 10 + 10


def test_a_cnns_layers_are_those_that_it_is_asked_for() -> None:
    model = cnn((1, 8, 8), 10, channels=(4, 6, 8), hidden=12, dropout=0.0, batch_norm=False)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [4, 6, 8]
    assert all(m.bias is not None for m in convolutions)
    assert parts(model, nn.BatchNorm2d) == parts(model, nn.Dropout) == 0
    normed = cnn((1, 8, 8), 10)
    assert all(m.bias is None for m in normed.modules() if isinstance(m, nn.Conv2d))
    assert parts(normed, nn.BatchNorm2d) == 2
    assert parts(normed, nn.Dropout) == 1


@pytest.mark.parametrize("shape", [(13,), (8, 8), (), (3, 4, 8, 8)])
def test_a_cnn_of_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r'cnn wants images \(C, H, W\), .*model.build = "mlp"'):
        cnn(shape, 10)


@pytest.mark.parametrize(
    ("height", "width", "channels"), [(3, 3, (4, 4)), (8, 2, (4, 4)), (8, 8, (2, 2, 2, 2))]
)
def test_images_too_small_to_be_halved_so_often_are_refused(
    height: int, width: int, channels: tuple[int, ...]
) -> None:
    message = f"images of {height}x{width} can't be halved {len(channels)} times: give model"
    with pytest.raises(ConfigError, match=message):
        cnn((1, height, width), 10, channels=channels)


def test_images_that_can_just_be_halved_so_often_are_taken() -> None:
    assert cnn((1, 4, 7), 2, channels=(2, 2))(torch.randn(3, 1, 4, 7)).shape == (3, 2)


def test_an_unknown_activation_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match="no activation 'swish'; there are relu, tanh, sigmoid, g"
    ):
        mlp((4,), 3, activation="swish")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "gelu"])
def test_every_activation_is_the_function_of_its_name(name: str) -> None:
    model = mlp((4,), 3, activation=name)  # type: ignore[arg-type]
    assert isinstance(model, nn.Sequential)
    values = torch.linspace(-3, 3, 7)
    expected = getattr(torch.nn.functional, name)(values)
    torch.testing.assert_close(model[2](values), expected)
