"""From a job's tables to torch's objects: what names mean, and what they can't mean."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline import DataError, Dataset, augment
from distrain.config import Job
from distrain.coordinator.plateau import Plateau
from distrain.errors import ConfigError
from distrain.job_file import job_from_mapping
from distrain.learn.schedules import Constant, Cosine, Linear, Step
from distrain.run_job import (
    job_datasets,
    job_trainer,
    make_optimizer,
    make_schedule,
    make_transforms,
    run_job,
)
from distrain.schedule_config import ScheduleConfig
from distrain.update_config import OPTIMIZERS, OptimizerConfig


def job(folder: Path, **sections: Any) -> Job:
    """A small job over digits or iris, with other fields where they are given."""
    tables: dict[str, dict[str, Any]] = {
        "data": {
            "path": str(folder),
            "inputs": "image" if folder.name == "digits" else "features",
            "target": "label",
        },
        "model": {"build": "mlp"},
        "training": {"epochs": 1, "global_batch": 256},
    }
    for name, fields in sections.items():
        tables[name] = {**tables.get(name, {}), **fields}
    return job_from_mapping(tables)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("sgd", {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
        ("rmsprop", {"momentum": 0.8, "alpha": 0.7, "eps": 1e-3}),
        ("adagrad", {"eps": 1e-3}),
        ("adadelta", {"rho": 0.7, "eps": 1e-3}),
        ("adam", {"betas": (0.8, 0.9), "eps": 1e-3}),
        ("adamw", {"betas": (0.8, 0.9), "weight_decay": 0.1}),
        ("adamax", {"betas": (0.8, 0.9)}),
        ("nadam", {"betas": (0.8, 0.9)}),
    ],
)
def test_an_optimizer_is_torchs_of_that_name_with_the_fields_given(
    name: str, fields: dict[str, Any]
) -> None:
    weights = [torch.nn.Parameter(torch.zeros(2))]
    made = make_optimizer(OptimizerConfig(name=name, lr=0.5, **fields), weights)
    assert type(made).__name__.lower() == name
    assert {key: made.param_groups[0][key] for key in fields} == fields
    assert made.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fields_that_are_left_out_have_torchs_defaults(name: str) -> None:
    weights = [torch.nn.Parameter(torch.zeros(2))]
    kinds = {
        kind.__name__.lower(): kind for kind in vars(torch.optim).values() if isinstance(kind, type)
    }
    theirs = kinds[name](weights, lr=0.01).param_groups[0]
    ours = make_optimizer(OptimizerConfig(name=name), weights).param_groups[0]
    differing = {key for key in theirs if key != "params" and theirs[key] != ours[key]}
    assert differing <= {"fused"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OptimizerConfig(name="sgd", momentum=-0.5), r"momentum.*-0\.5"),
        (OptimizerConfig(name="adam", betas=(0.9, 1.5)), r"beta.*1\.5"),
        (OptimizerConfig(name="adadelta", rho=2.0), r"rho.*2\.0"),
        (OptimizerConfig(name="adam", eps=-1.0), r"eps.*-1\.0"),
    ],
)
def test_a_value_that_torchs_optimizer_refuses_is_a_bad_config(
    config: OptimizerConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"\[optimizer\] {config.name}: .*{message}"):
        make_optimizer(config, [torch.nn.Parameter(torch.zeros(2))])


@pytest.mark.parametrize(
    ("config", "schedule"),
    [
        (ScheduleConfig(), Constant()),
        (ScheduleConfig(name="linear", tau_steps=7), Linear(7)),
        (ScheduleConfig(name="linear", tau_steps=7, final_factor=0.2), Linear(7, 0.2)),
        (ScheduleConfig(name="step", every_steps=3), Step(3)),
        (ScheduleConfig(name="step", every_steps=3, decay=0.5), Step(3, 0.5)),
        (ScheduleConfig(name="cosine"), Cosine(90)),
        (ScheduleConfig(name="cosine", warmup_steps=9, final_factor=0.1), Cosine(90, 9, 0.1)),
        (ScheduleConfig(name="cosine", total_steps=50), Cosine(50)),
        (ScheduleConfig(name="plateau"), Plateau()),
        (
            ScheduleConfig(
                name="plateau",
                monitor="val_f1",
                mode="max",
                factor=0.5,
                patience=3,
                threshold=0.01,
                threshold_mode="abs",
                cooldown=2,
                min_factor=0.1,
            ),
            Plateau("val_f1", 0.5, 3, 0.01, "abs", 2, 0.1, "max"),
        ),
    ],
)
def test_a_schedule_is_that_of_the_name_over_the_runs_length(
    config: ScheduleConfig, schedule: object
) -> None:
    assert make_schedule(config, total_steps=90) == schedule


def test_a_job_may_be_measured_on_several_parts_and_go_by_any_score(iris: Path) -> None:
    history = run_job(
        job(
            iris,
            data={"validation": ["validation", "train"]},
            schedule={"name": "plateau", "monitor": "val_train_perplexity"},
            training={"epochs": 2, "global_batch": 32, "metrics": ["perplexity", "top_2"]},
        )
    )
    names = [
        f"val_{part}_{one}"
        for part in ("validation", "train")
        for one in ("loss", "perplexity", "top_2")
    ]
    assert list(history.epochs[-1].scores) == ["loss", "perplexity", "top_2", *names]
    data = job_datasets(job(iris, data={"validation": ["validation"]}))[1]
    assert isinstance(data, dict)
    assert list(data) == ["validation"]
    assert job_datasets(job(iris, data={"validation": "none"}))[1] is None


def test_transforms_are_made_in_the_order_of_their_tables() -> None:
    tables = {"flip": {"probability": 0.25}, "shift": {"pixels": 2, "fill": 1.0}, "mixup": {}}
    made = make_transforms("data.augment", tables)
    assert made == [augment.Flip(0.25), augment.Shift(2, 1.0), augment.Mixup()]
    assert make_transforms("data.augment", {"shift": {}}) == [augment.Shift()]
    assert make_transforms("data.prepare", {}) == []


def test_every_transform_has_a_name_that_a_table_can_have() -> None:
    named = {kind.__name__ for kind in augment.TRANSFORMS.values()}
    public = {name for name in augment.__all__ if name[0].isupper() and name != "TRANSFORMS"}
    bases = {"AfterScaling", "Cropping", "Draw", "InputTransform", "Samples", "Transform"}
    assert named == public - bases
    for name in ("shift", "flip", "mixup", "cutmix", "vertical_flip", "geometry"):
        (made,) = make_transforms("data.augment", {name: {}})
        assert type(made) is augment.TRANSFORMS[name]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"shfit": {}}, r"unknown transform data\.augment\.shfit: did you mean shift\?"),
        ({"blur": {}}, r"unknown transform data\.augment\.blur: known are brightness, center_crop"),
        (
            {"shift": {"pixel": 1}},
            r"unknown option data\.augment\.shift\.pixel: did you mean pixels\?",
        ),
        ({"shift": {"pixels": -1}}, r"data\.augment\.shift = .*pixels must be 0 or more"),
        ({"flip": {"probability": 2.0}}, r"data\.augment\.flip = .*must lie in \[0, 1\]"),
    ],
)
def test_a_transform_that_cannot_be_is_refused(
    tables: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_transforms("data.augment", tables)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"model": {"build": "mpl"}},
            r"model\.build is 'mpl'; did you mean mlp\?; .*PACKAGE\.MODULE:FUNCTION",
        ),
        ({"model": {"build": "resnet"}}, r"model\.build is 'resnet'; known are cnn, mlp"),
        (
            {"model": {"build": "absent_package.nets:build"}},
            r"absent_package can't be imported: start where it lies, or install it",
        ),
        (
            {"model": {"build": "distrain.learn.models:mpl"}},
            r"distrain\.learn\.models has no function 'mpl'; did you mean mlp\?",
        ),
        (
            {"model": {"build": "mlp", "options": {"hiden": [3]}}},
            r"unknown option model\.options\.hiden: did you mean hidden\?",
        ),
        ({"model": {"build": "cnn"}}, r"cnn wants images \(C, H, W\).*\(4,\)"),
        ({"model": {"build": "mlp", "options": {"hidden": 16}}}, r"^model\.options = .*hidden"),
        (
            {"model": {"build": "mlp", "options": {"activation": "swish"}}},
            "there is no activation 'swish'",
        ),
        (
            {"data": {"target": "features"}},
            r"cross_entropy needs a class label, but features is a tensor: choose loss\.name mse",
        ),
        ({"schedule": {"name": "cosine", "warmup_steps": 99}}, "warmup_steps is 99; it must lie"),
        ({"early_stopping": {"monitor": "val_f1"}}, "early stopping watches 'val_f1'"),
        (
            {"loss": {"class_weights": [1.0, 2.0]}},
            r"loss\.class_weights has 2 entries, but label has 3 classes",
        ),
    ],
)
def test_a_job_that_names_what_there_is_not_is_refused(
    iris: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_job(job(iris, **sections))


@pytest.mark.parametrize(
    ("field", "message"),
    [("inputs", "no column 'nothing'"), ("train", "no part 'nothing'"), ("path", "no data set at")],
)
def test_data_that_is_not_there_is_bad_data(iris: Path, field: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        run_job(job(iris, data={field: "nothing"}))


def test_images_too_small_for_the_cnn_are_refused(digits: Path) -> None:
    with pytest.raises(ConfigError, match="images of 8x8 can't be halved 4 times"):
        run_job(job(digits, model={"build": "cnn", "options": {"channels": [1, 1, 1, 1]}}))


def test_an_mlp_takes_images_too_and_a_job_is_run_to_its_result(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = run_job(
        job(
            digits,
            run={"dir": str(tmp_path / "run"), "seed": 3},
            model={"build": "mlp", "options": {"hidden": [32]}},
            optimizer={"name": "adam"},
            training={"epochs": 4, "metrics": ["accuracy"]},
        )
    )
    assert history["val_accuracy"][-1] > 0.75
    assert history.result == tmp_path / "run" / "model.safetensors"
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "done"
    assert status["scores"]["val_accuracy"] == history["val_accuracy"][-1]
    assert "finished after epoch 4" in capsys.readouterr().out


OWN_NETS = """
import torch

SEEN = {}

def of_all(input_shape, num_outputs, width=3):
    SEEN["all"] = (tuple(input_shape), num_outputs, width)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, num_outputs))

def of_nothing():
    return torch.nn.Linear(4, 3)

def of_anything(**options):
    SEEN["anything"] = options
    return torch.nn.Linear(4, 3)

not_a_function = 3
"""


def test_a_model_of_ones_own_is_called_with_what_it_takes(
    iris: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_nets_of_a_test.py").write_text(OWN_NETS)
    monkeypatch.syspath_prepend(tmp_path)

    def run(function: str, **options: Any) -> Any:
        build = f"own_nets_of_a_test:{function}"
        return run_job(
            job(iris, model={"build": build, "options": options}, training={"epochs": 2})
        )

    assert len(run("of_all", width=9)["loss"]) == 2
    assert len(run("of_nothing")["val_loss"]) == 2
    run("of_anything", depth=2)
    import own_nets_of_a_test  # type: ignore[import-not-found]  # noqa: PLC0415 - made above

    assert own_nets_of_a_test.SEEN == {"all": ((4,), 3, 9), "anything": {"depth": 2}}
    with pytest.raises(
        ConfigError, match=r"unknown option model\.options\.widht: did you mean wid"
    ):
        run("of_all", widht=9)
    with pytest.raises(ConfigError, match="has no function 'not_a_function'"):
        run("not_a_function")


@pytest.mark.parametrize("name", ["mse", "mae", "huber"])
def test_a_loss_of_numbers_wants_one_number_a_sample(tmp_path: Path, name: str) -> None:
    from data_pipeline.sources.bundled import make_bundled  # noqa: PLC0415

    make_bundled("diabetes", tmp_path / "diabetes")
    columns = Dataset(tmp_path / "diabetes").columns.values()
    target = next(column.name for column in columns if column.kind == "number")
    history = run_job(
        job(
            tmp_path / "diabetes",
            data={"target": target},
            loss={"name": name},
            optimizer={"name": "adam", "lr": 0.1},
            training={"epochs": 3, "metrics": ["mae"]},
        )
    )
    assert history["val_loss"][-1] < history["val_loss"][0]
    if name == "mae":
        assert history["val_mae"] == pytest.approx(history["val_loss"], rel=1e-6)


def test_class_weights_reach_the_loss(iris: Path) -> None:
    weighted = run_job(job(iris, loss={"class_weights": [100.0, 1.0, 1.0]}))
    plain = run_job(job(iris))
    assert weighted["val_loss"] != plain["val_loss"]


def test_whitening_in_a_job_is_fitted_to_the_training_part_and_serves_validation(
    digits: Path, tmp_path: Path
) -> None:
    prepare = {"zca_whitening": {"epsilon": 0.1}}
    training = {"epochs": 3, "metrics": ["accuracy"]}
    run = {"dir": str(tmp_path / "run")}
    made = job(digits, data={"prepare": prepare}, training=training, run=run, optimizer={"lr": 0.5})
    history = run_job(made)
    # Whitened for training alone, the validation part would be as good as drawn by lot.
    assert history["val_accuracy"][-1] > 0.5


def test_a_jobs_groups_and_average_are_the_trainers(iris: Path) -> None:
    fields = {
        "name": "adamw",
        "lr": 0.05,
        "decay_norms_and_biases": False,
        "groups": {"head": {"match": "3.*", "lr": 0.5, "betas": [0.5, 0.6]}},
    }
    average = {"name": "ema", "decay": 0.5}
    training = {"epochs": 3, "global_batch": 32}
    made = job(iris, optimizer=fields, average=average, training=training)
    train, _ = job_datasets(made)
    trainer = job_trainer(made, train)
    trainer.assemble(train, global_batch=32)
    assert trainer.optimizer is not None
    found = [
        (group["lr"], group["betas"], group["weight_decay"], len(group["params"]))
        for group in trainer.optimizer.param_groups
    ]
    default = torch.optim.AdamW([torch.zeros(1)]).defaults["weight_decay"]
    assert found == [
        (0.05, (0.9, 0.999), default, 1),
        (0.05, (0.9, 0.999), 0.0, 1),
        (0.5, (0.5, 0.6), default, 1),
        (0.5, (0.5, 0.6), 0.0, 1),
    ]
    plain = run_job(job(iris, optimizer=fields, training=training))
    averaged = run_job(made)
    assert averaged["loss"] == plain["loss"]
    assert averaged["val_loss"][-1] != plain["val_loss"][-1]


def test_a_jobs_group_that_matches_nothing_is_refused(iris: Path) -> None:
    groups = {"head": {"match": "haed.*", "lr": 0.5}}
    with pytest.raises(ConfigError, match=r"no parameter has a name like 'haed\.\*'"):
        run_job(job(iris, optimizer={"groups": groups}))


def test_precision_and_layout_reach_the_trainer(digits: Path, tmp_path: Path) -> None:
    for precision in ("bfloat16", "float16"):
        run = tmp_path / precision
        made = job(
            digits,
            model={
                "build": "cnn",
                "channels_last": True,
                "activation_checkpointing": ["*"],
                "options": {"channels": [4]},
            },
            training={"epochs": 1, "precision": precision},
            run={"dir": str(run)},
        )
        run_job(made)
        identity = tomllib.loads((run / "job.toml").read_text())["identity"]
        assert identity["precision"] == precision
        assert identity["channels_last"] is True
        assert identity["activation_checkpointing"] == ["*"]
        assert identity["compile"] is False
