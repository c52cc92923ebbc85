"""`distrain data preview`: a picture of samples as the model will be given them."""

import argparse
import io
import re
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.durable import write_whole
from data_pipeline.errors import DataError
from distrain.config import DataConfig, Job, ModelConfig
from distrain.errors import UsageError
from distrain.job_file import override, read_job
from distrain.parallel.split import plan_batches

if TYPE_CHECKING:
    from data_pipeline.dataset import Dataset
    from data_pipeline.recipe import Recipe

_PNG = b"\x89PNG\r\n\x1a\n"

_TRANSFORM = re.compile(r"--data\.(augment|prepare)\.(\w[\w-]*)\.(\w[\w-]*)(?:=(.*))?", re.DOTALL)
"""An argument of a transform, such as --data.augment.shift.pixels."""


def add_preview(actions: "argparse._SubParsersAction[Any]") -> None:
    """Adds the action to `distrain data`; what it does not know are overrides of the job."""
    parser = actions.add_parser(
        "preview",
        help="draw samples as the model will see them, before and after augmentation",
        description="Draws samples as the model will see them, before and after augmentation.",
        epilog="--data.augment.NAME.ARG VALUE and --data.prepare.NAME.ARG VALUE add a transform, "
        "or change one of the job; with a job, --section.field VALUE sets any of its fields.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the data set's folder")
    parser.add_argument("--part", metavar="NAME", help="of it (the one that is trained on)")
    parser.add_argument(
        "--job", type=Path, metavar="JOB", help="take inputs, target and transforms of a job file"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("preview.png"),
        metavar="PNG",
        help="the picture, which may be there already (preview.png)",
    )
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="how many (8)")
    parser.add_argument(
        "--versions", type=int, default=3, metavar="N", help="of each sample, augmented (3)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of order and transforms (the job's, else 0)"
    )


def run_preview(known: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Runs the action that `add_preview` has parsed; errors are those of `preview`."""
    preview(
        known.folder,
        part=known.part,
        job=known.job,
        out=known.out,
        samples=known.samples,
        versions=known.versions,
        seed=known.seed,
        overrides=overrides,
    )


def preview(
    folder: Path,
    *,
    part: str | None = None,
    job: Path | None = None,
    out: Path = Path("preview.png"),
    samples: int = 8,
    versions: int = 3,
    seed: int | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Writes a contact sheet and says what is on it.

    Without a job, the first column that can be shown is, with the first label and the transforms
    of `overrides`. Only the part that is trained on is augmented.

    Raises:
        UsageError: an argument is wrong, or `out` is there and is no PNG file.
        ConfigError: the job or a transform can't be as described.
        DataError: the data set or a column is missing or can't be shown, or Pillow is missing.
        StorageError: `out` can't be written.
    """
    _check(out, samples, versions)
    from data_pipeline.contact_sheet import contact_sheet  # noqa: PLC0415 - torch and Pillow
    from data_pipeline.dataset import Dataset  # noqa: PLC0415 - pyarrow
    from data_pipeline.preview import preview as previewed  # noqa: PLC0415 - torch

    described = _job(folder, job, part, overrides)
    dataset = Dataset(folder, part or described.data.train)
    recipe = _recipe(described, dataset, given=job is not None)
    if seed is not None:
        recipe = replace(recipe, seed=seed)
    if job is None and not recipe.transforms:
        versions = 0
    shown = previewed(dataset, recipe, num_samples=samples, versions=versions)
    content = io.BytesIO()
    contact_sheet(shown).save(content, "PNG")
    write_whole(out, content.getvalue())
    times = "as they are stored" if not versions else f"before the transforms and {versions} after"
    print(f"wrote {out}: {len(shown.samples)} samples, {times}")
    print("\n".join(shown.caption))
    if job is None and not recipe.transforms:
        print("no transforms: name a job file with --job, or give --data.augment.NAME.ARG VALUE")


def _check(out: Path, samples: int, versions: int) -> None:
    if samples < 1:
        raise UsageError(f"--samples is {samples}; give 1 or more")
    if versions < 0:
        raise UsageError(f"--versions is {versions}; give 0 or more")
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out is {out}; a PNG file is written, so let its name end in .png")
    if out.exists():
        start = out.read_bytes()[: len(_PNG)] if out.is_file() else b"-"
        if start not in (_PNG, b""):
            raise UsageError(f"--out {out} exists and is no PNG file: name another")


def _job(folder: Path, path: Path | None, part: str | None, overrides: Sequence[str]) -> Job:
    """The job with its overrides, reading from `folder`; without a file, one of what is there."""
    transforms, others = transform_arguments(overrides)
    if path is not None:
        prog = f"distrain data preview {folder} --job {path}"
        job = override(read_job(path), others, prog=prog)
    elif others:
        raise UsageError(
            f"unrecognized arguments: {' '.join(others)}; without --job only "
            "--data.augment.NAME.ARG VALUE and --data.prepare.NAME.ARG VALUE can be given"
        )
    else:
        data = DataConfig(path=str(folder), inputs="", target="", train=part or "train")
        job = Job(data=data, model=ModelConfig(build="mlp"))
    changed = {"augment": dict(job.data.augment), "prepare": dict(job.data.prepare)}
    for (stage, name), options in transforms.items():
        changed[stage][name] = changed[stage].get(name, {}) | options
    data = replace(
        job.data, path=str(folder), augment=changed["augment"], prepare=changed["prepare"]
    )
    return replace(job, data=data)


def transform_arguments(
    arguments: Sequence[str],
) -> tuple[dict[tuple[str, str], dict[str, Any]], list[str]]:
    """The arguments of transforms by (augment or prepare, NAME), and all that are none.

    Values are read as TOML has them, or else as texts; several make a list.

    Raises:
        UsageError: a value is missing.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    others: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        match = _TRANSFORM.fullmatch(argument)
        if match is None:
            others.append(argument)
            continue
        values = [] if match[4] is None else [match[4]]
        while match[4] is None and left and not left[0].startswith("--"):
            values.append(left.pop(0))
        if not values:
            raise UsageError(f"{argument} needs a value")
        read = [_value(value) for value in values]
        options = found.setdefault((match[1], match[2].replace("-", "_")), {})
        options[match[3].replace("-", "_")] = read[0] if len(read) == 1 else read
    return found, others


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text.lower() if text in ('True', 'False') else text}")[
            "value"
        ]
    except tomllib.TOMLDecodeError:
        return text


def _recipe(job: Job, dataset: "Dataset", *, given: bool) -> "Recipe":
    """What training makes batches by; for another part than training's, what evaluation does."""
    from data_pipeline.dataset import Dataset  # noqa: PLC0415 - pyarrow
    from data_pipeline.recipe import Recipe, training_transforms  # noqa: PLC0415 - with numba
    from data_pipeline.standardize import standardization  # noqa: PLC0415 - with numba
    from distrain.run_job import make_transforms  # noqa: PLC0415 - torch

    train = dataset
    inputs, target = (job.data.inputs, job.data.target) if given else _first_columns(dataset)
    if given:
        dataset.column(inputs), dataset.column(str(target))
        if job.data.train != dataset.part:
            train = Dataset(job.data.path, job.data.train)
    trained_on = dataset.part == job.data.train
    plan = plan_batches(train.num_rows, job.training.global_batch, job.training.micro_batch)
    prepare = make_transforms("data.prepare", job.data.prepare)
    augment = make_transforms("data.augment", job.data.augment)
    scaling = standardization(dataset, inputs, scaled=job.data.standardize)
    return Recipe(
        columns=tuple(filter(None, (inputs, target))),
        seed=job.run.seed,
        sampling=job.data.sampling if trained_on else "shuffled",
        inputs=inputs,
        target=target,
        transforms=training_transforms(prepare, augment) if trained_on else tuple(prepare),
        standardized={} if scaling is None else {inputs: scaling},
        micro_batch=plan.micro_batch,
    ).fitted(train)


def _first_columns(dataset: "Dataset") -> tuple[str, str | None]:
    """The first column that can be shown, which a Loader would take as well, and the label."""
    kinds = {name: column.kind for name, column in dataset.columns.items()}
    shown = ("tensor", "image", "sequence", "text")
    pictures = [name for kind in shown for name, own in kinds.items() if own == kind]
    labels = [name for name, kind in kinds.items() if kind == "label"]
    labels += [name for name, kind in kinds.items() if kind == "number"]
    if not pictures:
        listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise DataError(
            f"{dataset.name} has nothing to show: its columns are {listed}, and pictures, tensors, "
            "sequences and texts can be shown"
        )
    return pictures[0], labels[0] if labels else None
