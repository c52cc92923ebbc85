"""Several validation sets, and what is no number among their scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, roc_auc_score
from torch import nn

import distrain
from data_pipeline import Dataset
from distrain.coordinator.checkpoint import newest_checkpoint
from distrain.coordinator.event_log import logged_confusion
from distrain.coordinator.folder_store import FolderStore
from distrain.coordinator.metrics import MetricSet
from distrain.coordinator.observers import EpochRecord
from distrain.coordinator.stops import StopAskedError
from distrain.errors import ConfigError
from distrain.evaluate import Scores
from distrain.validation import ValidationSets
from tests.run_folders import named

CLASSES = 3


def rows(num_rows: int, seed: int) -> Dataset:
    draw = np.random.default_rng(seed)
    y = draw.integers(0, CLASSES, num_rows)
    x = draw.standard_normal((num_rows, 4)) + y[:, None]
    return Dataset.from_arrays({"x": x.astype(np.float32), "y": y}, classes={"y": list("abc")})


TRAIN, CLEAN, SHIFTED = rows(96, 0), rows(150, 1), rows(61, 2)


def trainer(**options: Any) -> distrain.Trainer:
    settings: dict[str, Any] = {"metrics": ["accuracy", "roc_auc", "confusion"], **options}
    return distrain.Trainer(
        model=lambda: nn.Linear(4, CLASSES),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        inputs="x",
        target="y",
        progress=False,
        **settings,
    )


def targets(data: Dataset) -> np.ndarray[Any, Any]:
    found = np.empty(len(data), np.int64)
    data.gather("y", np.arange(len(data)), found)
    return found


def test_each_set_has_scores_of_its_own_name(tmp_path: Path) -> None:
    made = trainer(
        run=tmp_path / "run",
        early_stopping=distrain.EarlyStopping("val_shifted_roc_auc", patience=9, restore_best=True),
        checkpoint=distrain.Checkpoint(keep_best=1, monitor="val_clean_loss", every_seconds=None),
    )
    sets = {"clean": CLEAN, "shifted": SHIFTED}
    history = made.fit(TRAIN, sets, epochs=3, global_batch=32)
    scores = [
        f"{name}_{one}"
        for name in ("val_clean", "val_shifted")
        for one in ("loss", "accuracy", "roc_auc")
    ]
    assert list(history.epochs[-1].scores) == ["loss", "accuracy", *scores]
    # The weights are those of the best epoch by the shifted set.
    best = int(np.argmax(history["val_shifted_roc_auc"]))
    assert history.best_epoch == best + 1
    for name, data in sets.items():
        found = made.evaluate(data)
        assert list(found) == ["loss", "accuracy", "roc_auc"]
        assert {f"val_{name}_{key}": score for key, score in found.items()}.items() <= dict(
            history.epochs[best].scores
        ).items()
        probabilities = made.predict(data).double().softmax(1)
        expected = roc_auc_score(targets(data), probabilities, multi_class="ovr")
        assert found["roc_auc"] == pytest.approx(expected, abs=1e-12)
        matrix = confusion_matrix(targets(data), probabilities.argmax(1))
        assert found.confusion is not None
        np.testing.assert_array_equal(found.confusion, matrix)
        logged = named(tmp_path / "run", "epoch")[best]["confusion"][f"val_{name}_confusion"]
        assert logged == matrix.tolist() == history.epochs[best].confusion[f"val_{name}_confusion"]
    again = trainer(
        run=tmp_path / "run",
        early_stopping=distrain.EarlyStopping("val_shifted_roc_auc", patience=9, restore_best=True),
    ).fit(TRAIN, sets, epochs=3, global_batch=32)
    assert again.epochs[-1].confusion == history.epochs[-1].confusion, "read from the log"


def test_matrices_are_no_part_of_the_state_that_is_written_often(tmp_path: Path) -> None:
    made = trainer(run=tmp_path, checkpoint=distrain.Checkpoint(every_steps=3, every_seconds=None))
    made.fit(TRAIN, CLEAN, epochs=2, global_batch=32)
    newest = newest_checkpoint(FolderStore(tmp_path / "checkpoints"))
    assert newest is not None
    epochs = newest.contents.state["run"]["epochs"]
    assert len(named(tmp_path, "epoch")[0]["confusion"]["val_confusion"]) == CLASSES
    assert [epoch["confusion"] for epoch in epochs] == [{}, {}]


def test_of_many_classes_the_log_has_the_largest_confusions() -> None:
    matrix = torch.diag(torch.full((40,), 1000)).tolist()
    matrix[3][17], matrix[5][2], matrix[0][39] = 4, 9, 4
    record = EpochRecord(1, 1, {}, 0.1, 1.0, {"val_a_confusion": matrix, "val_confusion": [[7]]})
    assert logged_confusion(record) == {
        "confusion": {"val_confusion": [[7]]},
        "largest_confusions": {"val_a_confusion": [[5, 2, 9], [0, 39, 4], [3, 17, 4]]},
    }
    assert logged_confusion(EpochRecord(1, 1, {}, 0.1, 1.0)) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "validation has no data set"),
        ({"two words": CLEAN}, "'two words', which is no name"),
        ({"": CLEAN}, "'', which is no name"),
    ],
)
def test_what_names_no_set_is_refused(given: dict[str, Dataset], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer().fit(TRAIN, given, epochs=1, global_batch=32)


def test_scores_that_would_have_one_name_are_refused() -> None:
    metrics = MetricSet(("accuracy", "balanced_accuracy"), CLASSES)
    with pytest.raises(ConfigError, match="two scores are called val_a_balanced_accuracy"):
        ValidationSets({"a_balanced": CLEAN, "a": CLEAN}).directions(metrics)


@pytest.mark.parametrize("monitor", ["roc_auc", "val_roc_auc", "confusion", "val_clean_confusion"])
def test_what_no_epoch_measures_is_refused_with_the_way_out(monitor: str) -> None:
    made = trainer(early_stopping=distrain.EarlyStopping(monitor))
    way_out = "on validation sets it measures val_clean_roc_auc" if "roc" in monitor else ""
    with pytest.raises(ConfigError, match=f"{monitor!r}, which this run does not .*{way_out}"):
        made.fit(TRAIN, {"clean": CLEAN}, epochs=1, global_batch=32)


def test_a_set_is_part_of_what_the_run_is() -> None:
    identities = [
        ValidationSets(given).identity
        for given in (None, CLEAN, {"a": CLEAN}, {"b": CLEAN}, {"a": CLEAN, "b": SHIFTED})
    ]
    assert len(set(identities)) == len(identities)
    assert identities[:2] == ["none", f"{CLEAN.part}@{CLEAN.digest}"]


def test_a_run_goes_on_with_the_metrics_it_began_with(tmp_path: Path) -> None:
    trainer(run=tmp_path, metrics=["accuracy"]).fit(TRAIN, CLEAN, epochs=1, global_batch=32)
    with pytest.raises(ConfigError, match=r"belongs to another job:\n  metrics: .*perplexity"):
        trainer(run=tmp_path, metrics=["accuracy", "perplexity"]).fit(
            TRAIN, CLEAN, epochs=1, global_batch=32
        )


def test_an_evaluation_that_is_left_says_how_much_of_all_sets_was_done() -> None:
    def evaluate(data: Dataset, raised: Any) -> Scores:
        if data is SHIFTED:
            raise StopAskedError([raised()], 0.5)
        return Scores(loss=1.0)

    with pytest.raises(StopAskedError) as left:
        ValidationSets({"a": CLEAN, "b": SHIFTED}).measure(evaluate, lambda: 15)
    assert left.value.flags == (15,)
    assert left.value.share_done == (150 + 0.5 * 61) / (150 + 61)
