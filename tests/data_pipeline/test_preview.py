"""What a contact sheet shows is what the loader gives, in the data's own units."""

import importlib
import io
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFont

from data_pipeline import DataError, Dataset
from data_pipeline.augment import (
    CenterCrop,
    Flip,
    GaussianNoise,
    Mixup,
    RandomResizedCrop,
    Shift,
    Transform,
)
from data_pipeline.contact_sheet import LARGE, LEAST, TEXT, contact_sheet, shown_size, wrapped
from data_pipeline.manifest import Column
from data_pipeline.preview import Cell, Plot, Preview, label_text, preview, transform_text
from data_pipeline.ragged import Ragged
from data_pipeline.recipe import Recipe
from data_pipeline.sampling import Sampling
from data_pipeline.standardize import standardization
from data_pipeline.writer import write_dataset

GENERATOR = np.random.default_rng(0)
NUM_ROWS = 20
IMAGES = GENERATOR.integers(0, 256, (NUM_ROWS, 3, 6, 8), dtype=np.uint8)
LABELS = np.arange(NUM_ROWS) % 2
LABEL = Column(name="label", kind="label", dtype="int64", classes=("cat", "dog", "cow"))


def recipe(dataset: Dataset, *transforms: Transform, name: str = "x", **more: Any) -> Recipe:
    scaling = standardization(dataset, name, scaled=True)
    target = "label" if "label" in dataset.columns else None
    return Recipe(
        columns=(name, *(["label"] if target else [])),
        sampling="shuffled",
        inputs=name,
        target=target,
        transforms=transforms,
        standardized={} if scaling is None else {name: scaling},
        **more,
    )


def of(values: Any) -> Dataset:
    arrays = {"x": values, "label": LABELS[: len(values)]}
    return Dataset.from_arrays(arrays, classes={"label": LABEL.classes})


COLOUR = of(IMAGES)


def pictures(shown: Preview, cell: int) -> NDArray[np.uint8]:
    found = [sample[cell].content for sample in shown.samples]
    assert all(isinstance(one, np.ndarray) for one in found)
    return np.stack([one for one in found if isinstance(one, np.ndarray)])


def rows(shown: Preview) -> list[int]:
    return [sample[0].row for sample in shown.samples if sample[0].row is not None]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "dog"),
        ([0.3, 0.7, 0.0], "dog 0.7 + cat 0.3"),
        ([0.0, 1.0, 0.0], "dog"),
        ([0.002, 0.998, 0.0], "dog"),
        ([0.98, 0.01, 0.01], "cat 0.98 + others 0.02"),
        ([0.2, 0.5, 0.3], "dog 0.5 + cow 0.3 + cat 0.2"),
    ],
)
def test_a_label_is_named_and_a_mixed_one_with_its_shares(value: Any, text: str) -> None:
    assert label_text(LABEL, np.asarray(value)) == text


def test_names_that_are_numbers_are_kept_apart_from_their_shares() -> None:
    digits = Column(name="label", kind="label", dtype="int64", classes=("0", "1"))
    assert label_text(digits, np.asarray([0.7, 0.3])) == "'0' 0.7 + '1' 0.3"
    assert label_text(digits, np.asarray(1)) == "1"


def test_a_target_of_numbers_is_given_in_numbers_and_none_as_nothing() -> None:
    number = Column(name="y", kind="number", dtype="float32")
    assert label_text(number, np.float32(1.23456)) == "1.235"
    tensor = Column(name="y", kind="tensor", dtype="float32", shape=(5,))
    assert label_text(tensor, np.arange(5.0)) == "0, 1, 2, ..."
    assert label_text(None, None) == ""


def test_a_transform_is_named_with_its_arguments() -> None:
    crop = transform_text(RandomResizedCrop(9, 9))
    assert crop == "RandomResizedCrop(height=9, width=9, area=(0.08, 1.0), ratio=(0.75, 1.333))"

    def own(samples: Any, draw: Any) -> None:
        """Does nothing."""

    assert transform_text(own) == "own"


def test_before_shows_the_rows_of_the_shuffled_epoch_as_they_are_stored() -> None:
    shown = preview(COLOUR, recipe(COLOUR), num_samples=6, versions=1, epoch=2)
    assert rows(shown) == Sampling(COLOUR, "shuffled").rows(2, 0, 6).tolist()
    assert np.array_equal(pictures(shown, 0), IMAGES[rows(shown)].transpose(0, 2, 3, 1))
    assert [sample[0].label for sample in shown.samples] == [
        LABEL.classes[LABELS[row]] for row in rows(shown)
    ]
    assert shown.headings == ("before", "after, epoch 3")


def test_standardisation_is_undone_to_the_level() -> None:
    shown = preview(COLOUR, recipe(COLOUR), num_samples=9, versions=2)
    for version in (1, 2):
        assert np.array_equal(pictures(shown, version), pictures(shown, 0))
    assert not any("clipped" in line for line in shown.caption)


def test_a_flip_is_mirrored_and_every_version_has_its_own_draws() -> None:
    shown = preview(COLOUR, recipe(COLOUR, Flip(1.0)), versions=1)
    assert np.array_equal(pictures(shown, 1), pictures(shown, 0)[:, :, ::-1])
    moved = preview(COLOUR, recipe(COLOUR, Shift(2)), versions=2)
    assert not np.array_equal(pictures(moved, 1), pictures(moved, 2))


def test_samples_are_mixed_within_the_micro_batch_as_in_training() -> None:
    few = preview(COLOUR, recipe(COLOUR, Mixup(1.0), micro_batch=8), num_samples=3)
    more = preview(COLOUR, recipe(COLOUR, Mixup(1.0), micro_batch=8), num_samples=8)
    assert np.array_equal(pictures(few, 1), pictures(more, 1)[:3])
    assert any(" + " in cell.label for sample in more.samples for cell in sample[1:])


def test_values_beyond_what_can_be_shown_are_clipped_and_counted() -> None:
    shown = preview(COLOUR, recipe(COLOUR, GaussianNoise(5.0)))
    assert "of the values after lie outside 0 to 255, and are clipped here" in shown.caption[-1]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (IMAGES // 16, "black is 0, white is 15"),
        (IMAGES.astype(np.float32) / 255 - 0.5, "black is -0.5, white is 0.5"),
    ],
)
def test_other_ranges_are_stretched_and_named(values: NDArray[Any], said: str) -> None:
    dataset = of(values)
    shown = preview(dataset, recipe(dataset), num_samples=NUM_ROWS, versions=1)
    assert pictures(shown, 0).min() == 0
    assert pictures(shown, 0).max() == 255
    # float32 may round the other way at a half.
    assert abs(pictures(shown, 0).astype(int) - pictures(shown, 1)).max() <= 1
    assert said in shown.caption


def test_of_other_numbers_of_channels_the_first_is_shown() -> None:
    dataset = of(IMAGES[:, :2])
    shown = preview(dataset, recipe(dataset), versions=1)
    assert pictures(shown, 1).shape[1:] == (6, 8, 1)
    assert "the first of 2 channels is shown" in shown.caption


def test_features_stand_between_their_least_and_greatest() -> None:
    values = GENERATOR.normal(size=(NUM_ROWS, 4)) * [1, 10, 100, 1000]
    dataset = of(values)
    shown = preview(dataset, recipe(dataset), num_samples=NUM_ROWS, versions=1)
    stacked = []
    for before, after in shown.samples:
        assert isinstance(before.content, Plot)
        assert isinstance(after.content, Plot)
        assert after.content.beneath is before.content.lines
        np.testing.assert_allclose(after.content.lines, before.content.lines, atol=1e-5)
        stacked.append(before.content.lines)
    found = np.concatenate(stacked)
    np.testing.assert_allclose(found.min(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(found.max(axis=0), 1, atol=1e-6)


def test_series_have_a_line_a_feature_and_sequences_their_own_length() -> None:
    series = of(GENERATOR.normal(size=(NUM_ROWS, 12, 3)))
    cell = preview(series, recipe(series), versions=1).samples[0][1]
    assert isinstance(cell.content, Plot)
    assert cell.content.lines.shape == (3, 12)
    ragged = of(Ragged.of([np.ones((2 + k, 2)) * k for k in range(NUM_ROWS)], "float32", (2,)))
    for before, after in preview(ragged, recipe(ragged), versions=1).samples:
        assert isinstance(after.content, Plot)
        assert before.row is not None
        assert after.content.lines.shape == (2, 2 + before.row)


def test_texts_are_shown_as_texts() -> None:
    dataset = of([f"naïve {k}" for k in range(NUM_ROWS)])
    for before, after in preview(dataset, recipe(dataset), versions=1).samples:
        assert before.content == after.content == f"naïve {before.row}"


def test_encoded_pictures_are_decoded_and_cropped(tmp_path: Any) -> None:
    encoded = []
    for image in IMAGES:
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
        encoded.append(file.getvalue())
    column = Column(name="x", kind="image", dtype="uint8", shape=(3,))
    values: Any = {"x": Ragged.of_bytes(encoded), "label": LABELS}
    write_dataset(tmp_path / "set", "set", [column, LABEL], {"train": values})
    dataset = Dataset(tmp_path / "set")
    shown = preview(dataset, recipe(dataset, CenterCrop(6, 6, of=1.0)), versions=1)
    assert np.array_equal(pictures(shown, 0), IMAGES[rows(shown)].transpose(0, 2, 3, 1))
    assert np.array_equal(pictures(shown, 1), pictures(shown, 0)[:, :, 1:7])
    with pytest.raises(DataError, match="nothing gives them one:"):
        preview(dataset, recipe(dataset))
    assert preview(dataset, recipe(dataset), versions=0).headings == ("as stored",)


def test_what_cannot_be_shown_is_refused() -> None:
    videos = of(np.zeros((4, 2, 3, 6, 8), np.uint8))
    with pytest.raises(DataError, match=r"rows of shape \(2, 3, 6, 8\): pictures"):
        preview(videos, recipe(videos))
    with pytest.raises(DataError, match="name the column that is to be shown"):
        preview(videos, Recipe(columns=("label",)))


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((8, 8), (128, 128)),
        ((32, 32), (128, 128)),
        ((28, 20), (140, 100)),
        ((90, 45), (180, 90)),
        ((128, 128), (128, 128)),
        ((480, 640), (120, 160)),
        ((1, 4_000), (1, 160)),
    ],
)
def test_small_pictures_are_enlarged_and_large_ones_reduced(
    size: tuple[int, int], shown: tuple[int, int]
) -> None:
    assert shown_size(*size) == shown


@pytest.mark.parametrize("longest", range(1, LARGE + 1))
def test_no_picture_is_too_small_to_see(longest: int) -> None:
    assert LEAST <= max(shown_size(longest, 1)) < 2 * LEAST


def test_text_is_wrapped_within_its_width_and_cut_at_the_last_line() -> None:
    font = ImageFont.load_default(TEXT)
    text = "a few short words and one_that_is_far_too_long_for_any_line_of_this_width"
    lines = wrapped(text, font, 100, 20)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    cut = wrapped(text, font, 100, 2)
    assert cut[-1].endswith("...")
    assert all(font.getlength(line) <= 100 for line in [*lines, *cut])
    assert wrapped("", font, 100, 2) == []


def test_a_sheet_has_every_pixel_enlarged() -> None:
    colours = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [9, 9, 9]]], np.uint8)
    cells = (Cell(colours, "cat", 3), Cell(colours[:, ::-1], "dog"))
    sheet = contact_sheet(Preview(("title",), ("before", "after"), (cells,)))
    pixels = np.asarray(sheet)
    for colour in colours.reshape(-1, 3)[:3]:
        assert (pixels == colour).all(axis=2).sum() == 2 * 64 * 64
    red = np.argwhere((pixels == colours[0, 0]).all(axis=2))
    # The pictures' left and right halves: the second is mirrored.
    assert red[:, 1].max() - red[:, 1].min() > 128


def test_sheets_of_many_samples_are_neither_towers_nor_ribbons() -> None:
    for count in (1, 2, 5, 8, 30):
        cells = (Cell(np.zeros((8, 8, 1), np.uint8), "cat " * 30, 1),) * 4
        sheet = contact_sheet(Preview(("t",), ("a",) * 4, (cells,) * count))
        assert 0.5 < sheet.width / sheet.height < 4


def test_plots_have_the_lines_before_in_grey_and_after_in_blue() -> None:
    line = np.linspace(0, 1, 5)[None]
    gap = np.array([[0.0, np.nan, 5.0]])
    before, after = Plot(line), Plot(gap, line)
    shown = Preview(("t",), ("a", "b"), ((Cell(before, ""), Cell(after, "")),))
    pixels = np.asarray(contact_sheet(shown)).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0]) > 60
    assert blue.any()
    assert not blue[:, : pixels.shape[1] // 4].any()


def test_without_pillow_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "data_pipeline.contact_sheet")
    with pytest.raises(DataError, match=r"pip install 'distrain\[images\]'"):
        importlib.import_module("data_pipeline.contact_sheet")
