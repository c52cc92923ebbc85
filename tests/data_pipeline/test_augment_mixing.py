from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from data_pipeline.augment import CutMix, Cutout, Draw, Mixup, Samples
from data_pipeline.augment.mixing import permutation
from data_pipeline.augment.stream import betas
from data_pipeline.errors import DataError
from data_pipeline.manifest import Column

COLUMNS = {
    "x": Column(name="x", kind="tensor", dtype="float32", shape=(3, 6, 9)),
    "tokens": Column(name="tokens", kind="sequence", dtype="int64"),
    "steps": Column(name="steps", kind="sequence", dtype="float32"),
    "label": Column(name="label", kind="label", dtype="int64", classes=("a", "b", "c", "d")),
    "number": Column(name="number", kind="number", dtype="int32"),
    "text": Column(name="text", kind="text", dtype="uint8"),
}


def images(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(6).normal(size=shape).astype(np.float32)


def draw(count: int) -> Draw:
    return Draw(1, 2, 3, 40, count)


def seeds(count: int) -> NDArray[np.uint64]:
    return draw(count).words(1)[:, 0]


def samples(rows: NDArray[Any], target: NDArray[Any], name: str | None = "label") -> Samples:
    return Samples({"x": rows, name or "label": target}, COLUMNS, "x", name)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 2.0, 8.0])
def test_shares_are_distributed_as_beta(alpha: float) -> None:
    shares = betas(alpha, seeds(400_000))
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [1e-3, 0.01, 100.0])
def test_shares_stay_in_0_to_1_for_extreme_alphas(alpha: float) -> None:
    shares = betas(alpha, seeds(5_000))
    assert ((shares >= 0) & (shares <= 1)).all()
    assert abs(shares.mean() - 0.5) < 0.03
    np.testing.assert_allclose(shares.var(), 0.25 / (2 * alpha + 1), rtol=0.06)


def test_partners_are_a_permutation_and_every_one_is_equally_likely() -> None:
    orders = [tuple(permutation(Draw(1, epoch, 0, 0, 3)).tolist()) for epoch in range(1_200)]
    kinds, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(kinds) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_mixup_mixes_inputs_and_labels_by_the_same_share() -> None:
    rows, labels = images(12, 3, 6, 9), np.arange(12) % 4
    mixed = samples(rows, labels)
    Mixup(1.0)(mixed, draw(12))
    one = draw(12)
    partners, shares = permutation(one), betas(1.0, one.words(1)[:, 0])
    onehot = np.eye(4)[labels]
    for i, (j, share) in enumerate(zip(partners, shares, strict=True)):
        expected = share * rows[i] + (1 - share) * rows[j]
        np.testing.assert_allclose(mixed.arrays["x"][i], expected, rtol=1e-4, atol=1e-5)
        expected = share * onehot[i] + (1 - share) * onehot[j]
        np.testing.assert_allclose(mixed.arrays["label"][i], expected, atol=1e-6)
    assert mixed.arrays["label"].dtype == mixed.arrays["x"].dtype == np.float32
    np.testing.assert_allclose(mixed.arrays["label"].sum(axis=1), 1, atol=1e-6)


def test_mixup_mixes_soft_labels_and_numbers_as_they_are() -> None:
    rows = images(8, 5)
    soft = np.random.default_rng(0).dirichlet(np.ones(4), 8).astype(np.float32)
    numbers = np.arange(8, dtype=np.int32) * 10
    mixed, of_numbers = samples(rows, soft), samples(rows, numbers, "number")
    Mixup(1.0)(mixed, draw(8))
    Mixup(1.0)(of_numbers, draw(8))
    one = draw(8)
    partners, shares = permutation(one), betas(1.0, one.words(1)[:, 0])
    expected = shares[:, None] * soft + (1 - shares[:, None]) * soft[partners]
    np.testing.assert_allclose(mixed.arrays["label"], expected, atol=1e-6)
    expected = shares * numbers + (1 - shares) * numbers[partners]
    np.testing.assert_allclose(of_numbers.arrays["number"], expected, rtol=1e-5, atol=1e-5)


def windows_of(mixed: NDArray[Any], own: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """Where (H, W) a mixed image shows the other one; everywhere else it shows its own."""
    foreign: NDArray[np.bool_] = (mixed != own).any(axis=0)
    assert np.array_equal(mixed[:, foreign], other[:, foreign])
    return foreign


def test_cutmix_shows_a_window_of_the_partner_and_mixes_labels_by_its_area() -> None:
    rows, labels = images(60, 3, 6, 9), np.arange(60) % 4
    mixed = samples(rows, labels)
    CutMix()(mixed, draw(60))
    partners = permutation(draw(60))
    onehot = np.eye(4)[labels]
    areas = []
    for i, j in enumerate(partners):
        foreign = windows_of(mixed.arrays["x"][i], rows[i], rows[j])
        if i == j:
            continue
        high, wide = foreign.any(axis=1), foreign.any(axis=0)
        assert np.array_equal(foreign, np.outer(high, wide))
        assert np.count_nonzero(np.diff(high.astype(int))) <= 2
        share = 1 - foreign.mean()
        expected = share * onehot[i] + (1 - share) * onehot[j]
        np.testing.assert_allclose(mixed.arrays["label"][i], expected, atol=1e-6)
        areas.append(foreign.mean())
    assert len(np.unique(areas)) > 10


def test_the_window_of_cutmix_has_the_drawn_area_where_it_fits() -> None:
    size = 400
    rows = np.zeros((300, 1, size, size), np.float32)
    rows[:] = np.arange(300, dtype=np.float32).reshape(-1, 1, 1, 1)
    mixed = samples(rows, np.zeros(300, np.int64))
    CutMix(2.0)(mixed, draw(300))
    one = draw(300)
    partners, shares = permutation(one), betas(2.0, one.words(1)[:, 0])
    inside = 0
    for i, j in enumerate(partners):
        foreign = (mixed.arrays["x"][i, 0] == rows[j, 0]) & (i != j)
        edge = foreign[0].any() or foreign[-1].any() or foreign[:, 0].any() or foreign[:, -1].any()
        if i != j and not edge:
            inside += 1
            assert abs(foreign.mean() - (1 - shares[i])) < 0.01
    assert inside > 20


def test_partners_come_from_the_micro_batch_alone() -> None:
    first, second = images(10, 2, 4, 4), images(10, 2, 4, 4) + 100
    for transform in (Mixup(1.0), CutMix()):
        alone, again = samples(first, np.zeros(10, int)), samples(second, np.zeros(10, int))
        transform(alone, draw(10))
        transform(again, Draw(1, 2, 3, 50, 10))
        assert alone.arrays["x"].max() < 50 < again.arrays["x"].min()


@pytest.mark.parametrize("transform", [Mixup(), CutMix()])
def test_a_single_sample_is_its_own_partner(transform: Any) -> None:
    rows = images(1, 2, 4, 4)
    mixed = samples(rows, np.array([2]))
    transform(mixed, draw(1))
    np.testing.assert_allclose(mixed.arrays["x"], rows, atol=1e-6)
    np.testing.assert_allclose(mixed.arrays["label"], [[0, 0, 1, 0]], atol=1e-6)


def test_cutout_blanks_one_window_around_a_uniform_centre() -> None:
    rows = images(3_000, 2, 6, 9) + 100
    blanked = Cutout(3, 5, fill=-1.5).changed(rows, draw(3_000))
    assert blanked.dtype == np.float32
    one = draw(3_000)
    rows_of, columns_of = one.integers(0, 5), one.integers(0, 8)
    for before, after, y, x in zip(rows, blanked, rows_of, columns_of, strict=True):
        expected = before.copy()
        expected[:, max(y - 1, 0) : y + 2, max(x - 2, 0) : x + 3] = -1.5
        assert np.array_equal(after, expected)
    for centre, size in ((rows_of, 6), (columns_of, 9)):
        assert stats.chisquare(np.bincount(centre, minlength=size)).pvalue > 1e-3


def test_cutout_below_1_is_a_fraction_of_the_image() -> None:
    rows = images(20, 1, 8, 20)
    by_fraction = Cutout(0.5, 0.25).changed(rows, draw(20))
    assert np.array_equal(by_fraction, Cutout(4, 5).changed(rows, draw(20)))
    assert Cutout(4, 5).after_scaling


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixup(0), r"Mixup\(alpha=0\): alpha must be above 0"),
        (lambda: CutMix(float("nan")), r"CutMix\(alpha=nan\): alpha must be above 0"),
        (lambda: Cutout(0, 3), r"Cutout\(height=0\): height must be above 0"),
        (lambda: Cutout(3, 1.5), r"Cutout\(width=1.5\): width must be below 1, or a whole number"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("transform", [Mixup(), CutMix()])
def test_what_cannot_be_mixed_is_refused(transform: Any) -> None:
    name = type(transform).__name__
    rows, labels = images(4, 1, 3, 3), np.zeros(4, int)
    with pytest.raises(DataError, match=rf"{name} changes the target, but this run has none"):
        transform(samples(rows, labels, None), draw(4))
    tokens = Samples({"tokens": np.zeros((4, 3), int), "label": labels}, COLUMNS, "tokens", "label")
    with pytest.raises(DataError, match=rf"{name} mixes float32 inputs of one size, but .*int64"):
        transform(tokens, draw(4))
    steps = Samples({"steps": images(4, 3), "label": labels}, COLUMNS, "steps", "label")
    with pytest.raises(DataError, match=rf"{name} mixes float32 inputs of one size, .*sequence"):
        transform(steps, draw(4))


def test_targets_that_cannot_be_mixed_are_refused() -> None:
    rows = images(4, 1, 3, 3)
    with pytest.raises(DataError, match=r"CutMix works on labels, but column 'number' is a number"):
        CutMix()(samples(rows, np.zeros(4, np.float32), "number"), draw(4))
    with pytest.raises(DataError, match=r"Mixup can't mix targets of kind text"):
        Mixup()(samples(rows, np.zeros((4, 2), np.uint8), "text"), draw(4))
    with pytest.raises(DataError, match=r"Mixup wants labels \(B,\) or probabilities \(B, 4\)"):
        Mixup()(samples(rows, np.zeros((4, 3), np.float32)), draw(4))
    with pytest.raises(DataError, match=r"CutMix works on images"):
        CutMix()(samples(images(4, 3), np.zeros(4, int)), draw(4))
    with pytest.raises(DataError, match=r"Cutout works on images"):
        Cutout(1, 1).changed(images(4, 3), draw(4))
