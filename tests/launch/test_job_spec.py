"""One description of what runs on a cluster: what no cluster could take is refused at the desk."""

import argparse
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distrain.errors import ConfigError, ExitCode, UsageError
from distrain.job_file import job_from_mapping
from launch.commands.submit_parser import add_shared, described, environment, name_of
from launch.job_spec import (
    JOB_PATH,
    JobFile,
    JobSpec,
    Resources,
    Script,
    SecretFiles,
    SecretVariable,
    Volume,
    node_command,
)
from launch.number_range import NumberRange
from tests.conftest import ROOT

HOSTILE = [
    "; rm -rf /",
    "$(touch gone)",
    "`touch gone`",
    'a"b',
    "a'b",
    "a\nb",
    "a\n#SBATCH --uid=0",
    "..",
    "../../etc",
    "a" * 300,
    "ä",
    "Ω",
    "a b",
    "-a",
    "a-",
    "A",
    "0a",
    "a_b",
    "a.b",
    "a\0b",
    "",
    "{{ a }}",
    "a: b",
    "- a",
    "a\u2028b",
]

PROGRAM = JobFile(toml="")
DIGEST = "ghcr.io/lab/distrain@sha256:" + "0" * 64


def spec(**changes: Any) -> JobSpec:
    return JobSpec(**{"name": "digits", "program": PROGRAM, **changes})


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_no_host_can_have_is_refused_in_words(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        spec(name=name)
    said = str(refused.value)
    assert said.startswith("--name is ")
    assert "a-z, 0-9 and '-'" in said
    assert said.isprintable()
    assert len(said) < 250


@given(st.text(max_size=60))
@example("a" * 45)
@example("a" * 46)
@example("x-1")
def test_a_name_is_taken_if_and_only_if_it_is_a_dns_label_with_room_for_a_pods_number(
    name: str,
) -> None:
    # RFC 1035, 2.3.1: <label> ::= <letter> [ [ <ldh-str> ] <let-dig> ]
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789-")
    is_label = (
        0 < len(name) <= 45
        and set(name) <= allowed
        and name[0].isalpha()
        and not name.endswith("-")
    )
    try:
        spec(name=name)
    except UsageError:
        assert not is_label
    else:
        assert is_label


@given(st.text(max_size=80))
def test_a_files_name_gives_a_name_that_is_a_label_or_is_refused(stem: str) -> None:
    name = name_of(Path(f"{stem.replace('/', '').replace(chr(0), '')}x.toml"))
    if re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        assert spec(name=name).name == name
    else:
        with pytest.raises(UsageError):
            spec(name=name)


@pytest.mark.parametrize(
    ("file", "name"),
    [("digits.toml", "digits"), ("My job_2.toml", "my-job-2"), ("a.b.toml", "a-b")],
)
def test_a_jobs_name_is_its_files_as_a_label(file: str, name: str) -> None:
    assert name_of(Path("jobs") / file) == name


@pytest.mark.parametrize(
    "make",
    [
        lambda text: SecretVariable(variable="TOKEN", secret=text, key="key"),
        lambda text: SecretFiles(secret=text, path="/secrets"),
        lambda text: Volume(claim=text, path="/data"),
    ],
)
@pytest.mark.parametrize("name", sorted({*HOSTILE} - {"0a", "a.b"}))
def test_what_no_object_of_a_cluster_is_called_is_refused(
    make: Callable[[str], object], name: str
) -> None:
    with pytest.raises(UsageError, match="is called"):
        make(name)


@pytest.mark.parametrize("path", ["", "data", "/", "/a/../b", "/a:ro", "/a\0b", "./a"])
def test_a_volumes_path_is_absolute_and_says_where_it_is(path: str) -> None:
    with pytest.raises(UsageError):
        Volume(claim="data", path=path)


@pytest.mark.parametrize("name", sorted({*HOSTILE} - {"A", "a_b", "a" * 300}))
def test_a_variables_name_is_a_c_identifier(name: str) -> None:
    with pytest.raises(UsageError, match="environment variable"):
        spec(environment={name: "1"})


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300))
@example("; rm -rf /\n'\"$(x)`y`")
def test_a_variables_value_is_any_text_that_a_process_can_be_given(value: str) -> None:
    assert spec(environment={"VALUE": value}).environment == {"VALUE": value}


@pytest.mark.parametrize("value", ["a\0b", "a\udc80"])
def test_a_value_that_no_process_can_be_given_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="VALUE"):
        spec(environment={"VALUE": value})
    with pytest.raises(UsageError, match="argument"):
        Script(path="train.py", arguments=(value,))


@pytest.mark.parametrize(
    "name", ["RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "HOROVOD_SIZE", "TORCHELASTIC_RUN_ID"]
)
def test_variables_that_the_launcher_sets_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is set by the launcher"):
        spec(environment={name: "1"})


# Each by its own maker's published form; none was ever valid.
SECRETS = {
    "AWS": "AKIA" + "ABCDEFGHIJKLMNOP",
    "GitHub": "ghp_" + "a1" * 18,
    "GitLab": "glpat-" + "a1" * 10,
    "Hugging Face": "hf_" + "aB" * 17,
    "Slack": "xoxb-" + "1234567890-abc",
    "Google": "AIza" + "a1" * 17 + "b",
    "API key": "sk-" + "a1" * 16,
    "web token": "eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJ" + "zdWIiOiIxMjM0In0" + ".c2ln",
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "password": "s3://key:" + "pass@bucket",
    "signed address": "https://bucket.example.org/x?X-Amz-" + "Signature=0123abcd",
    "connection string": "EndpointSuffix=core.windows.net;Account" + "Key=YWJj+/==",
    "authorization": "Authorization: " + "Bearer abcdef",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_literal_that_looks_like_a_secret_is_refused_and_not_repeated(kind: str) -> None:
    value = SECRETS[kind]
    for make in (
        lambda: spec(environment={"PLAIN": f"x {value} y"}),
        lambda: Script(path="train.py", arguments=("--option", value)),
        lambda: spec(program=JobFile(toml=f'store = "{value}"')),
    ):
        with pytest.raises(UsageError) as refused:
            make()
        assert kind in str(refused.value)
        assert value not in str(refused.value)
        assert "--secret" in str(refused.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--db-password", "hunter2"),
        ("--db.password=hunter2",),
        ("train", "api_key=hunter2"),
        ("-v", "--hf-token", "hunter2"),
    ],
)
def test_an_argument_that_is_named_as_a_secret_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="an argument of the script looks like a secret") as said:
        Script(path="train.py", arguments=arguments)
    assert "hunter2" not in str(said.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--password-file", "/run/secrets/it"),
        ("--token", "/run/secrets/it"),
        ("--eos-token", "</s>", "--pad-token", "[PAD]", "--mask-token=@"),
        ("--eos-token-id", "50256", "--split-token", "|", "model.pad_token_id=50257"),
        ("--use-token", "--epochs", "3"),
        ("--use-token=true", "--tokens", "hunter2"),
        ("--token",),
        ("--run", "runs/sk-learn-baseline-experiment-3", "--model", "task-" + "9" * 30),
        ("--image", "docker://registry:5000/a@sha256:" + "0" * 64),
        ("--commit", "0123456789abcdef0123456789abcdef01234567"),
        ("--data", "https://example.org/a?version=3&signature=none"),
    ],
)
def test_an_argument_that_only_resembles_one_is_taken(arguments: tuple[str, ...]) -> None:
    assert Script(path="train.py", arguments=arguments).arguments == arguments


def test_a_script_has_a_path() -> None:
    with pytest.raises(UsageError, match="the script's path is ''; name a job file, or a script"):
        Script(path="")


def test_a_field_of_the_job_that_is_named_as_a_secret_is_refused() -> None:
    for toml in (
        'model.options.api_key = "hunter2"',
        '[[stages]]\ntoken = "hunter2"',
        'secrets = 3\npassword = ["hunter2"]',
    ):
        with pytest.raises(
            UsageError, match=r"a field of the job looks like a secret \(by its name"
        ):
            spec(program=JobFile(toml=toml))
    harmless = 'model.options = {eos_token = "</s>", max_token = 512, token = "/run/secrets/it"}'
    assert spec(program=JobFile(toml=harmless))


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "password", "HF_TOKEN", "AWS_ACCESS_KEY_ID"])
def test_a_variable_that_is_named_as_a_secret_is_refused_unless_it_is_a_path(name: str) -> None:
    with pytest.raises(UsageError, match=f"by its name, {name}"):
        spec(environment={name: "hunter2"})
    assert spec(environment={name: "/run/secrets/it", "EMPTY_TOKEN": ""}).environment


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "MAX_TOKEN", "KEYBOARD", "SECRETARY", "PASSES"]
)
def test_a_variable_that_only_sounds_like_one_is_taken(name: str) -> None:
    assert spec(environment={name: "512"}).environment == {name: "512"}
    assert spec(environment={"USE_TOKEN": "true"}).environment


def test_the_examples_hold_no_secrets() -> None:
    for path in sorted((ROOT / "examples").glob("*.toml")):
        assert spec(program=JobFile(toml=path.read_text()))


@pytest.mark.parametrize(
    "image", [DIGEST, "distrain", "distrain:1", "localhost:5000/a/b:v1.2", "a/b@sha256:" + "f" * 64]
)
def test_images_that_are_taken(image: str) -> None:
    assert spec(image=image).has_digest == ("@" in image)


@pytest.mark.parametrize(
    "image", ["", "A/b", "a b", "a:", "a@sha256:12", "a\n", "a;b", "-a", "a//b", "$(a)", "a" * 300]
)
def test_images_that_are_none(image: str) -> None:
    with pytest.raises(UsageError, match="--image is"):
        spec(image=image)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"workers": 0}, "--workers is 0; give 1 or more"),
        ({"max_restarts": -1}, "--max-restarts is -1"),
        ({"node_retries": -1}, "--node-retries is -1"),
        ({"nodes": NumberRange(1, 10_000)}, "--nodes is 1:10000; 9,999 at most"),
        ({"grace_s": 0.0}, "grace time is 0 s"),
        (
            {"volumes": (Volume(claim="a", path="/d"), Volume(claim="b", path="/d"))},
            "the path /d is given twice",
        ),
        (
            {
                "environment": {"A": "1"},
                "secret_variables": (SecretVariable(variable="A", secret="s", key="k"),),
            },
            "the variable A is given twice",
        ),
    ],
)
def test_numbers_and_doubles_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        spec(**changes)


@pytest.mark.parametrize("amount", ["", "4 Gi", "-1", "1e3", "4gb", "4\n", "$(x)", "9" * 300 + "x"])
def test_amounts_are_as_kubernetes_writes_them(amount: str) -> None:
    for option in ("cpus", "memory", "shared_memory"):
        with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} is"):
            Resources(**{option: amount})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="size"):
        Volume(claim=None, path="/cache", size=amount)
    assert Resources(cpus="500m", memory="1.5Gi", shared_memory="2G")


def test_thousandths_of_a_byte_are_no_size_and_bytes_no_cores() -> None:
    with pytest.raises(UsageError, match=r"--memory is '500m'; give bytes, such as 16Gi or 500M"):
        Resources(memory="500m")
    with pytest.raises(UsageError, match="the size of /cache is '500m'"):
        Volume(claim=None, path="/cache", size="500m")
    with pytest.raises(UsageError, match="--cpus is '4Gi'; give cores"):
        Resources(cpus="4Gi")


@pytest.mark.parametrize("text", ["", "a", "1:b", "-1", "9" * 5_000, "; rm -rf /"])
def test_a_number_of_machines_is_one_or_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"--nodes is .*; give a number, or MIN:MAX") as refused:
        NumberRange.parse("--nodes", text)
    assert len(str(refused.value)) < 200


def test_exit_codes_that_another_start_does_not_mend_are_fatal() -> None:
    """The README's table: 69 and 75 are worth another try."""
    assert spec().fatal_codes == (64, 65, 70, 74, 78)
    assert spec(retried=frozenset({69, 75, 74})).fatal_codes == (64, 65, 70, 78)
    assert ExitCode.CTRL_C not in spec().fatal_codes


def test_a_nodes_command_is_a_list_of_words_that_no_shell_reads() -> None:
    several = spec(nodes=NumberRange(2, 4), workers=8, max_restarts=3)
    assert node_command(several, node_rank="$(K)", host="digits-0.digits") == [
        *("distrain", "train", JOB_PATH, "--nodes", "2:4", "--node-rank", "$(K)"),
        *("--rendezvous", "digits-0.digits:29400", "--workers", "8", "--max-restarts", "3"),
    ]
    hostile = "; rm -rf / '\"\n"
    script = spec(program=Script(path="train.py", arguments=("--lr", hostile)))
    assert node_command(script, node_rank="0", host="h") == [
        *("distrain", "launch", "--workers", "1", "--max-restarts", "10"),
        *("--", "train.py", "--lr", hostile),
    ]


def parsed(
    *arguments: str, overrides: tuple[str, ...] = (), script: tuple[str, ...] = ()
) -> JobSpec:
    parser = argparse.ArgumentParser()
    add_shared(parser, "kubernetes")
    return described(parser.parse_args(arguments), overrides, script)


DIGITS = str(ROOT / "examples/digits.toml")


def test_a_job_file_is_sent_along_as_resolved() -> None:
    found = parsed(DIGITS, "--nodes", "1:2", "--gpus", "4", overrides=("--optimizer.lr", "0.05"))
    assert (found.name, found.nodes, found.workers) == ("digits", NumberRange(1, 2), 4)
    assert isinstance(found.program, JobFile)
    job = job_from_mapping(tomllib.loads(found.program.toml))
    assert (job.optimizer.lr, job.run.dir) == (0.05, "runs/digits")
    assert found.grace_s == job.run.grace_s


def test_more_workers_than_micro_batches_are_refused_at_the_desk() -> None:
    with pytest.raises(ConfigError, match="16 workers, but a global batch of 256 has only 8"):
        parsed(DIGITS, "--nodes", "2", "--workers", "8")
    with pytest.raises(ConfigError, match="4 to 16 workers"):
        parsed(DIGITS, "--nodes", "1:4", "--workers", "4")


@pytest.mark.parametrize("text", ["runs/a\0b", "runs/a\udc80"])
def test_what_no_file_can_hold_is_not_set_in_a_job(text: str) -> None:
    with pytest.raises(UsageError, match=r"set of the job is .*; no NUL, and text in UTF-8"):
        parsed(DIGITS, overrides=("--run.dir", text))


def test_a_scripts_arguments_stand_behind_a_double_dash() -> None:
    found = parsed("train.py", script=("--lr", "1"))
    assert found.program == Script(path="train.py", arguments=("--lr", "1"))
    with pytest.raises(UsageError, match=r"unknown option --lr.*stands behind --"):
        parsed("train.py", overrides=("--lr", "1"))
    with pytest.raises(UsageError, match="is a job file, and '--lr' behind -- is for scripts"):
        parsed(DIGITS, script=("--lr",))


def test_variables_are_given_by_name_and_value() -> None:
    assert environment(["A=1", "B=a=b", "C="]) == {"A": "1", "B": "a=b", "C": ""}
    for given_, said in ((["A"], "give NAME=VALUE"), (["A=1", "A=2"], "gives A twice")):
        with pytest.raises(UsageError, match=said):
            environment(given_)
