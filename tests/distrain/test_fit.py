"""Training held against the loops that people write by hand, and what `fit` does around them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import (
    confusion_matrix,
    f1_score,
    mean_absolute_error,
    roc_auc_score,
    top_k_accuracy_score,
)
from torch import nn

import distrain
from data_pipeline import DataError, Dataset
from data_pipeline.order import ShuffledOrder
from distrain.errors import ConfigError, NonFiniteError, ProgramError
from distrain.numerics import initialization_seed
from distrain.parallel.replicas import weights_digest

STEPS = 50


def small_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True)  # type: ignore[arg-type]


def digits_trainer(
    net: Callable[[], nn.Module] | nn.Module = small_net, **options: object
) -> distrain.Trainer:
    settings: dict[str, object] = {"loss": nn.CrossEntropyLoss(), "optimizer": sgd, **options}
    return distrain.Trainer(
        model=net,
        inputs="image",
        target="label",
        progress=False,
        **settings,  # type: ignore[arg-type]
    )


def plain_loop(
    digits: Path, net: nn.Module, *, steps: int, global_batch: int
) -> tuple[list[float], nn.Module]:
    """A loop in plain PyTorch: whole batches, one process, its own normalisation."""
    data = Dataset(digits)
    images = np.empty((len(data), 1, 8, 8), np.uint8)
    labels = np.empty(len(data), np.int64)
    data.gather("image", np.arange(len(data)), images)
    data.gather("label", np.arange(len(data)), labels)
    x = torch.from_numpy((images - images.mean()) / images.std()).float()
    y = torch.from_numpy(labels)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    losses: list[float] = []
    epoch = 0
    while len(losses) < steps:
        order = ShuffledOrder(len(data), 0, epoch).rows(0, len(data))
        for start in range(0, len(data), global_batch):
            rows = torch.from_numpy(order[start : start + global_batch])
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        epoch += 1
    return losses[:steps], net


def recorded(folder: Path, event: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [found for found in events if found["event"] == event]


def initial(net: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(initialization_seed(0))
    return net()


def test_the_first_50_losses_and_the_weights_are_those_of_a_plain_loop(
    digits: Path, tmp_path: Path
) -> None:
    # 1,437 rows in batches of 144: the last of each epoch has 141.
    losses, reference = plain_loop(digits, initial(small_net), steps=STEPS, global_batch=144)
    trainer = digits_trainer(run=tmp_path / "run", clip_norm=1.0)
    trainer.fit(Dataset(digits), epochs=5, global_batch=144, micro_batch=16)
    ours = [event["loss"] for event in recorded(tmp_path / "run", "step")]
    assert len(ours) == STEPS
    np.testing.assert_allclose(ours, losses, rtol=2e-4)
    for mine, theirs in zip(trainer.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_one_micro_batch_of_a_batch_norm_net_is_a_plain_loop_with_its_running_statistics(
    digits: Path,
) -> None:
    def net() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
        )

    _, reference = plain_loop(digits, initial(net), steps=20, global_batch=144)
    trainer = digits_trainer(net, clip_norm=1.0)
    trainer.fit(Dataset(digits), epochs=2, global_batch=144, micro_batch=144)
    for (name, mine), theirs in zip(
        trainer.model.state_dict().items(), reference.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("workers", [2])
def test_the_weights_are_those_of_distributed_data_parallel(
    run_program: Callable[..., None], digits: Path, tmp_path: Path, workers: int
) -> None:
    run_program("against_ddp.py", workers, digits, tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["world_size"] == workers
    np.testing.assert_allclose(found["distrain_losses"], found["ddp_losses"], rtol=2e-4)
    assert found["largest_difference"] < 1e-4
    assert found["moved"] > 0.01


def test_metrics_of_3_workers_over_an_uneven_set_are_scikit_learns(
    run_program: Callable[..., None], digits: Path, tmp_path: Path
) -> None:
    run_program("metrics.py", 3, digits, tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["world_size"] == 3
    labels = np.array(found["labels"])
    outputs = np.array(found["outputs"])
    predicted = outputs.argmax(axis=1)
    assert len(labels) % 128, "the last evaluation batch must be uneven"
    scores = found["scores"]
    assert scores["accuracy"] == pytest.approx((predicted == labels).mean(), abs=1e-6)
    for average in ("macro", "micro"):
        name = "f1" if average == "macro" else "f1_micro"
        assert scores[name] == pytest.approx(f1_score(labels, predicted, average=average), abs=1e-6)
    chances = torch.from_numpy(outputs).double().softmax(1)
    area = roc_auc_score(labels, chances, multi_class="ovr")
    assert scores["roc_auc"] == pytest.approx(area, abs=1e-12)
    assert scores["top_3"] == pytest.approx(top_k_accuracy_score(labels, outputs, k=3), abs=1e-12)
    assert scores["samples"] == len(labels)
    np.testing.assert_array_equal(found["confusion"], confusion_matrix(labels, predicted))
    probabilities = torch.from_numpy(outputs).log_softmax(dim=1)
    loss = nn.functional.nll_loss(probabilities, torch.from_numpy(labels)).item()
    assert scores["loss"] == pytest.approx(loss, abs=1e-6)
    assert found["fit_scores"] == {f"val_{name}": score for name, score in scores.items()}


def test_regression_metrics_are_exact() -> None:
    generator = np.random.default_rng(1)
    data = Dataset.from_arrays(
        {
            "x": generator.standard_normal((37, 3)).astype(np.float32),
            "y": generator.standard_normal(37).astype(np.float32),
        }
    )
    trainer = distrain.Trainer(
        model=lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)),
        loss=nn.MSELoss(),
        optimizer=sgd,
        inputs="x",
        target="y",
        metrics=["mse", "mae"],
        progress=False,
    )
    trainer.fit(data, epochs=1, global_batch=8)
    target = np.empty(37, np.float32)
    data.gather("y", np.arange(37), target)
    outputs = trainer.predict(data).numpy()
    scores = trainer.evaluate(data)
    assert scores["mse"] == pytest.approx(np.square(outputs - target).mean(), rel=1e-6)
    assert scores["mse"] == pytest.approx(scores["loss"], rel=1e-6)
    assert scores["mae"] == pytest.approx(mean_absolute_error(target, outputs), rel=1e-6)


def test_iris_is_learned_to_95_percent_on_a_40_percent_part(iris: Path) -> None:
    trainer = distrain.Trainer(
        model=lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)),
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        inputs="features",
        target="label",
        metrics=["accuracy"],
        progress=False,
    )
    test = Dataset(iris, "validation")
    assert len(test) == 60
    history = trainer.fit(Dataset(iris), test, epochs=60, global_batch=16, micro_batch=4)
    assert history["val_accuracy"][-1] >= 0.95


def test_early_stopping_ends_with_the_best_epochs_weights(digits: Path) -> None:
    validation = Dataset(digits, "validation")
    trainer = digits_trainer(
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9),
        early_stopping=distrain.EarlyStopping("val_loss", patience=2, restore_best=True),
    )
    history = trainer.fit(Dataset(digits), validation, epochs=40, global_batch=256)
    losses = history["val_loss"]
    assert history.best_epoch is not None
    assert history.best_epoch == len(losses) - 2 == int(np.argmin(losses)) + 1
    assert trainer.evaluate(validation)["loss"] == losses[history.best_epoch - 1]


def test_a_nan_stops_the_run_naming_step_epoch_and_rows(digits: Path, tmp_path: Path) -> None:
    class Poisoned(nn.Module):
        """Gives NaN for one sample of the data set."""

        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.net(x)
            planted = (x == poison).flatten(1).all(dim=1)
            return outputs.masked_fill(planted[:, None], torch.nan)

    data = Dataset(digits)
    image = np.empty((1, 1, 8, 8), np.uint8)
    data.gather("image", np.array([1000]), image)
    poison = torch.from_numpy(image).float()
    trainer = digits_trainer(Poisoned, run=tmp_path / "run", standardize=False)
    position = ShuffledOrder(len(data), 0, 0).rows(0, len(data)).tolist().index(1000)
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit(data, epochs=1, global_batch=64, micro_batch=8)
    assert (caught.value.step, caught.value.epoch) == (position // 64 + 1, 1)
    assert caught.value.what == "loss"
    assert len(caught.value.rows) == 8
    assert 1000 in caught.value.rows
    steps = recorded(tmp_path / "run", "step")
    assert [event["step"] for event in steps] == list(range(1, caught.value.step))
    (end,) = recorded(tmp_path / "run", "end")
    assert end["rows"] == list(caught.value.rows)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 70


def test_the_run_folder_holds_what_the_readme_says(digits: Path, tmp_path: Path) -> None:
    trainer = digits_trainer(run=tmp_path / "a run", metrics=["accuracy"])
    history = trainer.fit(
        Dataset(digits), Dataset(digits, "validation"), epochs=2, global_batch=256
    )
    folder = tmp_path / "a run"
    assert sorted(path.name for path in folder.iterdir()) == [
        "environment.json",
        "events.jsonl",
        "generation",
        "job.toml",
        "lock",
        "model.safetensors",
        "status.json",
        "tensorboard",
    ]
    assert history.result == folder / "model.safetensors"
    plain = small_net()
    plain.load_state_dict(load_file(folder / "model.safetensors"))
    assert weights_digest(plain) == weights_digest(trainer.model)
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["epoch"]) == ("done", 0, 2)
    assert any((folder / "tensorboard").iterdir())


def test_a_finished_run_is_loaded_and_not_done_again(digits: Path, tmp_path: Path) -> None:
    first = digits_trainer(run=tmp_path / "run")
    history = first.fit(Dataset(digits), epochs=2, global_batch=256)
    written = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    second = digits_trainer(run=tmp_path / "run")
    again = second.fit(Dataset(digits), epochs=2, global_batch=256)
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == written
    assert again["loss"] == history["loss"]
    assert weights_digest(second.model) == weights_digest(first.model)


def test_another_jobs_folder_is_refused_with_what_differs(digits: Path, tmp_path: Path) -> None:
    digits_trainer(run=tmp_path / "run").fit(Dataset(digits), epochs=1, global_batch=256)
    other = digits_trainer(run=tmp_path / "run", clip_norm=2.0)
    with pytest.raises(ConfigError, match=r"another job:\n  clip: .*norm=None.*norm=2\.0"):
        other.fit(Dataset(digits), epochs=1, global_batch=256)
    moved = digits_trainer(run=tmp_path / "run", clip_norm=2.0, fresh=True)
    moved.fit(Dataset(digits), epochs=1, global_batch=256)
    assert (tmp_path / "run.old-1" / "model.safetensors").exists()


def test_a_module_that_is_given_ready_is_trained_as_it_is(digits: Path) -> None:
    torch.manual_seed(initialization_seed(0))
    ready = digits_trainer(small_net())
    built = digits_trainer(small_net)
    assert weights_digest(ready.model) == weights_digest(built.model)
    for trainer in (ready, built):
        trainer.fit(Dataset(digits), epochs=1, global_batch=256)
    assert weights_digest(ready.model) == weights_digest(built.model)


def test_the_order_and_dropout_change_with_the_seed(digits: Path) -> None:
    found = set()
    for seed in (0, 1):
        trainer = digits_trainer(seed=seed)
        trainer.fit(Dataset(digits), epochs=1, global_batch=256)
        found.add(weights_digest(trainer.model))
    assert len(found) == 2


def test_unused_parameters_stay_as_they_were_also_under_weight_decay(digits: Path) -> None:
    class HalfUsed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = small_net(), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.used(x)
            return outputs

    trainer = digits_trainer(
        HalfUsed, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1)
    )
    before = weights_digest(trainer.model.unused)  # type: ignore[arg-type]
    trainer.fit(Dataset(digits), epochs=1, global_batch=256)
    assert weights_digest(trainer.model.unused) == before  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clip_norm": 0.0}, ConfigError, "clip_norm is 0.0; it must be above 0"),
        ({"metrics": ["acuracy"]}, ConfigError, "did you mean accuracy"),
        ({"metrics": ["mse"]}, ConfigError, "the shapes must be the same"),
        ({"target": "lable"}, DataError, "no column 'lable'"),
        ({"optimizer": torch.optim.LBFGS}, ConfigError, "LBFGS"),
        ({"optimizer": list}, ConfigError, "return a torch.optim.Optimizer"),
        ({"loss": nn.CrossEntropyLoss(reduction="sum")}, ConfigError, "reduction='sum'"),
        ({"loss": nn.functional.cross_entropy}, ProgramError, "mean_over_samples"),
        (
            {"early_stopping": distrain.EarlyStopping("val_acuracy")},
            ConfigError,
            "early stopping watches 'val_acuracy'",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(
    digits: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    settings = {"model": small_net, "loss": nn.CrossEntropyLoss(), "optimizer": sgd}
    columns = {"inputs": "image", "target": "label", "progress": False}
    with pytest.raises(error, match=message):
        distrain.Trainer(**{**settings, **columns, **options}).fit(  # type: ignore[arg-type]
            Dataset(digits), Dataset(digits, "validation"), epochs=1, global_batch=256
        )


def test_a_batch_norm_over_one_sample_says_what_to_do() -> None:
    data = Dataset.from_arrays(
        {"x": np.ones((9, 4), np.float32), "y": np.zeros(9, np.int64)}, classes={"y": ["a", "b"]}
    )
    trainer = distrain.Trainer(
        model=lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
        loss=nn.CrossEntropyLoss(),
        optimizer=sgd,
        inputs="x",
        target="y",
        progress=False,
    )
    with pytest.raises(ProgramError, match=r'step 3, micro-batch 0 has a single sample.*"drop"'):
        trainer.fit(data, epochs=1, global_batch=4, micro_batch=4)


def test_weights_that_an_update_ruins_end_the_run_and_are_no_result(
    digits: Path, tmp_path: Path
) -> None:
    trainer = digits_trainer(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        run=tmp_path / "run",
        optimizer=lambda p: torch.optim.SGD(p, lr=1e30, weight_decay=1e20),
    )
    with pytest.raises(ProgramError, match=r"parameter 1\.weight is not finite after step 1"):
        trainer.fit(Dataset(digits), epochs=1, global_batch=1437)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_one_output_for_three_classes_has_no_accuracy(iris: Path) -> None:
    trainer = distrain.Trainer(
        model=lambda: nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)),
        loss=nn.MSELoss(),
        optimizer=sgd,
        inputs="features",
        target="label",
        metrics=["accuracy"],
        progress=False,
    )
    with pytest.raises(ConfigError, match="one output a sample, and there are 3 classes"):
        trainer.fit(Dataset(iris), epochs=1, global_batch=16)


def test_evaluating_before_training_leaves_the_model_trainable(digits: Path) -> None:
    class Caching(nn.Module):
        """Keeps what its first forward pass has made."""

        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()
            self.scale: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.scale is None:
                self.scale = torch.ones(10)
            outputs: torch.Tensor = self.net(x) * self.scale
            return outputs

    trainer = digits_trainer(Caching)
    trainer.evaluate(Dataset(digits, "validation"))
    trainer.fit(Dataset(digits), epochs=1, global_batch=256)
