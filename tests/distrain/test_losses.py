"""Every loss of torch over any split of a batch, against its own mean over the whole."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distrain.errors import ConfigError, ProgramError
from distrain.learn.losses import LossResult, SummedLoss, mean_over_samples

CPU = torch.device("cpu")
B, C = 12, 5
WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5, 7.0])


def classes(*shape: int, ignored: int | None = None) -> torch.Tensor:
    target = torch.randint(C, (B, *shape))
    if ignored is not None:
        target.view(-1)[::3] = ignored
    return target


def signs(*shape: int) -> torch.Tensor:
    return torch.randint(2, (B, *shape)).float() * 2 - 1


@dataclass(frozen=True)
class Case:
    """A loss with outputs and targets of a whole batch, both made from the seed that is set."""

    loss: nn.Module
    outputs: Callable[[], torch.Tensor]
    target: Callable[[], torch.Tensor]


def logits() -> torch.Tensor:
    return torch.randn(B, C)


def pixels() -> torch.Tensor:
    return torch.randn(B, C, 3, 4)


def numbers() -> torch.Tensor:
    return torch.randn(B, 3)


def probabilities() -> torch.Tensor:
    return torch.rand(B, 3)


CASES: dict[str, Case] = {
    "cross_entropy": Case(nn.CrossEntropyLoss(), logits, classes),
    "cross_entropy, weights": Case(nn.CrossEntropyLoss(WEIGHTS), logits, classes),
    "cross_entropy, ignored": Case(nn.CrossEntropyLoss(), logits, lambda: classes(ignored=-100)),
    "cross_entropy, a class ignored": Case(
        nn.CrossEntropyLoss(ignore_index=2), logits, lambda: classes(ignored=2)
    ),
    "cross_entropy, weights, ignored": Case(
        nn.CrossEntropyLoss(WEIGHTS, ignore_index=-1), logits, lambda: classes(ignored=-1)
    ),
    "cross_entropy, smoothing": Case(nn.CrossEntropyLoss(label_smoothing=0.3), logits, classes),
    "cross_entropy, weights, ignored, smoothing": Case(
        nn.CrossEntropyLoss(WEIGHTS, ignore_index=-1, label_smoothing=0.3),
        logits,
        lambda: classes(ignored=-1),
    ),
    "cross_entropy, probabilities": Case(
        nn.CrossEntropyLoss(), logits, lambda: torch.randn(B, C).softmax(dim=1)
    ),
    "cross_entropy, probabilities, weights": Case(
        nn.CrossEntropyLoss(WEIGHTS), logits, lambda: torch.randn(B, C).softmax(dim=1)
    ),
    "cross_entropy, pixels": Case(nn.CrossEntropyLoss(), pixels, lambda: classes(3, 4)),
    "cross_entropy, pixels, weights, ignored": Case(
        nn.CrossEntropyLoss(WEIGHTS), pixels, lambda: classes(3, 4, ignored=-100)
    ),
    "cross_entropy, pixels, probabilities": Case(
        nn.CrossEntropyLoss(), pixels, lambda: torch.randn(B, C, 3, 4).softmax(dim=1)
    ),
    "nll": Case(nn.NLLLoss(), lambda: logits().log_softmax(1), classes),
    "nll, weights, ignored": Case(
        nn.NLLLoss(WEIGHTS, ignore_index=1),
        lambda: logits().log_softmax(1),
        lambda: classes(ignored=1),
    ),
    "mse": Case(nn.MSELoss(), numbers, numbers),
    "l1": Case(nn.L1Loss(), numbers, numbers),
    "huber": Case(nn.HuberLoss(delta=0.5), numbers, numbers),
    "smooth_l1": Case(nn.SmoothL1Loss(beta=0.5), numbers, numbers),
    "bce": Case(nn.BCELoss(), probabilities, probabilities),
    "bce, weights": Case(nn.BCELoss(WEIGHTS[:3]), probabilities, probabilities),
    "bce_with_logits": Case(nn.BCEWithLogitsLoss(), numbers, probabilities),
    "bce_with_logits, pos_weight": Case(
        nn.BCEWithLogitsLoss(pos_weight=WEIGHTS[:3]), numbers, probabilities
    ),
    "kl_div": Case(nn.KLDivLoss(), lambda: logits().log_softmax(1), lambda: logits().softmax(1)),
    "kl_div, batchmean": Case(
        nn.KLDivLoss(reduction="batchmean"),
        lambda: logits().log_softmax(1),
        lambda: logits().softmax(1),
    ),
    "kl_div, batchmean, log_target": Case(
        nn.KLDivLoss(reduction="batchmean", log_target=True),
        lambda: logits().log_softmax(1),
        lambda: logits().log_softmax(1),
    ),
    "poisson_nll": Case(
        nn.PoissonNLLLoss(full=True), numbers, lambda: torch.poisson(4 * probabilities())
    ),
    "soft_margin": Case(nn.SoftMarginLoss(), numbers, lambda: signs(3)),
    "hinge_embedding": Case(nn.HingeEmbeddingLoss(), numbers, lambda: signs(3)),
    "multi_margin": Case(nn.MultiMarginLoss(), logits, classes),
    "multi_margin, weights": Case(nn.MultiMarginLoss(weight=WEIGHTS, p=2), logits, classes),
    "multi_label_margin": Case(
        nn.MultiLabelMarginLoss(),
        logits,
        lambda: torch.stack([torch.randperm(C) for _ in range(B)]) - 1,
    ),
    "multi_label_soft_margin": Case(
        nn.MultiLabelSoftMarginLoss(WEIGHTS), logits, lambda: logits().gt(0).float()
    ),
}

REFUSED: dict[str, Callable[[], nn.Module]] = {
    "CTCLoss": nn.CTCLoss,
    "GaussianNLLLoss": nn.GaussianNLLLoss,
    "TripletMarginLoss": nn.TripletMarginLoss,
    "TripletMarginWithDistanceLoss": nn.TripletMarginWithDistanceLoss,
    "CosineEmbeddingLoss": nn.CosineEmbeddingLoss,
    "MarginRankingLoss": nn.MarginRankingLoss,
}


# Torch warns that the plain mean of a KL divergence also divides by the number of classes.
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize("name", CASES)
@given(cuts=st.lists(st.integers(1, B - 1), max_size=5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=12)
def test_over_any_split_it_is_torchs_mean_over_the_whole(
    name: str, cuts: list[int], seed: int
) -> None:
    case = CASES[name]
    torch.manual_seed(seed)
    outputs, target = case.outputs().requires_grad_(), case.target()
    whole = case.loss(outputs, target)
    (expected_gradient,) = torch.autograd.grad(whole, outputs)

    loss = SummedLoss(case.loss, CPU)
    parts = [
        loss(outputs[start:stop], target[start:stop])
        for start, stop in pairwise([0, *sorted(set(cuts)), B])
    ]
    total = torch.stack([loss_sum for loss_sum, _ in parts]).sum()
    mean = total / sum(float(weight) for _, weight in parts)
    torch.testing.assert_close(mean, whole, rtol=2e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(mean, outputs)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


def test_every_loss_of_this_torch_is_either_compared_above_or_refused() -> None:
    compared = {type(case.loss).__name__ for case in CASES.values()}
    deprecated, with_weights = {"NLLLoss2d"}, {"LinearCrossEntropyLoss"}
    known = compared | set(REFUSED) | deprecated | with_weights
    assert set(nn.modules.loss.__all__) <= known


def test_a_mean_of_means_would_be_another_number() -> None:
    torch.manual_seed(0)
    outputs, target = torch.randn(64, 3), torch.randint(3, (64,))
    module = nn.CrossEntropyLoss(torch.tensor([0.1, 1.0, 5.0]))
    whole = float(module(outputs, target))
    parts = [(outputs[at : at + 16], target[at : at + 16]) for at in range(0, 64, 16)]
    mean_of_means = sum(float(module(*part)) for part in parts) / len(parts)
    summed = [SummedLoss(module, CPU)(*part) for part in parts]
    ours = sum(float(total) for total, _ in summed) / sum(float(weight) for _, weight in summed)
    assert ours == pytest.approx(whole, rel=1e-6)
    assert abs(mean_of_means - whole) > 1e-3


def test_a_micro_batch_without_a_target_that_counts_adds_nothing() -> None:
    loss_sum, weight = SummedLoss(nn.CrossEntropyLoss(), CPU)(
        torch.randn(4, 3, requires_grad=True), torch.full((4,), -100)
    )
    assert loss_sum.item() == 0.0
    assert float(weight) == 0.0


@pytest.mark.parametrize("name", REFUSED)
def test_a_loss_of_other_arguments_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} takes more than .* micro_batch_step"):
        SummedLoss(REFUSED[name](), CPU)


def test_a_loss_with_weights_of_its_own_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^LinearCrossEntropyLoss has weights of its own"):
        SummedLoss(nn.LinearCrossEntropyLoss(4, 3), CPU)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("kind", [nn.CrossEntropyLoss, nn.MSELoss, nn.KLDivLoss])
def test_another_reduction_than_the_mean_is_refused(
    kind: Callable[..., nn.Module], reduction: str
) -> None:
    message = rf"Loss\(reduction='{reduction}'\): .*use reduction=\"mean\""
    with pytest.raises(ConfigError, match=message):
        SummedLoss(kind(reduction=reduction), CPU)


SAME_SHAPE = (
    nn.MSELoss,
    nn.L1Loss,
    nn.HuberLoss,
    nn.SmoothL1Loss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.PoissonNLLLoss,
    nn.KLDivLoss,
    nn.SoftMarginLoss,
    nn.HingeEmbeddingLoss,
    nn.MultiLabelSoftMarginLoss,
)


@pytest.mark.parametrize("kind", SAME_SHAPE)
def test_outputs_of_one_column_against_a_flat_target_are_refused(
    kind: Callable[..., nn.Module],
) -> None:
    loss = SummedLoss(kind(), CPU)
    with pytest.raises(ConfigError, match=r"shape \(4, 1\) with a target of shape \(4,\).*squeeze"):
        loss(torch.rand(4, 1), torch.rand(4))


def test_a_target_of_whole_numbers_is_compared_as_numbers() -> None:
    loss_sum, weight = SummedLoss(nn.MSELoss(), CPU)(torch.tensor([1.5, 2.0]), torch.tensor([1, 4]))
    assert (float(loss_sum), float(weight)) == (4.25, 2.0)
    loss_sum, _ = SummedLoss(nn.BCEWithLogitsLoss(), CPU)(torch.zeros(2), torch.tensor([0, 1]))
    assert float(loss_sum) == pytest.approx(2 * 0.6931472)


def test_the_users_loss_is_left_as_it_was() -> None:
    module = nn.CrossEntropyLoss()
    SummedLoss(module, CPU)
    assert module.reduction == "mean"


def test_what_the_metrics_need_is_read_off_the_loss() -> None:
    assert SummedLoss(nn.CrossEntropyLoss(ignore_index=7), CPU).ignore_index == 7
    assert SummedLoss(nn.NLLLoss(), CPU).ignore_index == -100
    assert SummedLoss(nn.MSELoss(), CPU).ignore_index is None
    assert SummedLoss(nn.BCELoss(), CPU).threshold == 0.5
    assert SummedLoss(nn.BCEWithLogitsLoss(), CPU).threshold == 0.0


def test_an_own_loss_that_returns_a_sum_and_a_weight_is_taken_as_it_is() -> None:
    def own(outputs: torch.Tensor, target: torch.Tensor) -> LossResult:
        return (outputs * target).sum(), 7.0

    assert SummedLoss(own, CPU)(torch.ones(2), torch.full((2,), 3.0)) == (torch.tensor(6.0), 7.0)


@pytest.mark.parametrize(
    ("returned", "shown"),
    [
        (torch.zeros(()), r"a tensor of shape \(\)"),
        (torch.zeros(4), r"a tensor of shape \(4,\)"),
        (1.5, "1.5"),
        (None, "None"),
        ((torch.zeros(()), 1.0, 2.0), r"\(tensor\(0\.\), 1\.0, 2\.0\)"),
    ],
)
def test_an_own_loss_that_returns_no_pair_is_told_the_way_out(returned: object, shown: str) -> None:
    def own(outputs: torch.Tensor, target: torch.Tensor) -> object:  # noqa: ARG001
        return returned

    message = rf"the loss .*own returned {shown}; .*distrain\.mean_over_samples"
    with pytest.raises(ProgramError, match=message):
        SummedLoss(own, CPU)(torch.ones(4), torch.ones(4))


def test_mean_over_samples_makes_a_mean_of_any_split() -> None:
    torch.manual_seed(0)
    outputs, target = torch.randn(B, C), torch.randint(C, (B,))
    loss = SummedLoss(mean_over_samples(nn.functional.cross_entropy), CPU)
    parts = [loss(outputs[part], target[part]) for part in (slice(0, 7), slice(7, B))]
    assert [weight for _, weight in parts] == [7.0, 5.0]
    mean = sum(float(loss_sum) for loss_sum, _ in parts) / B
    whole = float(nn.functional.cross_entropy(outputs, target))
    assert mean == pytest.approx(whole, rel=1e-6)
    assert loss.description.endswith("mean_over_samples(torch.nn.functional.cross_entropy)")


def test_another_loss_of_the_same_kind_has_another_description() -> None:
    described = {
        SummedLoss(loss, CPU).description
        for loss in (
            nn.CrossEntropyLoss(),
            nn.CrossEntropyLoss(label_smoothing=0.1),
            nn.CrossEntropyLoss(ignore_index=1),
            nn.CrossEntropyLoss(WEIGHTS),
            nn.CrossEntropyLoss(WEIGHTS * 2),
        )
    }
    assert len(described) == 5
