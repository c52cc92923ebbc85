"""Every rule finds the manifest that breaks it: one thing is changed, and that is what is said."""

from collections.abc import Callable
from typing import Any

import pytest

from distrain.errors import UsageError
from launch.job_spec import JobFile
from launch.kubernetes.options import FORMS, Form
from launch.kubernetes.rules import broken
from tests.manifest_checks import check
from tests.rendered import DIGITS, job_body, job_spec, rendered

Change = Callable[[dict[str, Any]], object]


def set_to(value: Any, *path: str | int) -> Change:
    """Puts a value where the path leads to."""

    def change(found: Any) -> None:
        for part in path[:-1]:
            found = found[part]
        found[path[-1]] = value

    return change


def without(*path: str | int) -> Change:
    """Takes out what is there."""

    def change(found: Any) -> None:
        for part in path[:-1]:
            found = found[part]
        del found[path[-1]]

    return change


RULES = ("podFailurePolicy", "rules")
POD = ("template", "spec")
NODE = (*POD, "containers", 0)

IN_A_JOB: dict[str, tuple[Change, str]] = {
    "restart-on-failure": (
        set_to("OnFailure", *POD, "restartPolicy"),
        "restartPolicy: only Never goes with podFailurePolicy",
    ),
    "restart-always": (set_to("Always", *POD, "restartPolicy"), "a Job's pods have Never or"),
    "restart-unsaid": (without(*POD, "restartPolicy"), "a Job's pods have Never or OnFailure"),
    "replaced-early": (
        set_to("TerminatingOrFailed", "podReplacementPolicy"),
        "podReplacementPolicy: only Failed goes with podFailurePolicy",
    ),
    "negative-limit": (set_to(-1, "backoffLimitPerIndex"), "backoffLimitPerIndex is below 0"),
    "no-limit-for-each": (
        without("backoffLimitPerIndex"),
        "maxFailedIndexes: only with backoffLimitPerIndex",
    ),
    "limit-not-indexed": (
        set_to("NonIndexed", "completionMode"),
        "backoffLimitPerIndex: only where completionMode is Indexed",
    ),
    "count-beyond": (
        set_to(3, "successPolicy", "rules", 0, "succeededCount"),
        "succeededCount is 3, of 2 indexes",
    ),
    "codes-in-disorder": (
        set_to([78, 64], *RULES, 1, "onExitCodes", "values"),
        "the exit codes are [78, 64]",
    ),
    "code-twice": (set_to([64, 64], *RULES, 1, "onExitCodes", "values"), "each once, in order"),
    "no-codes": (set_to([], *RULES, 1, "onExitCodes", "values"), "the exit codes are []"),
    "success-as-failure": (
        set_to([0, 64], *RULES, 1, "onExitCodes", "values"),
        "0 is no failure",
    ),
    "another-container": (
        set_to("trainer", *RULES, 1, "onExitCodes", "containerName"),
        "there is no container trainer",
    ),
    "codes-and-conditions": (
        set_to({"operator": "In", "values": [1]}, *RULES, 0, "onExitCodes"),
        "a rule has either exit codes or conditions",
    ),
    "neither": (without(*RULES, 0, "onPodConditions"), "a rule has either exit codes or"),
    "unknown-action": (set_to("Retry", *RULES, 0, "action"), "the action is Retry"),
    "fail-index": (
        lambda body: [
            set_to("FailIndex", *RULES, 1, "action")(body),
            without("backoffLimitPerIndex")(body),
        ],
        "podFailurePolicy: FailIndex needs backoffLimitPerIndex",
    ),
    "too-many-rules": (
        lambda body: body["podFailurePolicy"]["rules"].extend(
            body["podFailurePolicy"]["rules"][:1] * 20
        ),
        "podFailurePolicy has 23 rules; 20 at most",
    ),
    "not-indexed": (
        set_to("NonIndexed", "completionMode"),
        "successPolicy: only where completionMode is Indexed",
    ),
    "no-completions": (without("completions"), "completions: needed"),
    "indexes-beyond": (
        set_to("2", "successPolicy", "rules", 0, "succeededIndexes"),
        "succeededIndexes is 2, and the last index 1",
    ),
    "indexes-unread": (
        set_to("first", "successPolicy", "rules", 0, "succeededIndexes"),
        "succeededIndexes is first: numbers and ranges",
    ),
    "no-grace": (set_to(0, *POD, "terminationGracePeriodSeconds"), "leaves no time to save"),
    "volume-twice": (
        lambda body: body["template"]["spec"]["volumes"].append({"name": "job", "emptyDir": {}}),
        "the volume job is there twice",
    ),
    "path-twice": (
        set_to("/tmp/", *NODE, "volumeMounts", 0, "mountPath"),
        "the path /tmp is there twice",
    ),
    "volume-missing": (
        set_to("shards", *NODE, "volumeMounts", 0, "name"),
        "is of a volume shards that is not there",
    ),
    "asks-above-limit": (
        set_to({"requests": {"cpu": "2"}, "limits": {"cpu": "1500m"}}, *NODE, "resources"),
        "cpu: 2 is asked for, above the limit of 1500m",
    ),
    "part-of-a-device": (
        set_to({"limits": {"nvidia.com/gpu": "500m"}}, *NODE, "resources"),
        "nvidia.com/gpu is a device: a whole number",
    ),
    "device-without-limit": (
        set_to({"requests": {"nvidia.com/gpu": "1"}}, *NODE, "resources"),
        "nvidia.com/gpu is a device",
    ),
    "may-be-root": (
        set_to(False, *POD, "securityContext", "runAsNonRoot"),
        "the container may run as root",
    ),
    "is-root": (set_to(0, *NODE, "securityContext", "runAsUser"), "may run as root"),
    "no-seccomp": (without(*POD, "securityContext", "seccompProfile"), "has no seccomp profile"),
    "gains-privileges": (
        without(*NODE, "securityContext", "allowPrivilegeEscalation"),
        "may gain privileges",
    ),
    "keeps-capabilities": (
        set_to([], *NODE, "securityContext", "capabilities", "drop"),
        "keeps or adds capabilities",
    ),
    "adds-capabilities": (
        set_to(["IPC_LOCK"], *NODE, "securityContext", "capabilities", "add"),
        "keeps or adds capabilities",
    ),
    "privileged": (set_to(True, *NODE, "securityContext", "privileged"), "is privileged"),
    "hosts-network": (set_to(True, *POD, "hostNetwork"), "hostNetwork is not `restricted`"),
    "hosts-disk": (
        lambda body: body["template"]["spec"]["volumes"].append(
            {"name": "disk", "hostPath": {"path": "/"}}
        ),
        "the volume disk is a hostPath, which is not `restricted`",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_rendered_breaks_no_rule(form: Form) -> None:
    assert broken(list(rendered(form).values())) == []


@pytest.mark.parametrize("form", ["job", "jobset"])
@pytest.mark.parametrize("name", IN_A_JOB)
def test_a_broken_rule_of_jobs_is_found_in_every_form(form: Form, name: str) -> None:
    change, said = IN_A_JOB[name]
    by_kind = rendered(form)
    change(job_body(by_kind))
    found = broken(list(by_kind.values()))
    assert any(said in text for text in found), found
    assert all(text.startswith(("Job digits: ", "JobSet digits: ")) for text in found)


JOBSET = ("JobSet", "spec")
RUNTIME = ("TrainingRuntime", "spec", "template", "spec", "replicatedJobs", 0)
TRAINER = ("TrainJob", "spec", "trainer")
RULE = (*JOBSET, "failurePolicy", "rules", 0)

IN_OTHERS: dict[str, tuple[Form, Change, str]] = {
    "name": ("job", set_to("Digits", "Job", "metadata", "name"), "a name has at most 63"),
    "name-too-long": ("job", set_to("a" * 62, "Job", "metadata", "name"), "no host name"),
    "label": (
        "job",
        set_to("-", "Job", "metadata", "labels", "app.kubernetes.io/name"),
        "app.kubernetes.io/name=- is no label",
    ),
    "label-key": ("job", set_to("", "Job", "metadata", "labels", "a b"), "a b= is no label"),
    "config-map": (
        "job",
        set_to("ü" * (1 << 20), "ConfigMap", "data", "job.toml"),
        "the job is 2,097,152 bytes long, and a ConfigMap holds 1,048,576",
    ),
    "cluster-ip": ("job", without("Service", "spec", "clusterIP"), "only where clusterIP is None"),
    "not-ready": (
        "job",
        without("Service", "spec", "publishNotReadyAddresses"),
        "without publishNotReadyAddresses the pods don't find each other",
    ),
    "no-service": (
        "job",
        set_to("others", "Job", "spec", "template", "spec", "subdomain"),
        "its subdomain others is no Service's name",
    ),
    "subdomain": (
        "jobset",
        set_to("9digits", *JOBSET, "network", "subdomain"),
        "the subdomain 9digits could be no Service",
    ),
    "long-pods": (
        "jobset",
        set_to("a" * 51, "JobSet", "metadata", "name"),
        "of more than 63 signs",
    ),
    "rule-name": ("jobset", set_to("a rule", *RULE, "name"), "the rules are called ['a rule']"),
    "rules-alike": (
        "jobset",
        lambda found: found["JobSet"]["spec"]["failurePolicy"]["rules"].append({"name": "fatal"}),
        "each by a name of its own",
    ),
    "reason": (
        "jobset",
        set_to(["ExitCode"], *RULE, "onJobFailureReasons"),
        "a Job does not fail by ExitCode",
    ),
    "ancestor": ("trainjob", without(*RUNTIME, "template", "metadata"), "one Job, once, is marked"),
    "replicas": ("trainjob", set_to(2, *RUNTIME, "replicas"), "one Job, once, is marked"),
    "container": (
        "trainjob",
        set_to("worker", *RUNTIME, "template", "spec", *NODE, "name"),
        "Trainer looks for a container that is called node",
    ),
    "runtime": (
        "trainjob",
        set_to("torch", "TrainJob", "spec", "runtimeRef", "name"),
        "there is no TrainingRuntime torch",
    ),
    "processes": (
        "trainjob",
        set_to(2, *TRAINER, "numProcPerNode"),
        "numProcPerNode is for runtimes that start torchrun",
    ),
    "reference": ("trainjob", without(*TRAINER, "env", 0), "refers to $(DISTRAIN_NODE_RANK)"),
    "variable-twice": (
        "trainjob",
        lambda found: found["TrainJob"]["spec"]["trainer"]["env"].append(
            {"name": "HOME", "value": "/"}
        ),
        "the variable HOME is there twice",
    ),
}


@pytest.mark.parametrize("name", IN_OTHERS)
def test_a_broken_rule_of_the_other_kinds_is_found(name: str) -> None:
    form, change, said = IN_OTHERS[name]
    by_kind = rendered(form)
    change(by_kind)
    found = broken(list(by_kind.values()))
    assert any(said in text for text in found), found


def test_only_variables_before_it_can_be_referred_to() -> None:
    by_kind = rendered("job")
    env = job_body(by_kind)["template"]["spec"]["containers"][0]["env"]
    env[0]["value"] = "$(HOME)$$(USER)"
    assert broken(list(by_kind.values())) == [
        "Job digits: DISTRAIN_NODE_RANK refers to $(HOME), which is no variable before it"
    ]


def test_a_job_that_no_config_map_holds_is_refused() -> None:
    toml = DIGITS + "# " + "a" * (1 << 20) + "\n"
    with pytest.raises(UsageError, match="the cluster would refuse this:\n  ConfigMap digits: the"):
        rendered("job", job_spec(program=JobFile(toml=toml)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["metadata", "spec"])
def test_the_schemas_refuse_an_unknown_field_in_every_kind(form: Form, place: str) -> None:
    for manifest in rendered(form).values():
        if place in manifest:
            manifest[place]["imagined"] = "field"
            with pytest.raises(Exception, match="imagined"):
                check(manifest)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*POD, "automountToken"), False),
        ((*NODE, "securityContext", "readOnlyRoot"), True),
        (("parallelism",), "two"),
        ((*NODE, "volumeMounts", 0, "readOnly"), "yes"),
        ((*RULES, 0, "onPodConditions", 0, "state"), "True"),
    ],
)
def test_the_schemas_refuse_a_wrong_field_deep_within(
    form: Form, path: tuple[str | int, ...], value: Any
) -> None:
    by_kind = rendered(form)
    if form == "trainjob":
        body = by_kind["TrainingRuntime"]["spec"]["template"]["spec"]
        body = body["replicatedJobs"][0]["template"]["spec"]
    else:
        body = job_body(by_kind)
    set_to(value, *path)(body)
    kind = {"job": "Job", "jobset": "JobSet", "trainjob": "TrainingRuntime"}[form]
    with pytest.raises(Exception, match=str(path[-1])):
        check(by_kind[kind])
