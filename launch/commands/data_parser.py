"""What `distrain data` takes on its command line."""

import argparse
import os
from pathlib import Path

from distrain.errors import UsageError
from launch.commands.preview_command import add_preview
from launch.failure import Cause


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `distrain data`."""
    parser.description = "Data sets, from files to what a run reads."
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("make", help="write one of scikit-learn's bundled data sets")
    make.add_argument("name", metavar="NAME", help="iris, wine, breast_cancer, diabetes or digits")
    make.add_argument("folder", type=Path, metavar="DIR", help="the data set's folder to be")
    make.add_argument(
        "--validation-fraction",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="of the rows, for validation (0.2)",
    )
    make.add_argument("--seed", type=int, default=0, metavar="N", help="of the split (0)")
    _add_rows_per_shard(make)
    _add_convert(actions.add_parser("convert", help="make a data set of files of any known kind"))
    add_preview(actions)
    for name, text in (
        ("inspect", "print what a data set holds"),
        ("verify", "compare every file with its SHA-256"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("folder", type=Path, metavar="DIR", help="the data set's folder")


def _add_rows_per_shard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rows-per-shard", type=int, metavar="N", help="rows of a file (as many as take 64 MiB)"
    )


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.usage = "distrain data convert SRC DST [OPTION ...]"
    parser.description = (
        "Makes a data set of a folder of images with a folder a class, CSV, TSV, Parquet, JSON "
        "lines, Arrow, Feather, NumPy, IDX, CIFAR or Hugging Face's save_to_disk. Broken off, it "
        "is taken up again by the same command."
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="a file or folder")
    parser.add_argument("folder", type=Path, metavar="DST", help="the data set's folder to be")
    parser.add_argument(
        "--kind",
        metavar="KIND",
        help="of the source: images, csv, parquet, json-lines, arrow, numpy, idx, cifar or "
        "hugging-face (what it is found to be)",
    )
    parser.add_argument("--size", metavar="N|HxW", help="decode pictures, and resize them to this")
    parser.add_argument("--label", metavar="C", help="the column of class labels")
    parser.add_argument("--image", metavar="C", help="the column of pictures")
    parser.add_argument(
        "--type",
        metavar="C=TYPE",
        action="append",
        default=[],
        help="read a column as int8 to uint64, float16 to float64 or label, or skip it; in CSV, "
        "Parquet, JSON lines and Arrow also as bool, text, image or grey (a picture of one "
        "channel); may be given several times",
    )
    parser.add_argument(
        "--stack",
        metavar="NAME=C1,C2",
        action="append",
        default=[],
        help="one float32 tensor of several columns of numbers, NAME=* of all that remain; may be "
        "given several times",
    )
    parser.add_argument(
        "--split",
        metavar="PART=SHARE,...",
        help="such as validation=0.1,test=0.1, by a hash of the content; the rest is train",
    )
    parser.add_argument("--split-by", metavar="C", help="the column that names each row's part")
    parser.add_argument(
        "--stratify", action="store_true", help="give each class its exact share of the split"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one a core)")
    parser.add_argument(
        "--skip-bad", type=int, default=0, metavar="N", help="leave up to N unreadable rows out (0)"
    )
    parser.add_argument(
        "--missing",
        choices=("refuse", "keep"),
        default="refuse",
        help="keep missing numbers as NaN, all columns of whole numbers becoming float64 (refuse)",
    )
    _add_rows_per_shard(parser)


def run_data(known: argparse.Namespace) -> Cause | None:
    """Runs an action of `distrain data`."""
    from launch.commands import data_commands  # noqa: PLC0415 - pyarrow and rich, for this command alone

    if known.action == "make":
        data_commands.make(
            known.name,
            known.folder,
            validation_fraction=known.validation_fraction,
            seed=known.seed,
            rows_per_shard=known.rows_per_shard,
        )
    elif known.action == "convert":
        return _convert(known)
    elif known.action == "inspect":
        data_commands.inspect(known.folder)
    else:
        data_commands.verify(known.folder)
    return None


def _convert(known: argparse.Namespace) -> Cause | None:
    from launch.commands import convert_command  # noqa: PLC0415 - pyarrow and rich, for this command alone

    asked = convert_command.Asked(
        kind=known.kind,
        size=None if known.size is None else _size(known.size),
        label=known.label,
        image=known.image,
        types=_pairs("--type", known.type),
        stack={
            name: tuple(columns.split(","))
            for name, columns in _pairs("--stack", known.stack).items()
        },
        split={part: _share(part, share) for part, share in _split(known.split).items()},
        split_by=known.split_by,
        stratify=known.stratify,
        workers=known.workers if known.workers is not None else len(os.sched_getaffinity(0)),
        skip_bad=known.skip_bad,
        missing=known.missing,
        rows_per_shard=known.rows_per_shard,
    )
    for name in ("workers", "rows_per_shard"):
        given = getattr(asked, name)
        if given is not None and given < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {given}; give 1 or more")
    if asked.skip_bad < 0:
        raise UsageError(f"--skip-bad is {asked.skip_bad}; give 0 or more")
    return convert_command.convert(known.source, known.folder, asked)


def _size(given: str) -> tuple[int, int]:
    sides = given.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise UsageError(f"--size is {given!r}; give pixels, such as 64, or height x width: 48x64")
    return int(sides[0]), int(sides[-1])


def _pairs(option: str, given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in given:
        name, equals, value = entry.rpartition("=")
        if not (equals and name and value):
            raise UsageError(f"{option} is {entry!r}; give NAME=VALUE")
        if name in found:
            raise UsageError(f"{option} names {name!r} twice")
        found[name] = value
    return found


def _split(given: str | None) -> dict[str, str]:
    return {} if given is None else _pairs("--split", given.split(","))


def _share(part: str, given: str) -> float:
    try:
        share = float(given)
    except ValueError:
        share = 0.0
    if not 0.0 < share < 1.0:
        raise UsageError(f"--split gives {part!r} a share of {given!r}; give one between 0 and 1")
    return share
