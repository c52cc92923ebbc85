"""`distrain submit kubernetes ... --dry-run`, as a person types it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from distrain.errors import ExitCode
from launch.main import main
from tests.conftest import ROOT

JOB = str(ROOT / "examples" / "digits.toml")
DIGEST = "registry.example.org/team/distrain@sha256:" + "a" * 64

Submit = Callable[..., tuple[int, str, str]]


@pytest.fixture
def submit(capsys: pytest.CaptureFixture[str]) -> Submit:
    """Runs the command; gives its exit code, and what it has printed and said."""

    def run(*arguments: str, job: str = JOB) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["submit", "kubernetes", job, "--dry-run", *arguments])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def by_kind(text: str) -> dict[str, Any]:
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(text)}


def node_of(text: str) -> dict[str, Any]:
    (found,) = by_kind(text)["Job"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def test_a_digest_is_taken_and_a_tag_warned_of(submit: Submit) -> None:
    code, printed, said = submit("--form", "job", "--image", DIGEST)
    assert (code, said) == (0, "")
    assert node_of(printed)["image"] == DIGEST
    code, printed, said = submit("--form", "job", "--image", "distrain:1")
    assert code == 0
    assert said == (
        "distrain: the image distrain:1 is named by a tag, which may be another one at the next "
        "start: give --image REGISTRY/NAME@sha256:DIGEST\n"
    )


def test_without_a_cluster_the_form_is_a_job_and_is_said(submit: Submit) -> None:
    _, printed, said = submit("--image", DIGEST)
    assert said == "distrain: no cluster is asked, so --form auto is a plain Job\n"
    assert set(by_kind(printed)) == {"ConfigMap", "NetworkPolicy", "Job"}


def test_options_reach_the_manifests(submit: Submit) -> None:
    code, printed, _ = submit(
        *("--nodes", "1:4", "--gpus", "8", "--cpus", "32", "--memory", "128Gi"),
        *("--shared-memory", "16Gi", "--cache", "50Gi", "--env", "NCCL_DEBUG=INFO"),
        *("--secret", "KEY=store/key", "--secret-files", "netrc:/secrets/netrc"),
        *("--volume", "weights:/weights:ro", "--volume", "scratch:/more"),
        *("--data", "none", "--runs", "disk", "--user", "2000:3000", "--node-retries", "3"),
        *("--namespace", "training", "--queue", "gpus", "--priority-class", "low"),
        *("--node-selector", "zone=a", "--toleration", "nvidia.com/gpu", "--label", "team=vision"),
        *("--pull-secret", "registry", "--interface", "net1", "--rdma", "rdma/hca"),
        *("--service-account", "trainer", "--scheduler", "volcano", "--runtime-class", "nvidia"),
        *("--annotation", "networks=a=b", "--annotation", "empty="),
        *("--gpu-resource", "amd.com/gpu", "--active-deadline", "3600", "--ttl", "60"),
        *("--name", "large", "--training.global_batch", "8192"),
    )
    assert code == 0
    job, node = by_kind(printed)["Job"], node_of(printed)
    pod = job["spec"]["template"]["spec"]
    assert job["metadata"]["name"] == "large"
    assert job["metadata"]["namespace"] == "training"
    assert job["spec"]["completions"] == 4
    assert job["spec"]["backoffLimitPerIndex"] == 3
    # Of each GPU one worker, where nothing else is said.
    assert node["args"][node["args"].index("--workers") + 1] == "8"
    assert node["resources"]["limits"] == {
        "cpu": "32",
        "memory": "128Gi",
        "amd.com/gpu": "8",
        "rdma/hca": "1",
    }
    assert pod["securityContext"]["runAsUser"] == 2000
    assert pod["securityContext"]["fsGroup"] == 3000
    assert (pod["serviceAccountName"], pod["schedulerName"]) == ("trainer", "volcano")
    assert pod["runtimeClassName"] == "nvidia"
    told = job["spec"]["template"]["metadata"]["annotations"]
    assert told == {"networks": "a=b", "empty": ""}
    mounts = {
        mount["mountPath"]: (mount["name"], mount.get("readOnly", False))
        for mount in node["volumeMounts"]
    }
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}

    def at(path: str) -> tuple[dict[str, Any], bool]:
        name, read_only = mounts[path]
        return volumes[name], read_only

    def claim(name: str) -> dict[str, Any]:
        return {"persistentVolumeClaim": {"claimName": name}}

    assert at("/weights") == (claim("weights"), True)
    assert at("/more") == (claim("scratch"), False)
    assert at("/workspace/runs") == (claim("disk"), False)
    assert at("/cache") == ({"emptyDir": {"sizeLimit": "50Gi"}}, False)
    assert at("/dev/shm")[0] == {"emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}
    assert "/workspace/shards" not in mounts


def test_a_script_has_its_own_arguments(submit: Submit) -> None:
    code, printed, _ = submit("--", "runs/python", "--name", "x", job="examples/digits.py")
    assert code == 0
    args = node_of(printed)["args"]
    assert args[args.index("--") :] == ["--", "examples/digits.py", "runs/python", "--name", "x"]
    assert "ConfigMap" not in by_kind(printed)


def test_data_on_no_volume_has_to_be_in_the_image(submit: Submit) -> None:
    code, _, said = submit("--form", "job", "--image", DIGEST, "--data.path", "/images/digits")
    assert code == 0
    assert said == (
        "distrain: data.path is /images/digits, which is on no volume: it has to be in the image\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--runs", "none"),
        ("--run.dir", "results/digits"),
        ("--run.dir", "runs/../digits"),
        ("--run.dir", "/workspace/runsaway"),
        ("--run.dir", "shards/digits"),
        ("--run.dir", "/cache/digits", "--cache", "1Gi"),
        ("--runs", "none", "--checkpoint.store", "s3://bucket/runs"),
        ("--runs", "none", "--volume", "disk:/workspace/runs:ro"),
    ],
)
def test_a_run_that_would_be_lost_with_its_pod_is_refused(
    submit: Submit, arguments: tuple[str, ...]
) -> None:
    code, printed, said = submit(*arguments)
    assert (code, printed) == (ExitCode.USAGE, "")
    assert "which is on no claim that may be written to: the run would be lost" in said


def test_a_run_on_another_claim_is_kept(submit: Submit) -> None:
    code, _, _ = submit("--volume", "disk:/results", "--run.dir", "/results/digits")
    assert code == 0


def test_horovod_stays_on_one_node(submit: Submit) -> None:
    horovod = ("--parallel.backend", "horovod")
    assert submit(*horovod)[0] == 0
    code, printed, said = submit(*horovod, "--nodes", "2")
    assert (code, printed) == (ExitCode.USAGE, "")
    assert 'parallel.backend is "horovod", and --nodes 2: on Kubernetes it runs on one' in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--image", "a b"), "--image is 'a b'; give REGISTRY/NAME@sha256:DIGEST"),
        (("--form", "pod"), "invalid choice: 'pod'"),
        (("--volume", "disk"), "--volume is 'disk'; give CLAIM:PATH or CLAIM:PATH:ro"),
        (("--volume", "disk:/a:rw"), "behind the path there may be :ro alone"),
        (("--volume", "disk:a"), "a volume's path is 'a'; give an absolute one"),
        (("--volume", "Disk:/a"), "a volume claim is called 'Disk'"),
        (("--volume", "disk:/tmp/../etc"), "give an absolute one without '..'"),
        (("--volume", "disk:/etc/distrain"), "the path /etc/distrain is there twice"),
        (("--volume", "disk:/workspace/runs"), "the path /workspace/runs is given twice"),
        (("--secret", "KEY"), "--secret is 'KEY'; give VARIABLE=SECRET/KEY"),
        (("--secret", "KEY=store"), "--secret KEY names no key of a secret; give VARIABLE=SECRET"),
        (("--secret-files", "netrc"), "--secret-files is 'netrc'; give SECRET:PATH"),
        (("--env", "API_TOKEN=abc"), "looks like a secret (by its name, API_TOKEN)"),
        (("--user", "0"), "the user is 0; give 1 or more"),
        (("--user", "1000:0"), "the group is 0; give 1 or more"),
        (("--user", "root"), "--user is 'root'; give UID or UID:GID, as numbers"),
        (("--label", "team"), "--label is 'team'; give KEY=VALUE"),
        (("--label", "a=b", "--label", "a=c"), "--label gives a twice"),
        (("--label", "app.kubernetes.io/name=x"), "is one that distrain sets; leave it out"),
        (("--label", "team=a b"), "--label gives team the value 'a b'"),
        (("--label", "a b=c"), "--label names 'a b'; give NAME or DOMAIN/NAME"),
        (("--label", "A/b=c"), "--label: the part before the slash is called 'A'"),
        (("--annotation", "a b=c"), "--annotation names 'a b'; give NAME or DOMAIN/NAME"),
        (("--annotation", "a/token=hunter2"), "--annotation a/token looks like a secret"),
        (("--service-account", "A"), "a service account is called 'A'"),
        (("--toleration", "a:Never"), "--toleration has the effect 'Never'; there are NoSchedule"),
        (("--namespace", "a.b"), "--namespace is 'a.b'; give at most 63 of a-z, 0-9 and '-'"),
        (("--namespace", "A"), "--namespace is 'A'"),
        (("--namespace", "a" * 64), "--namespace is 'aaa"),
        (("--queue", "A"), "a queue is called 'A'"),
        (("--interface", "eth0; reboot"), "--interface is 'eth0; reboot'"),
        (("--rdma", "hca"), "--rdma is 'hca'; give DOMAIN/NAME, such as nvidia.com/gpu"),
        (("--active-deadline", "0"), "--active-deadline is 0; give 1 or more"),
        (("--ttl", "-1"), "--ttl is -1; give 0 or more"),
        (("--memory", "1Gi"), "--memory is 1Gi, and /dev/shm alone may take 2Gi of it"),
        (("--memory", "much"), "--memory is 'much'; give bytes"),
        (("--shared-memory", "much"), "--shared-memory is 'much'; give bytes"),
        (("--optimiser.lr", "1"), "the arguments do not fit the job"),
        (("--", "more"), "is a job file, and 'more' behind -- is for scripts"),
    ],
)
def test_what_is_wrong_is_said(submit: Submit, arguments: tuple[str, ...], said: str) -> None:
    code, printed, told = submit(*arguments)
    assert code in (ExitCode.USAGE, ExitCode.CONFIG)
    assert printed == ""
    assert said in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "name",
    ["; rm -rf.toml", "a'b\".toml", "a\nb.toml", "../up.toml", "ü.toml", "a" * 200 + ".toml"],
)
def test_a_files_hostile_name_is_refused_or_becomes_a_plain_one(
    submit: Submit, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / name).write_text(Path(JOB).read_text())
    code, printed, said = submit("--name", "plain", job=str(folder / name))
    assert code == 0
    assert by_kind(printed)["Job"]["metadata"]["name"] == "plain"
    code, printed, said = submit(job=str(folder / name))
    if code:
        assert code == ExitCode.USAGE
        assert "--name is" in said
    else:
        assert len(by_kind(printed)["Job"]["metadata"]["name"]) <= 45
