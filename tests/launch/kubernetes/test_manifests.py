"""What `distrain submit kubernetes` would send: by the schemas, and by what it is for."""

import math
from typing import Any

import pytest
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime, TrainerV1alpha1TrainJob

from distrain.errors import ExitCode, UsageError
from launch.job_spec import Resources, SecretFiles, SecretVariable, Volume
from launch.kubernetes.options import FORMS, Form, Toleration
from tests.manifest_checks import check
from tests.rendered import container, job_body, job_spec, rendered, script_spec

MUCH: dict[str, Any] = {
    "namespace": "training",
    "queue": "gpus",
    "rdma": "rdma/hca_shared_devices_a",
    "node_selector": {"node.kubernetes.io/instance-type": "p5"},
    "tolerations": (
        Toleration.parse("nvidia.com/gpu"),
        Toleration.parse("team=vision:NoSchedule"),
    ),
    "priority_class": "low",
    "scheduler": "volcano",
    "runtime_class": "nvidia",
    "service_account": "trainer",
    "annotations": {"k8s.v1.cni.cncf.io/networks": '[{"name": "rdma"}]'},
    "pull_secrets": ("registry",),
    "labels": {"team": "vision"},
    "active_deadline_s": 3600,
}
LARGE: dict[str, Any] = {
    "workers": 8,
    "resources": Resources(cpus="16", memory="64Gi", gpus=8, shared_memory="8Gi"),
    "environment": {"NCCL_DEBUG": "INFO"},
    "secret_variables": (SecretVariable(variable="KEY", secret="store", key="key"),),
    "secret_files": (SecretFiles(secret="netrc", path="/secrets/netrc"),),
    "volumes": (
        Volume(claim="shards", path="/workspace/shards", read_only=True),
        Volume(claim="runs", path="/workspace/runs"),
        Volume(claim=None, path="/cache", size="20Gi"),
    ),
}

forms = pytest.mark.parametrize("form", FORMS)


@forms
@pytest.mark.parametrize("nodes", ["1", "2", "1:3"])
@pytest.mark.parametrize(("fields", "options"), [({}, {}), (LARGE, MUCH)], ids=["small", "large"])
def test_manifests_fit_their_schemas(
    form: Form, nodes: str, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    by_kind = rendered(form, job_spec(nodes, **fields), **options)
    assert len(by_kind) >= 3
    for manifest in by_kind.values():
        check(manifest)


def test_trainer_reads_of_a_trainjob_what_was_written() -> None:
    by_kind = rendered("trainjob", job_spec(**LARGE), **MUCH)
    for model, kind in (
        (TrainerV1alpha1TrainJob, "TrainJob"),
        (TrainerV1alpha1TrainingRuntime, "TrainingRuntime"),
    ):
        # From JSON, as Kubeflow's SDK: whatever its models don't know would be lost.
        read = model.from_dict(by_kind[kind])
        assert read.to_dict() == by_kind[kind]


@pytest.mark.parametrize(
    ("form", "host"),
    [
        ("job", "digits-0.digits"),
        ("jobset", "digits-node-0-0.digits"),
        ("trainjob", "digits-node-0-0.digits"),
    ],
)
def test_nodes_meet_on_the_first_by_its_name(form: Form, host: str) -> None:
    node = container(rendered(form, job_spec(workers=4)))
    assert [*node["command"], *node["args"]] == [
        *("distrain", "train", "/etc/distrain/job.toml"),
        *("--nodes", "2", "--node-rank", "$(DISTRAIN_NODE_RANK)"),
        *("--rendezvous", f"{host}:29400", "--workers", "4", "--max-restarts", "10"),
    ]
    rank = node["env"][0]
    assert rank["name"] == "DISTRAIN_NODE_RANK"
    path = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert rank["valueFrom"] == {"fieldRef": {"fieldPath": path}}


def test_names_lead_to_pods_that_are_not_ready_yet() -> None:
    by_kind = rendered("job")
    service, pod = by_kind["Service"], by_kind["Job"]["spec"]["template"]
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    network = rendered("jobset")["JobSet"]["spec"]["network"]
    assert network == {
        "enableDNSHostnames": True,
        "subdomain": "digits",
        "publishNotReadyAddresses": True,
    }


@forms
def test_one_node_needs_no_rendezvous_and_lets_nobody_in(form: Form) -> None:
    by_kind = rendered(form, job_spec("1", workers=2))
    node = container(by_kind)
    assert node["args"] == [
        *("train", "/etc/distrain/job.toml", "--workers", "2", "--max-restarts", "10")
    ]
    assert "Service" not in by_kind
    assert by_kind["NetworkPolicy"]["spec"]["ingress"] == []
    names = {variable["name"] for variable in node["env"]}
    assert not names & {"DISTRAIN_NODE_RANK", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"}


@forms
def test_only_the_jobs_own_pods_reach_its_ports(form: Form) -> None:
    by_kind = rendered(form, labels={"team": "vision"})
    labels = job_body(by_kind)["template"]["metadata"]["labels"]
    spec = by_kind["NetworkPolicy"]["spec"]
    own = {"app.kubernetes.io/name": "distrain", "app.kubernetes.io/instance": "digits"}
    assert own.items() <= labels.items()
    assert spec["podSelector"] == {"matchLabels": own}
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["ingress"] == [{"from": [{"podSelector": {"matchLabels": own}}]}]


@forms
def test_exit_codes_decide_what_becomes_of_a_job(form: Form) -> None:
    body = job_body(rendered(form, job_spec(node_retries=7)))
    rules = body["podFailurePolicy"]["rules"]
    assert rules[0] == {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    by_code = {
        code: next(
            (rule["action"] for rule in rules[1:] if code in rule["onExitCodes"]["values"]),
            "Count",
        )
        for code in range(1, 256)
    }
    assert {code for code, action in by_code.items() if action == "FailJob"} == {
        *(ExitCode.USAGE, ExitCode.DATA, ExitCode.FAULT, ExitCode.STORAGE, ExitCode.CONFIG)
    }
    assert {code for code, action in by_code.items() if action == "Ignore"} == {75}
    assert by_code[69] == by_code[137] == "Count"
    # Of each node, not of all: the loss of one may take every other one along.
    assert body["backoffLimitPerIndex"] == 7
    assert body["maxFailedIndexes"] == 0
    assert "backoffLimit" not in body
    assert body["template"]["spec"]["restartPolicy"] == "Never"
    assert body["podReplacementPolicy"] == "Failed"


def test_codes_that_are_not_retried_fail_the_job() -> None:
    body = job_body(rendered("job", job_spec(retried=frozenset())))
    _, fatal = body["podFailurePolicy"]["rules"]
    assert fatal["onExitCodes"]["values"] == [64, 65, 69, 70, 74, 75, 78]


def test_where_all_codes_are_retried_none_is_fatal() -> None:
    body = job_body(rendered("job", job_spec(retried=frozenset(ExitCode))))
    assert [rule["action"] for rule in body["podFailurePolicy"]["rules"]] == ["Ignore", "Ignore"]


@pytest.mark.parametrize("form", ["jobset", "trainjob"])
def test_a_set_fails_with_its_job_and_starts_nothing_again(form: Form) -> None:
    by_kind = rendered(form)
    runtime = by_kind.get("TrainingRuntime", {}).get("spec", {}).get("template")
    policy = (runtime or by_kind["JobSet"])["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 0
    assert policy["rules"][0]["action"] == "FailJobSet"
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


@forms
def test_elastic_runs_ask_for_all_nodes_and_are_done_with_the_first(form: Form) -> None:
    by_kind = rendered(form, job_spec("2:4"))
    body = job_body(by_kind)
    assert body["completionMode"] == "Indexed"
    assert body["completions"] == body["parallelism"] == 4
    assert body["successPolicy"] == {"rules": [{"succeededIndexes": "0", "succeededCount": 1}]}
    assert container(by_kind)["args"][2:4] == ["--nodes", "2:4"]
    if form == "trainjob":
        assert by_kind["TrainJob"]["spec"]["trainer"]["numNodes"] == 4
        assert by_kind["TrainingRuntime"]["spec"]["mlPolicy"] == {"numNodes": 4}


@pytest.mark.parametrize("grace_s", [0.5, 30.0, 600.25])
def test_the_kubelet_waits_for_longer_than_saving_may_take(grace_s: float) -> None:
    pod = job_body(rendered("job", job_spec(grace_s=grace_s)))["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == math.ceil(grace_s) + 30


@forms
def test_pods_are_closed_in(form: Form) -> None:
    by_kind = rendered(form)
    pod, node = job_body(by_kind)["template"]["spec"], container(by_kind)
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert node["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    written = {mount["mountPath"] for mount in node["volumeMounts"] if not mount.get("readOnly")}
    assert written == {"/dev/shm", "/tmp", "/cache", "/workspace/runs"}


def test_shared_memory_is_part_of_the_memory() -> None:
    by_kind = rendered("job", job_spec(resources=Resources(memory="8Gi", shared_memory="3Gi")))
    (shared,) = (
        volume
        for volume in job_body(by_kind)["template"]["spec"]["volumes"]
        if volume["name"] == "shared-memory"
    )
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "3Gi"}
    assert container(by_kind)["resources"]["limits"] == {"memory": "8Gi"}
    with pytest.raises(UsageError, match="--memory is 2048Mi, and /dev/shm alone may take 2Gi"):
        rendered("job", job_spec(resources=Resources(memory="2048Mi")))


@forms
def test_requests_are_the_limits(form: Form) -> None:
    found = container(rendered(form, job_spec(**LARGE), **MUCH))["resources"]
    assert found["requests"] == found["limits"]
    assert found["limits"] == {
        "cpu": "16",
        "memory": "64Gi",
        "nvidia.com/gpu": "8",
        "rdma/hca_shared_devices_a": "1",
    }


def test_variables_tell_the_interface_and_what_may_be_written_to() -> None:
    def variables(**fields: Any) -> dict[str, str]:
        node = container(rendered("job", job_spec(**fields), interface="ib0"))
        return {each["name"]: each.get("value") for each in node["env"]}

    found = variables()
    assert found["NCCL_SOCKET_IFNAME"] == found["GLOO_SOCKET_IFNAME"] == "ib0"
    assert found["HOME"] == "/cache"
    # It belongs to the run's numbers, and so to the job: the launcher sets it.
    assert "OMP_NUM_THREADS" not in found
    own = variables(environment={"NCCL_SOCKET_IFNAME": "=eth1", "HOME": "/elsewhere"})
    assert own["NCCL_SOCKET_IFNAME"] == "=eth1"
    assert own["HOME"] == "/elsewhere"
    assert own["GLOO_SOCKET_IFNAME"] == "ib0"


@forms
def test_a_pod_that_asks_for_no_gpu_sees_none(form: Form) -> None:
    def visible(**fields: Any) -> list[str]:
        variables = container(rendered(form, job_spec(**fields)))["env"]
        return [each["value"] for each in variables if each["name"] == "NVIDIA_VISIBLE_DEVICES"]

    assert visible() == ["void"]
    assert visible(resources=Resources(gpus=1)) == []  # the device plugin says which
    assert visible(environment={"NVIDIA_VISIBLE_DEVICES": "all"}) == ["all"]


@forms
def test_secrets_are_referred_to(form: Form) -> None:
    by_kind = rendered(form, job_spec(**LARGE))
    variable = next(each for each in container(by_kind)["env"] if each["name"] == "KEY")
    assert variable == {
        "name": "KEY",
        "valueFrom": {"secretKeyRef": {"name": "store", "key": "key"}},
    }
    mounts = {mount["mountPath"]: mount for mount in container(by_kind)["volumeMounts"]}
    name = mounts["/secrets/netrc"]["name"]
    assert mounts["/secrets/netrc"]["readOnly"] is True
    volumes = {
        volume["name"]: volume for volume in job_body(by_kind)["template"]["spec"]["volumes"]
    }
    assert volumes[name]["secret"] == {"secretName": "netrc", "defaultMode": 0o440}


def test_data_can_be_read_and_runs_be_written() -> None:
    mounts = container(rendered("job", job_spec(**LARGE)))["volumeMounts"]
    by_path = {mount["mountPath"]: mount for mount in mounts}
    assert by_path["/workspace/shards"]["readOnly"] is True
    assert "readOnly" not in by_path["/workspace/runs"]
    assert [mount["mountPath"] for mount in mounts].count("/cache") == 1


def test_a_script_is_the_images_and_needs_no_config_map() -> None:
    by_kind = rendered("job", script_spec("--epochs", "3", "--nodes", "9"))
    assert "ConfigMap" not in by_kind
    args = container(by_kind)["args"]
    assert args[0] == "launch"
    assert args[args.index("--") :] == [
        *("--", "examples/digits.py", "--epochs", "3", "--nodes", "9")
    ]


@pytest.mark.parametrize(
    ("form", "kind"), [("job", "Job"), ("jobset", "JobSet"), ("trainjob", "TrainJob")]
)
def test_kueue_finds_its_label(form: Form, kind: str) -> None:
    assert rendered(form, queue="gpus")[kind]["metadata"]["labels"][
        "kueue.x-k8s.io/queue-name"
    ] == ("gpus")
    assert "kueue" not in str(rendered(form))


def test_kueue_may_admit_part_of_an_elastic_job() -> None:
    told = rendered("job", job_spec("2:4"), queue="gpus")["Job"]["metadata"]["annotations"]
    assert told == {
        "kueue.x-k8s.io/job-min-parallelism": "2",
        "kueue.x-k8s.io/job-completions-equal-parallelism": "true",
    }
    assert "annotations" not in rendered("job", job_spec("4"), queue="gpus")["Job"]["metadata"]


@forms
def test_where_and_when_is_as_asked(form: Form) -> None:
    by_kind = rendered(form, job_spec(), **MUCH)
    body = job_body(by_kind)
    pod = body["template"]["spec"]
    assert body["activeDeadlineSeconds"] == 3600
    assert pod["nodeSelector"] == {"node.kubernetes.io/instance-type": "p5"}
    assert pod["priorityClassName"] == "low"
    assert pod["schedulerName"] == "volcano"
    assert pod["runtimeClassName"] == "nvidia"
    assert pod["serviceAccountName"] == "trainer"
    assert pod["automountServiceAccountToken"] is False  # the store's own token comes by itself
    told = body["template"]["metadata"]["annotations"]
    assert told == {"k8s.v1.cni.cncf.io/networks": '[{"name": "rdma"}]'}
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists"},
        {"key": "team", "operator": "Equal", "value": "vision", "effect": "NoSchedule"},
    ]
    for manifest in by_kind.values():
        assert manifest["metadata"]["namespace"] == "training"
        assert manifest["metadata"]["labels"]["team"] == "vision"


@pytest.mark.parametrize(("form", "kind"), [("job", "Job"), ("jobset", "JobSet")])
def test_a_job_is_forgotten_when_asked(form: Form, kind: str) -> None:
    manifest = rendered(form, ttl_s=60)[kind]
    check(manifest)
    assert manifest["spec"]["ttlSecondsAfterFinished"] == 60
    # Not the JobSet's Job by itself, whose end would be forgotten before the set has seen it.
    assert str(manifest).count("ttlSecondsAfterFinished") == 1


def test_trainer_would_start_a_failed_job_again_that_is_forgotten() -> None:
    with pytest.raises(UsageError, match="--ttl is for a Job and a JobSet"):
        rendered("trainjob", ttl_s=60)


@forms
def test_pods_stay_restricted_with_rdma(form: Form) -> None:
    plain, fast = (
        container(rendered(form, job_spec(), rdma=rdma))["securityContext"]
        for rdma in (None, "rdma/hca_shared_devices_a")
    )
    assert plain == fast
