"""Sampling, prepared and augmented inputs, and threads, through training to its weights."""

import io
import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import distrain as package
from data_pipeline import DataError, Dataset, Ragged, write_dataset
from data_pipeline.augment import (
    CenterCrop,
    CutMix,
    Draw,
    Flip,
    LabelSmoothing,
    Mixup,
    RandomResizedCrop,
    Resize,
    Samples,
    Shift,
)
from data_pipeline.manifest import Column
from data_pipeline.order import BootstrapOrder
from distrain.errors import ConfigError
from distrain.job_file import job_from_mapping
from distrain.parallel.replicas import weights_digest
from distrain.run_job import run_job
from tests.alone import distrain_alone
from tests.conftest import Completed

CLASSES = ("dark", "bright", "striped")
ROWS = 44


def picture(number: int) -> bytes:
    """A JPEG of some size that shows its class."""
    rng = np.random.default_rng(number)
    kind, height, width = number % 3, int(rng.integers(20, 40)), int(rng.integers(20, 40))
    levels = rng.normal([40.0, 200.0, 120.0][kind], 20.0, (height, width, 3))
    if kind == 2:
        levels[::4] += 100
    image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    written = io.BytesIO()
    image.save(written, "JPEG", quality=90)
    return written.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoded pictures of any size in three classes."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    columns = [
        Column(name="image", kind="image", dtype="uint8", shape=(3,)),
        Column(name="label", kind="label", dtype="int64", classes=CLASSES),
        Column(name="number", kind="number", dtype="float32"),
    ]
    parts: Any = {
        part: {
            "image": Ragged.of_bytes([picture(first + number) for number in range(count)]),
            "label": (np.arange(count) + first) % 3,
            "number": np.arange(count, dtype=np.float32),
        }
        for part, first, count in (("train", 0, ROWS), ("validation", 999, 20))
    }
    write_dataset(folder, "pictures", columns, parts, rows_per_shard=10)
    return folder


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def net(side: int, channels: int, classes: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        inputs = side * side * channels
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, classes))

    return build


def trainer(build: Callable[[], nn.Module], **options: Any) -> package.Trainer:
    settings: dict[str, Any] = {"loss": nn.CrossEntropyLoss(), "optimizer": sgd, **options}
    return package.Trainer(
        model=build,
        inputs="image",
        target="label",
        progress=False,
        metrics=["accuracy"],
        **settings,
    )


def row(data: tuple[Dataset, Dataset], side: int, *, prepare: Any = (), **fitting: Any) -> str:
    """What a training ends with: the digest of its weights, and its scores."""
    train, validation = data
    channels = train.column("image").shape[0]
    made = trainer(net(side, channels, len(train.column("label").classes)), prepare=prepare)
    options: dict[str, Any] = {"epochs": 2, "global_batch": 16, "micro_batch": 4, **fitting}
    history = made.fit(train, validation, **options)
    scores = [dict(record.scores) for record in history.epochs]
    return f"{weights_digest(made.model)} {scores}"


def every_row(pictures: Path) -> dict[str, str]:
    """Digests by what was tried, each with one thread and with three."""
    encoded = Dataset(pictures), Dataset(pictures, "validation")
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "image": rng.integers(0, 256, (ROWS, 2, 8, 8), dtype=np.uint8),
        "label": rng.integers(0, 3, ROWS),
    }
    plain = (Dataset.from_arrays(arrays, classes={"label": CLASSES}),) * 2
    crop = [RandomResizedCrop(12, 12), Flip(), Mixup()]
    found: dict[str, str] = {}
    for threads in (1, 3):
        ahead: dict[str, Any] = {"threads": threads, "prefetch": threads}
        found |= {
            f"plain/{threads}": row(plain, 8, **ahead),
            f"bootstrap/{threads}": row(plain, 8, sampling="bootstrap", **ahead),
            f"balanced/{threads}": row(plain, 8, sampling="balanced", **ahead),
            f"mixup/{threads}": row(plain, 8, augment=[Shift(1), Flip(), Mixup()], **ahead),
            f"cutmix/{threads}": row(
                plain, 8, augment=[CutMix(), LabelSmoothing(0.1)], sampling="balanced", **ahead
            ),
            f"resize/{threads}": row(encoded, 12, prepare=[Resize(12, 12)], **ahead),
            f"crop/{threads}": row(
                encoded, 12, prepare=[CenterCrop(12, 12)], augment=crop, **ahead
            ),
        }
    return found


@pytest.fixture(scope="module")
def rows_of(
    run_program: Callable[..., None], pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, str]]:
    """By world size, what each row ended with; real processes."""
    found = {}
    for workers in (1, 2):
        out = tmp_path_factory.mktemp("rows") / "rows.json"
        run_program(str(Path(__file__)), workers, pictures, out)
        found[workers] = json.loads(out.read_text())
    return found


def test_any_sampling_and_transforms_end_with_the_same_bits_on_1_and_2_workers(
    rows_of: dict[int, dict[str, str]],
) -> None:
    assert len(rows_of[1]) == 14
    assert rows_of[2] == rows_of[1]


def test_threads_are_not_seen_in_the_weights_and_all_else_is(
    rows_of: dict[int, dict[str, str]],
) -> None:
    by_threads = [
        {name.split("/")[0]: ended for name, ended in rows_of[1].items() if name.endswith(number)}
        for number in ("/1", "/3")
    ]
    assert by_threads[0] == by_threads[1]
    assert len(set(by_threads[0].values())) == 7


def of_digits(digits: Path, **options: Any) -> tuple[package.Trainer, Any]:
    fitting: dict[str, Any] = {
        name: options.pop(name) for name in ("augment", "sampling", "epochs") if name in options
    }
    made = trainer(net(8, 1, 10), **options)
    data = Dataset(digits), Dataset(digits, "validation")
    settings: dict[str, Any] = {"epochs": 3, "global_batch": 64, "micro_batch": 16, **fitting}
    return made, made.fit(*data, **settings)


def test_mixup_trains_and_its_training_scores_count_by_the_largest_probability(
    digits: Path,
) -> None:
    _, history = of_digits(digits, augment=[Mixup(0.2)], epochs=5)
    assert history["loss"][-1] < history["loss"][0]
    assert history["val_accuracy"][-1] > 0.85
    # By the smaller share, or by the first class, it would stay far below.
    assert history["accuracy"][-1] > 0.8


@pytest.mark.parametrize("amount", [0.1, 0.3])
def test_smoothed_labels_are_torchs_label_smoothing(digits: Path, amount: float) -> None:
    ours, history = of_digits(digits, augment=[LabelSmoothing(amount)])
    loss = nn.CrossEntropyLoss(label_smoothing=amount)
    theirs, expected = of_digits(digits, loss=loss)
    plain, _ = of_digits(digits)
    # Validation is not smoothed by the one, and by the other it is.
    assert history["accuracy"] == pytest.approx(expected["accuracy"], abs=2e-3)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-4)
    for mine, other, without in zip(
        ours.model.parameters(), theirs.model.parameters(), plain.model.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
        assert (mine - without).abs().max() > 1e-2


def test_a_bootstrap_trains_on_the_rows_that_its_order_names(digits: Path) -> None:
    data = Dataset(digits)
    seen: list[int] = []
    labels = np.empty(len(data), np.int64)
    data.gather("label", np.arange(len(data)), labels)

    def note(samples: Samples, draw: Draw) -> None:
        if draw.num_samples == 16:  # the first two rows are tried beforehand
            seen.extend(samples.arrays["label"].tolist())

    made = trainer(net(8, 1, 10))
    made.fit(
        data,
        epochs=1,
        global_batch=64,
        micro_batch=16,
        last_batch="drop",
        augment=[note],
        sampling="bootstrap",
    )
    rows = BootstrapOrder(len(data), 0, 0, resampled=False).rows(0, len(data) // 64 * 64)
    assert seen == labels[rows].tolist()


def test_prepared_inputs_are_those_of_evaluating_and_predicting_too(pictures: Path) -> None:
    train, validation = Dataset(pictures), Dataset(pictures, "validation")
    made = trainer(net(10, 3, 3), prepare=[Resize(10, 10)])
    crop = RandomResizedCrop(10, 10, area=(0.5, 1.0))
    history = made.fit(train, validation, epochs=12, global_batch=22, augment=[crop, Flip()])
    assert history["val_accuracy"][-1] > 0.9
    scores = made.evaluate(validation)
    assert scores["accuracy"] == history["val_accuracy"][-1]
    outputs = made.predict(validation)
    assert outputs.shape == (20, 3)
    labels = (np.arange(20) + 999) % 3
    assert (outputs.argmax(1).numpy() == labels).mean() == scores["accuracy"]


def test_a_run_with_other_preparation_is_another_run(pictures: Path, tmp_path: Path) -> None:
    train, validation = Dataset(pictures), Dataset(pictures, "validation")
    fitting: dict[str, Any] = {"epochs": 1, "global_batch": 22, "augment": [Resize(9, 9)]}

    def fit(**options: Any) -> None:
        trainer(net(9, 3, 3), run=tmp_path / "run", **options).fit(train, validation, **fitting)

    # What is prepared is cropped otherwise for training: only the validation would differ.
    fit(prepare=[CenterCrop(9, 9)])
    with pytest.raises(ConfigError, match="prepare"):
        fit(prepare=[CenterCrop(9, 9, of=0.5)])


def tables(folder: Path, **sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A job over the pictures, with other fields where they are given."""
    made: dict[str, dict[str, Any]] = {
        "data": {"path": str(folder), "inputs": "image", "target": "label"},
        "model": {"build": "cnn", "options": {"channels": [4]}},
        "optimizer": {"name": "adam", "lr": 0.01},
        "training": {"epochs": 8, "global_batch": 22, "micro_batch": 11, "metrics": ["accuracy"]},
    }
    for name, fields in sections.items():
        made[name] = {**made[name], **fields}
    return made


def test_a_job_file_resizes_encoded_pictures_and_augments_them_by_name(
    distrain: Callable[..., Completed], pictures: Path, tmp_path: Path
) -> None:
    augment = {
        "random_resized_crop": {"height": 12, "width": 12, "area": [0.5, 1.0]},
        "flip": {},
        "mixup": {"alpha": 0.1},
        "label_smoothing": {"amount": 0.05},
    }
    prepare = {"resize": {"height": 12, "width": 12}}
    data = {"prepare": prepare, "augment": augment, "sampling": "balanced"}
    for workers, threads in ((1, 1), (2, 3)):
        job = tmp_path / f"job{workers}.toml"
        content = tables(pictures, data={**data, "threads": threads})
        job.write_text(tomli_w.dumps({**content, "run": {"dir": str(tmp_path / f"w{workers}")}}))
        command = distrain_alone if workers == 1 else distrain
        done = command("train", job, "--workers", workers)
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / f"w{w}" / "model.safetensors") for w in (1, 2))
    assert {name: t.numpy().tobytes() for name, t in one.items()} == {
        name: t.numpy().tobytes() for name, t in two.items()
    }
    status = json.loads((tmp_path / "w1" / "status.json").read_text())
    assert status["scores"]["val_accuracy"] > 0.8
    kept = tomllib.loads((tmp_path / "w2" / "job.toml").read_text())
    assert list(kept["data"]["augment"]) == list(augment)
    assert kept["data"]["prepare"] == prepare


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"augment": {"mixpu": {}}}, r"unknown transform data\.augment\.mixpu: did you mean mixup"),
        ({"prepare": {"resise": {}}}, r"unknown transform data\.prepare\.resise: did you mean res"),
        (
            {"prepare": {"resize": {"height": 3, "widht": 3}}},
            r"unknown option data\.prepare\.resize\.widht: did you mean width",
        ),
        ({"augment": {"mixup": {"alpha": 0}}}, r"data\.augment\.mixup = .*alpha must be above 0"),
        ({"sampling": "bootstap"}, r"data\.sampling is 'bootstap': did you mean bootstrap"),
        ({"threads": 0}, r"data\.threads is 0; give 1 to"),
    ],
)
def test_names_and_values_that_there_are_not_are_refused(
    pictures: Path, data: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_job(job_from_mapping(tables(pictures, data=data)))


def test_encoded_pictures_without_a_size_are_refused(pictures: Path) -> None:
    with pytest.raises(DataError, match="let the transforms begin with Resize, CenterCrop or"):
        run_job(job_from_mapping(tables(pictures)))


def test_balancing_without_a_label_ends_with_code_65(pictures: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    data = {"target": "number", "sampling": "balanced", "prepare": {"resize": {"height": 9}}}
    data["prepare"]["resize"]["width"] = 9  # type: ignore[index]
    content = tables(pictures, data=data, training={"metrics": []})
    content["loss"] = {"name": "mse"}
    job.write_text(tomli_w.dumps({**content, "run": {"dir": str(tmp_path / "run")}}))
    done = distrain_alone("train", job, "--workers", 1)
    assert done.returncode == 65, done.stderr
    assert "needs a column of class labels, and 'number'" in done.stderr


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)


if __name__ == "__main__":
    ended = every_row(Path(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps(ended))
