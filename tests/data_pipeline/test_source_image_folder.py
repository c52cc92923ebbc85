import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data_pipeline import DataError
from data_pipeline.manifest import Column
from data_pipeline.sources.image_folder import matches, open_source
from data_pipeline.sources.source import Reading
from tests.read_back import check_converted, read_back, with_small_blocks

LABEL = Column(name="label", kind="label", dtype="int64", classes=("cat", "dog"))


def picture(seed: int, height: int = 6, width: int = 8, mode: str = "RGB") -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)
    return Image.fromarray(pixels)


def save(file: Path, image: Image.Image, kind: str | None = None) -> bytes:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    image.save(content, kind or ("PNG" if file.suffix == ".png" else "JPEG"))
    file.write_bytes(content.getvalue())
    return content.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of a JPEG and a PNG, of different sizes."""
    root = tmp_path / "pets"
    for number, name in enumerate(["dog/a.jpg", "dog/b.png", "cat/z.png", "cat/B.JPEG"]):
        save(root / name, picture(number, 6 + number))
    return root


def test_pictures_keep_their_bytes_and_the_folders_are_the_classes(folder: Path) -> None:
    source = open_source(folder, Reading())
    image = Column(name="image", kind="image", dtype="uint8", shape=(3,))
    assert source.columns == (image, LABEL)
    rows = read_back(source)[None]
    assert rows.origins == ["cat/B.JPEG", "cat/z.png", "dog/a.jpg", "dog/b.png"]
    assert rows.values["image"] == [(folder / name).read_bytes() for name in rows.origins]
    assert rows.array("label").tolist() == [0, 0, 1, 1]
    assert rows.bad == []


def test_with_a_size_pictures_are_those_that_pillow_resizes(folder: Path) -> None:
    source = open_source(folder, Reading(size=(5, 4)))
    assert source.columns[0] == Column(name="image", kind="tensor", dtype="uint8", shape=(3, 5, 4))
    rows = read_back(source)[None]
    for origin, found in zip(rows.origins, rows.values["image"], strict=True):
        whole = Image.open(folder / origin).convert("RGB")
        expected = np.asarray(whole.resize((4, 5), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(found, expected.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [None, (3, 3), (6, 8)])
def test_pictures_are_grey_only_if_all_are(folder: Path, size: tuple[int, int] | None) -> None:
    for file in folder.rglob("*.*"):
        save(file, picture(1, mode="L"))
    source = open_source(folder, Reading(size=size))
    assert source.columns[0].shape == ((1,) if size is None else (1, *size))
    assert len(read_back(source)[None].origins) == 4
    save(folder / "dog" / "c.png", picture(1))
    source = open_source(folder, Reading(size=size))
    assert source.columns[0].shape[0] == 3
    assert len(read_back(source)[None].origins) == 5


def test_transparency_palettes_and_16_bits_are_read(folder: Path) -> None:
    save(folder / "cat" / "alpha.png", picture(3, mode="RGBA"))
    save(folder / "cat" / "palette.png", picture(4).quantize(8))
    levels = (np.arange(48, dtype=np.uint16) * 1300).reshape(6, 8)
    save(folder / "cat" / "deep.png", Image.fromarray(levels))
    rows = read_back(open_source(folder, Reading(size=(6, 8))))[None]
    found = dict(zip(rows.origins, rows.values["image"], strict=True))
    assert rows.bad == []

    def rgb(name: str) -> NDArray[np.uint8]:
        return np.asarray(Image.open(folder / name).convert("RGB")).transpose(2, 0, 1)

    np.testing.assert_array_equal(found["cat/palette.png"], rgb("cat/palette.png"))
    np.testing.assert_array_equal(found["cat/alpha.png"], rgb("cat/alpha.png"))
    np.testing.assert_array_equal(found["cat/deep.png"][0], levels >> 8)


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "VAL"])
def test_folders_above_the_classes_are_parts(tmp_path: Path, validation: str) -> None:
    for part in ("train", validation, "test"):
        for name in ("dog", "cat"):
            save(tmp_path / part / name / "a.png", picture(1))
    source = open_source(tmp_path, Reading())
    assert source.columns[1] == LABEL
    assert [piece.part for piece in source.pieces] == ["test", "train", "validation"]
    assert read_back(source)["test"].origins == ["test/cat/a.png", "test/dog/a.png"]


def test_a_part_may_lack_a_class_but_has_none_that_train_lacks(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "test/dog"):
        save(tmp_path / name / "a.png", picture(1))
    rows = read_back(open_source(tmp_path, Reading()))
    assert rows["test"].array("label").tolist() == [1]
    save(tmp_path / "test" / "fox" / "a.png", picture(1))
    with pytest.raises(
        DataError, match=r"part 'test' has the classes \['fox'\], which train lacks"
    ):
        open_source(tmp_path, Reading())


def test_classes_may_be_called_like_parts(tmp_path: Path) -> None:
    for name in ("train", "test"):
        save(tmp_path / name / "a.png", picture(1))
    source = open_source(tmp_path, Reading())
    assert source.columns[1].classes == ("test", "train")
    assert {piece.part for piece in source.pieces} == {None}


def test_pieces_are_runs_of_files_whatever_blocks_they_come_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        save(folder / "dog" / f"{number}.png", picture(number))
    whole = read_back(open_source(folder, Reading()))[None]
    monkeypatch.setattr("data_pipeline.sources.image_folder.PIECE_FILES", 4)
    assert [len(p.files) for p in open_source(folder, Reading()).pieces] == [4, 4, 1]
    assert read_back(open_source(folder, Reading()))[None] == whole
    with_small_blocks(monkeypatch, "image_folder")
    assert [len(p.files) for p in open_source(folder, Reading()).pieces] == [1] * 9
    assert read_back(open_source(folder, Reading()))[None] == whole


def test_unreadable_pictures_are_named_and_left_out(folder: Path) -> None:
    good = (folder / "dog" / "a.jpg").read_bytes()
    (folder / "dog" / "cut.jpg").write_bytes(good[:-20])
    (folder / "cat" / "empty.png").write_bytes(b"")
    (folder / "cat" / "text.jpg").write_text("no picture")
    save(folder / "cat" / "gif.png", picture(1), "GIF")
    for reading in (Reading(), Reading(size=(4, 4))):
        rows = read_back(open_source(folder, reading))[None]
        assert len(rows.origins) == len(rows.values["image"]) == 4
        assert rows.array("label").tolist() == [0, 0, 1, 1]
        assert [message.split(":")[0] for message in rows.bad] == [
            "cat/empty.png",
            "cat/gif.png",
            "cat/text.jpg",
            "dog/cut.jpg",
        ]
        assert "it is neither JPEG nor PNG; convert it" in rows.bad[1]
        assert "can't be decoded" in rows.bad[3]


def test_a_file_that_is_gone_by_then_is_named(folder: Path) -> None:
    source = open_source(folder, Reading())
    (folder / "dog" / "a.jpg").unlink()
    assert read_back(source)[None].bad == [
        "dog/a.jpg: it cannot be read: No such file or directory"
    ]


def test_hidden_files_and_files_that_are_no_pictures_are_skipped(folder: Path) -> None:
    expected = read_back(open_source(folder, Reading()))[None]
    for name in ("cat/.DS_Store", ".git/x.png", "cat/notes.txt", "list.csv", "cat/Thumbs.db"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0")
    assert read_back(open_source(folder, Reading()))[None] == expected


def test_a_picture_is_known_by_its_first_bytes(folder: Path) -> None:
    save(folder / "cat" / "n02", picture(1))
    assert "cat/n02" in read_back(open_source(folder, Reading()))[None].origins


def test_links_within_the_folder_are_followed(folder: Path) -> None:
    (folder / "cat" / "link.jpg").symlink_to(folder / "dog" / "a.jpg")
    rows = read_back(open_source(folder, Reading()))[None]
    assert rows.values["image"][rows.origins.index("cat/link.jpg")] == rows.values["image"][3]


@pytest.mark.parametrize("target", ["../../outside.png", ".."])
def test_a_link_that_leaves_the_folder_is_refused(folder: Path, target: str) -> None:
    save(folder.parent / "outside.png", picture(1))
    (folder / "cat" / "x.png").symlink_to(Path(target) if target != ".." else folder.parent)
    with pytest.raises(DataError, match=r"cat/x\.png is a path that leaves the folder .*pets: it"):
        open_source(folder, Reading())


def test_a_link_to_nothing_is_refused(folder: Path) -> None:
    (folder / "cat" / "x.png").symlink_to(folder / "nothing.png")
    with pytest.raises(DataError, match=r"cat/x\.png leads to .*, which does not exist"):
        open_source(folder, Reading())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.png", r"a\.png lies in no class: a picture's class is the folder it lies in"),
        ("cat/more/a.png", r"cat/more lies in the folder of a class: classes are one level"),
        ("fox/a.txt", "fox holds no picture .* but it is the folder of a class: fill it"),
        ("cat/a.gif", r"cat/a\.gif is no picture that can be read: there are JPEG and PNG"),
        ("a.webp", r"a\.webp lies in no class"),
    ],
)
def test_what_no_class_is_made_of_is_refused_by_name(folder: Path, name: str, message: str) -> None:
    save(folder / name, picture(1), "GIF" if name.endswith(".gif") else "PNG")
    if name.endswith(".txt"):
        (folder / name).write_text("a list")
    with pytest.raises(DataError, match=message):
        open_source(folder, Reading())


def test_an_empty_folder_or_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty: give a folder that has a folder of pictures"):
        open_source(tmp_path, Reading())
    with pytest.raises(DataError, match="is no folder: give one that has a folder of pictures a"):
        open_source(tmp_path / "nothing", Reading())


def test_two_folders_for_one_part_are_refused(tmp_path: Path) -> None:
    for part in ("val", "valid"):
        save(tmp_path / part / "cat" / "a.png", picture(1))
    with pytest.raises(DataError, match="is one of two folders for the part 'validation'"):
        open_source(tmp_path, Reading())


def test_a_folder_whose_name_is_not_utf8_is_refused(folder: Path) -> None:
    save(folder / "\udcff" / "a.png", picture(1))
    with pytest.raises(DataError, match="has a name that is not UTF-8"):
        open_source(folder, Reading())


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        (Reading(types={"image": "int8"}), r"--type is given for \['image'\], but the columns of"),
        (Reading(stack={"x": ("label",)}), r"--stack is given for \['x'\]"),
        (Reading(split_by="label"), r"--split-by is given for \['label'\]"),
        (Reading(label="breed"), r"has no column 'breed', which --label names; its columns are"),
        (Reading(image="photo"), "has no column 'photo', which --image names"),
        (Reading(size=(0, 4)), r"the size of pictures is \(0, 4\): height and width must be 1"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(
    folder: Path, reading: Reading, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_source(folder, reading)


def test_a_missing_library_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"PIL reads pictures and is not installed: pip install"):
        open_source(folder, Reading())


def test_detection_wants_a_picture_in_a_folder_of_the_folder(folder: Path, tmp_path: Path) -> None:
    assert matches(folder)
    (tmp_path / "parts").mkdir()
    folder.rename(tmp_path / "parts" / "train")
    assert matches(tmp_path / "parts")
    assert not matches(tmp_path / "parts" / "train" / "cat")
    assert not matches(tmp_path / "parts" / "train" / "cat" / "z.png")
    (tmp_path / "other" / "a").mkdir(parents=True)
    (tmp_path / "other" / "a" / "x.csv").write_text("a,b")
    assert not matches(tmp_path / "other")


@pytest.mark.parametrize("size", [None, (4, 4)])
def test_a_folder_is_converted(folder: Path, tmp_path: Path, size: tuple[int, int] | None) -> None:
    source = check_converted(folder, tmp_path / "set", Reading(size=size))
    assert type(source).__name__ == "ImageFolder"


def test_unreadable_pictures_are_left_out_of_a_data_set_when_allowed(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "dog" / "bad.jpg").write_bytes(b"no picture")
    check_converted(folder, tmp_path / "set", Reading(), skip_bad=1)
    with pytest.raises(DataError, match=r"dog/bad\.jpg: it is neither JPEG nor PNG"):
        check_converted(folder, tmp_path / "other", Reading())
