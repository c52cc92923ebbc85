"""`distrain data preview`, from its arguments to the file."""

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_pipeline import DataError
from data_pipeline.errors import StorageError
from data_pipeline.manifest import Column
from data_pipeline.ragged import Ragged
from data_pipeline.writer import write_dataset
from distrain.errors import ConfigError, UsageError
from launch.commands.preview_command import add_preview, run_preview, transform_arguments
from tests.conftest import ROOT

JOB = ROOT / "examples" / "digits.toml"


def preview(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    add_preview(parser.add_subparsers(dest="action"))
    run_preview(*parser.parse_known_args(["preview", *map(str, arguments)]))


def test_without_a_job_samples_are_shown_as_stored_and_it_says_so(
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    preview(digits, "--samples", 5)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "wrote preview.png: 5 samples, as they are stored"
    assert said[1:4] == [
        f"{digits}:train: 1,437 rows",
        "inputs image: uint8 1x8x8; target label",
        "transforms: none",
    ]
    assert said[-1].startswith("no transforms: name a job file with --job")
    with Image.open(tmp_path / "preview.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 5 * 128 // 2


def test_the_column_that_a_loader_takes_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    columns = [
        Column(name="words", kind="text", dtype="uint8", max_length=1),
        Column(name="steps", kind="sequence", dtype="float32", max_length=1),
        Column(name="photo", kind="image", dtype="uint8", shape=(3,)),
        Column(name="pixels", kind="tensor", dtype="uint8", shape=(1, 4, 4)),
    ]
    values: Any = {
        "words": Ragged.of_bytes([b"a"] * 3),
        "steps": Ragged.of([np.ones(1)] * 3, "float32", ()),
        "photo": Ragged.of_bytes([picture.getvalue()] * 3),
        "pixels": np.ones((3, 1, 4, 4), np.uint8),
    }
    # A Loader's order, which takes no text.
    for kept, shown in ((4, "pixels"), (3, "photo"), (2, "steps"), (1, "words")):
        some = {column.name: values[column.name] for column in columns[:kept]}
        write_dataset(tmp_path / shown, shown, columns[:kept], {"train": some})
        preview(tmp_path / shown, "--out", tmp_path / "a.png")
        assert f"inputs {shown}:" in capsys.readouterr().out


def test_a_job_gives_transforms_and_seed_and_overrides_change_them(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.png"
    preview(digits, "--job", JOB, "--out", out, "--samples", 2, "--versions", 1)
    assert "transforms: Shift(pixels=1, fill=0.0, fill_mode='constant')" in capsys.readouterr().out
    first = out.read_bytes()
    options = ("--job", JOB, "--out", out, "--samples", 2, "--versions", 1)
    preview(digits, *options, "--run.seed", 0)
    assert out.read_bytes() == first
    for other in (("--run.seed", 1), ("--seed", 1), ("--data.augment.shift.pixels", 3)):
        preview(digits, *options, *other)
        assert out.read_bytes() != first
    assert "Shift(pixels=3" in capsys.readouterr().out
    preview(digits, *options, "--data.augment.rotation.degrees", 9)
    assert "'constant'), Rotation(degrees=9" in capsys.readouterr().out


def test_a_part_that_is_not_trained_on_is_not_augmented(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--job", JOB, "--part", "validation", "--out", tmp_path / "a.png", "--samples", 2)
    preview(
        digits,
        *options,
        "--versions",
        1,
        "--data.prepare.resize.height",
        9,
        "--data.prepare.resize.width",
        9,
    )
    said = capsys.readouterr().out
    assert "validation: 360 rows" in said
    assert "transforms: Resize(height=9, width=9)\n" in said


def test_transforms_can_be_given_without_a_job(
    iris: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preview(iris, "--out", tmp_path / "a.png", "--data.augment.gaussian-noise.std=0.1")
    said = capsys.readouterr().out
    assert "8 samples, before the transforms and 3 after" in said
    assert "transforms: GaussianNoise(std=0.1)" in said


def test_arguments_of_transforms_are_told_from_others() -> None:
    given = (
        "--data.augment.a-b.x 1 -2.5 --run.seed 3 --data.prepare.c.y=up --data.augment.a_b.z True"
    )
    found, others = transform_arguments(given.split())
    assert found == {("augment", "a_b"): {"x": [1, -2.5], "z": True}, ("prepare", "c"): {"y": "up"}}
    assert others == ["--run.seed", "3"]
    with pytest.raises(UsageError, match=r"--data.augment.a.x needs a value"):
        transform_arguments(["--data.augment.a.x", "--data.augment.a.y", "1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--samples", 0), "--samples is 0; give 1 or more"),
        (("--versions", -1), "--versions is -1; give 0 or more"),
        (("--out", "a.jpg"), "let its name end in .png"),
        (("--run.seed", 3), "unrecognized arguments: --run.seed 3; without --job only"),
        (("--job", "missing.toml"), "there is no job file missing.toml"),
        (("--job", JOB, "--run.sead", 3), "the arguments do not fit the job"),
    ],
)
def test_wrong_arguments_are_refused(
    digits: Path, arguments: tuple[object, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        preview(digits, *arguments)


def test_only_a_png_file_is_written_over(digits: Path, tmp_path: Path) -> None:
    other, folder = tmp_path / "other.png", tmp_path / "folder.png"
    other.write_text("a text")
    folder.mkdir()
    for out in (other, folder):
        with pytest.raises(UsageError, match="exists and is no PNG file: name another"):
            preview(digits, "--out", out)
    assert other.read_text() == "a text"
    with pytest.raises(StorageError, match="cannot write"):
        preview(digits, "--out", tmp_path / "missing" / "a.png", "--samples", 1)


def test_what_the_data_or_the_transforms_lack_is_said(digits: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "a.png")
    with pytest.raises(DataError, match="no data set at"):
        preview(tmp_path / "nothing", *out)
    with pytest.raises(DataError, match="has no part 'tets'"):
        preview(digits, "--part", "tets", *out)
    with pytest.raises(DataError, match="has no column 'picture'"):
        preview(digits, "--job", JOB, "--data.inputs", "picture", *out)
    with pytest.raises(
        ConfigError, match=r"unknown transform data.augment.flop: did you mean flip"
    ):
        preview(digits, "--data.augment.flop.probability", 1, *out)
    with pytest.raises(ConfigError, match=r"unknown option data.augment.flip.often"):
        preview(digits, "--data.augment.flip.often", 1, *out)
    numbers = [
        Column(name="label", kind="label", dtype="int64", classes=("a",)),
        Column(name="y", kind="number", dtype="float32"),
    ]
    values: Any = {"label": np.zeros(3, np.int64), "y": np.ones(3, np.float32)}
    write_dataset(tmp_path / "bare", "bare", numbers, {"train": values})
    with pytest.raises(DataError, match=r"nothing to show: its columns are label \(label\), y \("):
        preview(tmp_path / "bare", *out)
    assert not (tmp_path / "a.png").exists()
