"""Whatever a person writes comes back from YAML and kubelet as it was, or is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from distrain.errors import UsageError
from launch.commands.submit_parser import name_of
from launch.job_spec import JobFile, Volume
from launch.kubernetes.manifests import manifests
from launch.kubernetes.options import FORMS, KubernetesOptions, Toleration
from launch.kubernetes.pods import literal
from launch.kubernetes.yaml_text import as_yaml
from tests.rendered import container, job_spec, rendered, script_spec

HOSTILE = [
    "; rm -rf /",
    "$(X)",
    "$$(X)",
    "$(DISTRAIN_NODE_RANK)",
    "$",
    "`id`",
    "'",
    '"',
    "\\",
    "a\nb",
    "\n",
    "--- \n",
    "\t",
    "../../etc/passwd",
    "a" * 300,
    "日本語 ü \U0001f600",
    "\x85\u2028\ufeff",
    "\x07",
    *("yes", "y", "no", "on", "null", "~", "0x1", "0o7", "010", "1e3", "1_000", "12:30:45", ".inf"),
    *(
        "2026-11-23",
        ": ",
        "- a",
        "# c",
        "{a: b}",
        "[a]",
        "&a",
        "*a",
        "!!python/none",
        "%a",
        "|",
        ">",
    ),
    *("", " ", " a ", "=", "<<"),
]
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=60))


def passed_on(text: str) -> bool:
    """Whether a process can be given it at all."""
    return "\0" not in text and not any(0xD800 <= ord(sign) < 0xE000 for sign in text)


def expanded(text: str, variables: dict[str, str]) -> str:
    """What the kubelet makes of a text: k8s.io/kubernetes/third_party/forked/golang/expansion.

    `$$` is a dollar sign, `$(NAME)` a variable's value if there is one, all else stays.
    """
    made, at = "", 0
    while at < len(text):
        if text[at] != "$" or at + 1 == len(text):
            made, at = made + text[at], at + 1
        elif text[at + 1] == "$":
            made, at = made + "$", at + 2
        elif text[at + 1] == "(" and ")" in text[at:]:
            end = text.index(")", at)
            name = text[at + 2 : end]
            made, at = made + variables.get(name, f"$({name})"), end + 1
        else:
            made, at = made + text[at : at + 2], at + 2
    return made


def arrived(node: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """A container's arguments and variables, as its process has them."""
    variables: dict[str, str] = {"X": "expanded"}
    for each in node["env"]:
        source = each.get("valueFrom")
        value = "1" if source else expanded(each["value"], variables)
        variables[each["name"]] = value
    words = [*node["command"], *node["args"]]
    return [expanded(word, variables) for word in words], variables


def read_back(given_manifests: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = list(yaml.safe_load_all(as_yaml(list(given_manifests.values()))))
    assert found == list(given_manifests.values())
    return {manifest["kind"]: manifest for manifest in found}


@given(st.text())
@example("$(X)")
@example("a$")
def test_a_literal_text_is_expanded_to_itself(text: str) -> None:
    assert expanded(literal(text), {"X": "expanded", "": "empty"}) == text


@given(st.lists(TEXTS, max_size=4), TEXTS)
def test_arguments_and_variables_arrive_unharmed(arguments: list[str], value: str) -> None:
    try:
        spec = script_spec(*arguments, path="a.py", environment={"ASKED": value})
    except UsageError:
        assert not all(map(passed_on, (*arguments, value)))
        return
    words, variables = arrived(container(read_back(rendered("job", spec))))
    assert words[words.index("--") :] == ["--", "a.py", *arguments]
    assert words[words.index("--node-rank") + 1] == "1"
    assert variables["ASKED"] == value


@pytest.mark.parametrize("text", [text for text in HOSTILE if text])
def test_no_hostile_text_is_lost_in_yaml(text: str) -> None:
    words, _ = arrived(container(read_back(rendered("jobset", script_spec(text, path=text)))))
    assert words[-2:] == [text, text]


@given(TEXTS)
def test_a_job_file_is_mounted_as_it_is(text: str) -> None:
    try:
        spec = job_spec("1", program=JobFile(toml=text))
    except UsageError:
        return
    if not passed_on(text):
        return
    assert read_back(rendered("job", spec))["ConfigMap"]["data"] == {"job.toml": text}


# What readers by YAML 1.1 and 1.2, go-yaml's and PyYAML's, take for a string without quotes.
BARE = re.compile(r"(/|--)?[A-Za-z][-A-Za-z0-9._/]+")
WORDS = {"yes", "no", "on", "off", "true", "false", "null"}


@given(TEXTS)
def test_what_any_reader_might_mistake_is_quoted(text: str) -> None:
    (line, *_) = as_yaml([{"key": text}]).removeprefix("---\nkey: ").splitlines() or [""]
    if not line.startswith(("'", '"', "|")):
        assert BARE.fullmatch(line)
        assert line.lower() not in WORDS


@given(TEXTS)
@example("digits\n")
@example("-a")
@example("A")
@example("a" * 46)
def test_a_name_is_a_dns_label_or_refused(text: str) -> None:
    try:
        spec = job_spec(name=text)
    except UsageError:
        return
    assert re.fullmatch("[a-z]([-a-z0-9]{0,43}[a-z0-9])?", text)
    for form in FORMS:
        assert rendered(form, spec)["NetworkPolicy"]["metadata"]["name"] == text


@given(TEXTS)
def test_a_files_name_becomes_a_jobs_or_is_refused(text: str) -> None:
    try:
        job_spec(name=name_of(Path(text)))
    except (UsageError, ValueError):
        return
    assert re.fullmatch("[a-z]([-a-z0-9]{0,43}[a-z0-9])?", name_of(Path(text)))


@given(TEXTS, TEXTS)
@example("team", "vision\n")
@example("team\n", "vision")
@example("a" * 254 + "/b", "c")
def test_a_label_is_one_or_refused(key: str, value: str) -> None:
    try:
        found = rendered("job", labels={key: value})
    except UsageError:
        return
    name = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
    assert re.fullmatch(rf"([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{name}", key)
    assert re.fullmatch(f"({name})?", value)
    assert read_back(found)["Job"]["metadata"]["labels"][key] == value


@given(TEXTS, TEXTS)
@example("a/b\n", "c")
def test_an_annotation_has_a_plain_name_and_any_text(key: str, value: str) -> None:
    try:
        found = read_back(rendered("job", annotations={key: value}))
    except UsageError:
        return
    assert re.fullmatch(r"[-._/A-Za-z0-9]+", key)
    assert found["Job"]["spec"]["template"]["metadata"]["annotations"] == {key: value}


@given(TEXTS)
@example("a\n")
def test_other_names_are_refused_or_plain(text: str) -> None:
    given_options: tuple[dict[str, Any], ...] = (
        {"namespace": text},
        {"queue": text},
        {"priority_class": text},
        {"scheduler": text},
        {"runtime_class": text},
        {"service_account": text},
        {"pull_secrets": (text,)},
        {"interface": text},
        {"rdma": text},
    )
    for options in given_options:
        try:
            manifests(job_spec(), KubernetesOptions(**options))
        except UsageError:
            continue
        assert re.fullmatch(r"[-._/A-Za-z0-9]+", text)


@given(TEXTS)
@example("a=b:NoSchedule\n")
def test_a_toleration_is_one_or_refused(text: str) -> None:
    try:
        found = Toleration.parse(text)
    except UsageError:
        return
    assert re.fullmatch(r"[-._/A-Za-z0-9]+", found.key)


@given(TEXTS)
def test_a_path_on_a_volume_is_absolute_or_refused(text: str) -> None:
    for path in (text, f"/{text}"):
        try:
            volume = Volume(claim="runs", path=path)
        except UsageError:
            continue
        assert volume.path.startswith("/")
        assert ".." not in volume.path.split("/")
        assert ":" not in volume.path
