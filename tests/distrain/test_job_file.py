"""Job files and command lines: whatever is wrong is named with its path, and what is near to it."""

import tomllib
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrain.config import (
    PRECISIONS,
    DataConfig,
    EarlyStoppingConfig,
    Job,
    LossConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)
from distrain.errors import ConfigError, UsageError
from distrain.job_file import job_from_mapping, job_tables, job_toml, override, read_job
from distrain.metric_names import METRICS
from distrain.schedule_config import ScheduleConfig
from distrain.update_config import AverageConfig, OptimizerConfig, OptimizerGroupConfig

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))

SMALLEST: dict[str, Any] = {
    "data": {"path": "shards/digits", "inputs": "image", "target": "label"},
    "model": {"build": "cnn"},
}


def with_fields(**sections: dict[str, Any]) -> dict[str, Any]:
    return {
        name: SMALLEST.get(name, {}) | sections.get(name, {}) for name in {*SMALLEST, *sections}
    }


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (SMALLEST | {"optimiser": {}}, r"unknown field optimiser: did you mean optimizer\?"),
        (SMALLEST | {"zzz": 1}, "unknown field zzz: known are average, bad_numbers, checkpoint"),
        (with_fields(data={"input": "x"}), r"unknown field data\.input: did you mean inputs\?"),
        (with_fields(model={"built": "x"}), r"unknown field model\.built: did you mean build\?"),
        (
            with_fields(optimizer={"groups": {"head": {"mach": "head.*"}}}),
            r"unknown field optimizer\.groups\.head\.mach: did you mean match\?",
        ),
        (with_fields(average={"decai": 1}), r"unknown field average\.decai: did you mean decay\?"),
        (with_fields(run={"sed": 1}), r"unknown field run\.sed: did you mean seed"),
        (with_fields(loss={"nam": 1}), r"unknown field loss\.nam: did you mean name\?"),
        (
            with_fields(optimizer={"learning_rate": 1}),
            r"unknown field optimizer\.learning_rate: known are alpha, betas, decay_norms",
        ),
        (
            with_fields(schedule={"warmup": 1}),
            r"unknown field schedule\.warmup: did you mean warmup_steps\?",
        ),
        (
            with_fields(training={"globalbatch": 1}),
            r"unknown field training\.globalbatch: did you mean global_batch or ",
        ),
        (
            with_fields(early_stopping={"patient": 1}),
            r"unknown field early_stopping\.patient: did you mean patience\?",
        ),
        (
            with_fields(training={"precision": "bfloat"}),
            r"training\.precision is 'bfloat': did you mean bfloat16 ",
        ),
    ],
)
def test_an_unknown_field_is_refused_with_its_path_and_the_near_names(
    raw: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        job_from_mapping(raw)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (with_fields(training={"epochs": "ten"}), "training.epochs"),
        (with_fields(training={"epochs": 1.5}), "training.epochs"),
        (with_fields(training={"epochs": True}), "training.epochs"),
        (with_fields(training={"metrics": "f1"}), "training.metrics"),
        (with_fields(training={"metrics": ["f1", 2]}), "training.metrics"),
        (with_fields(training={"last_batch": "pad"}), "training.last_batch"),
        (with_fields(model={"build": "cnn", "compile": "max-autotune"}), "model.compile"),
        (
            with_fields(model={"build": "cnn", "activation_checkpointing": "blocks.*"}),
            "model.activation_checkpointing",
        ),
        (with_fields(optimizer={"lr": "0.1"}), "optimizer.lr"),
        (with_fields(optimizer={"name": "adam", "betas": [0.9]}), "optimizer.betas"),
        (with_fields(run={"deterministic": 1}), "run.deterministic"),
        (with_fields(run={"seed": 1.0}), "run.seed"),
        (with_fields(data={"augment": {"shift": 2}}), "data.augment"),
        (with_fields(data={"path": 3}), "data.path"),
        (with_fields(early_stopping={"mode": "least"}), "early_stopping.mode"),
        (SMALLEST | {"model": 3}, "model"),
    ],
)
def test_a_wrong_type_is_refused_with_its_path(raw: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError, match=rf", at `{path}(\[.*\])?`$|^{path} is .*: known are "):
        job_from_mapping(raw)


@pytest.mark.parametrize(("section", "field"), [("data", "inputs"), ("model", "build")])
def test_a_field_that_is_missing_is_named(section: str, field: str) -> None:
    tables = with_fields()
    del tables[section][field]
    with pytest.raises(ConfigError, match=rf"missing required field `{field}`, at `{section}`"):
        job_from_mapping(tables)


def test_a_section_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="missing required field `model`"):
        job_from_mapping({"data": SMALLEST["data"]})


def test_a_value_that_cannot_be_is_refused_from_a_file_as_from_a_constructor() -> None:
    with pytest.raises(ConfigError, match=r"training\.epochs is 0; it must be 1 or more"):
        job_from_mapping(with_fields(training={"epochs": 0}))


def test_what_a_job_leaves_out_has_its_default() -> None:
    job = job_from_mapping(SMALLEST)
    assert (job.training, job.optimizer, job.run) == (
        TrainingConfig(),
        OptimizerConfig(),
        RunConfig(),
    )
    assert job.data.validation == "validation"


def write(folder: Path, text: str, name: str = "digits.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


JOB_TEXT = """
[data]
path = "shards/digits"
inputs = "image"
target = "label"

[model]
build = "cnn"
"""


def test_a_run_is_named_after_its_job_file_unless_it_names_itself(tmp_path: Path) -> None:
    assert read_job(write(tmp_path, JOB_TEXT)).run.dir == "runs/digits"
    named = JOB_TEXT + '[run]\ndir = "elsewhere"\n'
    assert read_job(write(tmp_path, named)).run.dir == "elsewhere"


def test_the_identity_that_a_run_writes_is_not_read_as_a_setting(tmp_path: Path) -> None:
    plain = read_job(write(tmp_path, JOB_TEXT))
    assert read_job(write(tmp_path, JOB_TEXT + '[identity]\nmodel = "abc"\n')) == plain


@pytest.mark.parametrize("name", ["absent.toml", "folder"])
def test_a_file_that_is_not_there_is_a_wrong_command_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=f"there is no job file .*{name}: name a TOML file"):
        read_job(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("\x1b[31mred.toml", r"there is no job file '.*\\x1b\[31mred.toml'"),
        ("a\0b.toml", r"there is no job file '.*a\\x00b.toml'"),
        ("a" * 300 + ".toml", r"the job file .* can't be read: File name too long"),
    ],
)
def test_a_hostile_name_of_a_file_is_told_in_plain_signs(
    tmp_path: Path, name: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        read_job(tmp_path / name)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("content", [b"[data\n", b"a = \n", b"a = 1\na = 2\n", b"\xff\xfe"])
def test_what_is_no_toml_is_refused_with_the_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML: "):
        read_job(path)


def test_an_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, JOB_TEXT + "[training]\nepoch = 3\n")
    with pytest.raises(ConfigError, match=r"digits\.toml: unknown field training\.epoch: did you"):
        read_job(path)


def test_there_are_examples_and_all_of_them_load() -> None:
    assert {path.stem for path in EXAMPLES} >= {"digits", "iris"}
    for path in EXAMPLES:
        assert read_job(path).run.dir == f"runs/{path.stem}"


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.floats(1e-6, 1e6)
OPTIONS = st.dictionaries(
    TEXT,
    st.one_of(
        st.booleans(), st.integers(-(2**63), 2**63 - 1), NUMBERS, TEXT, st.lists(st.integers(0, 9))
    ),
    max_size=4,
)
OPTIMIZER_CONFIGS = st.one_of(
    st.builds(
        OptimizerConfig,
        lr=NUMBERS,
        weight_decay=st.none() | NUMBERS,
        momentum=st.just(0.9),
        nesterov=st.none() | st.booleans(),
        decay_norms_and_biases=st.booleans(),
        groups=st.dictionaries(
            TEXT, st.builds(OptimizerGroupConfig, match=TEXT, lr=st.none() | NUMBERS), max_size=3
        ),
    ),
    st.builds(
        OptimizerConfig,
        name=st.sampled_from(("adam", "adamw", "adamax", "nadam")),
        betas=st.none() | st.tuples(NUMBERS, NUMBERS),
        eps=st.none() | NUMBERS,
    ),
)
SCHEDULE_CONFIGS = st.one_of(
    st.builds(ScheduleConfig),
    st.builds(ScheduleConfig, name=st.just("linear"), tau_steps=st.integers(1, 99)),
    st.builds(
        ScheduleConfig, name=st.just("cosine"), final_factor=st.floats(0, 1), warmup_steps=st.none()
    ),
)
JOBS = st.builds(
    Job,
    data=st.builds(
        DataConfig,
        path=TEXT,
        inputs=TEXT,
        target=TEXT,
        validation=TEXT,
        standardize=st.booleans(),
        augment=st.dictionaries(TEXT, OPTIONS, max_size=3),
    ),
    model=st.builds(
        ModelConfig,
        build=TEXT,
        options=OPTIONS,
        activation_checkpointing=st.lists(TEXT, max_size=2).map(tuple),
        compile=st.booleans(),
        channels_last=st.booleans(),
    ),
    run=st.builds(RunConfig, dir=st.none() | TEXT, seed=st.integers(-(2**63), 2**63 - 1)),
    loss=st.builds(LossConfig, class_weights=st.none() | st.lists(NUMBERS, min_size=1).map(tuple)),
    optimizer=OPTIMIZER_CONFIGS,
    schedule=SCHEDULE_CONFIGS,
    average=st.sampled_from(
        (
            AverageConfig(),
            AverageConfig(name="ema", decay=0.5, start_step=3),
            AverageConfig(name="swa", start_epoch=2, every_steps=7),
        )
    ),
    training=st.builds(
        TrainingConfig,
        epochs=st.integers(1, 99),
        global_batch=st.just(96),
        micro_batch=st.sampled_from((None, 1, 8, 96)),
        last_batch=st.sampled_from(("keep", "drop")),
        clip_norm=st.none() | NUMBERS,
        precision=st.sampled_from(PRECISIONS),
        metrics=st.lists(st.sampled_from(METRICS), max_size=3).map(tuple),
    ),
    early_stopping=st.builds(
        EarlyStoppingConfig,
        monitor=st.none() | TEXT,
        patience=st.integers(0, 9),
        mode=st.sampled_from(("auto", "min", "max")),
    ),
)


@given(job=JOBS)
@settings(deadline=None, max_examples=60)
def test_a_resolved_job_comes_back_from_its_toml_as_it_was(job: Job) -> None:
    assert job_from_mapping(tomllib.loads(job_toml(job_tables(job)).decode())) == job


def overridden(*arguments: str, path: Path = EXAMPLES[0]) -> Job:
    return override(read_job(path), arguments, prog="distrain train")


DIGITS = next(path for path in EXAMPLES if path.stem == "digits")


@pytest.mark.parametrize(
    ("arguments", "path", "value"),
    [
        (["--optimizer.lr", "0.05"], "optimizer.lr", 0.05),
        (["--optimizer.lr=5e-2"], "optimizer.lr", 0.05),
        (["--training.epochs", "3"], "training.epochs", 3),
        (["--training.micro-batch", "16"], "training.micro_batch", 16),
        (["--training.micro_batch", "16"], "training.micro_batch", 16),
        (["--training.metrics", "accuracy", "f1"], "training.metrics", ("accuracy", "f1")),
        (["--training.metrics"], "training.metrics", ()),
        (["--training.last-batch", "drop"], "training.last_batch", "drop"),
        (["--training.precision", "bfloat16"], "training.precision", "bfloat16"),
        (["--model.compile"], "model.compile", True),
        (
            ["--model.activation-checkpointing", "blocks.*"],
            "model.activation_checkpointing",
            ("blocks.*",),
        ),
        (["--training.clip-norm", "None"], "training.clip_norm", None),
        (["--data.augment.shift.pixels", "2"], "data.augment.shift.pixels", 2),
        (["--data.no-standardize"], "data.standardize", False),
        (["--data.validation", "None"], "data.validation", None),
        (["--data.validation", "test"], "data.validation", "test"),
        (["--data.validation", "a", "b"], "data.validation", ("a", "b")),
        (["--model.options.dropout", "0.1"], "model.options.dropout", 0.1),
        (["--model.options.channels", "8", "16"], "model.options.channels", [8, 16]),
        (["--model.build", "mlp"], "model.build", "mlp"),
        (["--run.dir", "a folder/x"], "run.dir", "a folder/x"),
        (["--run.seed", "7"], "run.seed", 7),
        (["--run.no-deterministic"], "run.deterministic", False),
        (["--early-stopping.monitor", "val_f1"], "early_stopping.monitor", "val_f1"),
        (["--loss.label-smoothing", "0.1"], "loss.label_smoothing", 0.1),
    ],
)
def test_a_field_is_overridden_from_the_command_line_and_no_other_moves(
    arguments: Sequence[str], path: str, value: object
) -> None:
    before = job_tables(read_job(DIGITS))
    job = overridden(*arguments, path=DIGITS)
    found: Any = job
    for name in path.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value
    assert type(found) is type(value)
    after = job_tables(job)
    for tables in (before, after):
        without(tables, path)
    assert after == before


def test_several_overrides_hold_together() -> None:
    job = overridden(
        *(
            "--optimizer.name",
            "adam",
            "--optimizer.momentum",
            "None",
            "--optimizer.nesterov",
            "None",
        ),
        *("--optimizer.betas", "0.8", "0.99"),
        path=DIGITS,
    )
    assert job.optimizer.name == "adam"
    assert job.optimizer.betas == (0.8, 0.99)


def without(tables: dict[str, Any], path: str) -> None:
    *sections, last = path.split(".")
    reduce(lambda table, name: table[name], sections, tables).pop(last, None)


def test_without_overrides_the_job_is_the_files() -> None:
    assert overridden(path=DIGITS) == read_job(DIGITS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--optimizer.lrr", "0.1"], "--optimizer.lr"),
        (["--optimizer.lr", "fast"], "fast"),
        (["--training.epochs", "1.5"], "1.5"),
        (["--training.last-batch", "pad"], "pad"),
        (["--training.epochs"], "--training.epochs"),
        (["stray"], "stray"),
    ],
)
def test_arguments_that_do_not_fit_are_a_wrong_command_line(
    arguments: Sequence[str], said: str
) -> None:
    with pytest.raises(UsageError, match="the arguments do not fit the job:") as caught:
        overridden(*arguments, path=DIGITS)
    assert said in str(caught.value)


def test_an_override_that_cannot_be_is_refused_as_in_a_file() -> None:
    with pytest.raises(ConfigError, match="a micro-batch of 30 does not divide"):
        overridden("--training.micro-batch", "30", path=DIGITS)


def test_help_lists_the_fields_with_their_help_texts_and_ends_well(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        overridden("--help", path=DIGITS)
    assert caught.value.code in (0, None)
    shown = capsys.readouterr().out
    assert "--optimizer.lr" in shown
    assert "Learning rate, before the schedule's factor" in shown


def test_a_none_that_is_no_default_survives_the_file(tmp_path: Path) -> None:
    (tmp_path / "j.toml").write_bytes(job_toml(SMALLEST))
    arguments = ["--data.validation", "None", "--checkpoint.every-seconds", "None"]
    job = override(read_job(tmp_path / "j.toml"), arguments, prog="distrain train")
    assert job.data.validation is None
    (tmp_path / "resolved.toml").write_bytes(job_toml(job_tables(job)))
    assert read_job(tmp_path / "resolved.toml") == job
    assert 'validation = "none"' in (tmp_path / "resolved.toml").read_text()


def test_a_word_that_a_field_does_not_take_is_told_the_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"data\.sampling is 'bootstap': did you mean bootstrap"):
        job_from_mapping(with_fields(data={"sampling": "bootstap"}))


def test_a_groups_field_is_overridden_from_the_command_line(tmp_path: Path) -> None:
    groups = {"head": {"match": "head.*", "lr": 0.5, "weight_decay": "none"}, "b": {"match": "b*"}}
    (tmp_path / "j.toml").write_bytes(job_toml(with_fields(optimizer={"groups": groups})))
    arguments = ("--optimizer.groups.head.lr", "0.25", "--optimizer.no-decay-norms-and-biases")
    job = overridden(*arguments, path=tmp_path / "j.toml")
    assert list(job.optimizer.groups) == ["head", "b"], "their order says which counts"
    assert job.optimizer.groups["head"] == OptimizerGroupConfig(match="head.*", lr=0.25)
    assert not job.optimizer.decay_norms_and_biases
