"""Jobs' descriptions, and the manifests that are rendered from them."""

from typing import Any

from distrain.job_file import job_tables, job_toml, read_job
from launch.job_spec import JobFile, JobSpec, Script, Volume
from launch.kubernetes.manifests import manifests
from launch.kubernetes.options import Form, KubernetesOptions
from launch.number_range import NumberRange
from tests.conftest import ROOT

DIGEST = "registry.example.org/distrain@sha256:" + "0" * 64
DIGITS = job_toml(job_tables(read_job(ROOT / "examples" / "digits.toml"))).decode()


def job_spec(nodes: str = "2", **fields: Any) -> JobSpec:
    """The digits job on some machines."""
    given: dict[str, Any] = {
        "name": "digits",
        "program": JobFile(toml=DIGITS),
        "image": DIGEST,
        "volumes": (Volume(claim="runs", path="/workspace/runs"),),
        **fields,
    }
    return JobSpec(nodes=NumberRange.parse("--nodes", nodes), **given)


def rendered(
    form: Form = "job", spec: JobSpec | None = None, **options: Any
) -> dict[str, dict[str, Any]]:
    """The manifests by kind; there is one of each."""
    found = manifests(spec or job_spec(), KubernetesOptions(form=form, **options))
    by_kind = {manifest["kind"]: manifest for manifest in found}
    assert len(by_kind) == len(found)
    return by_kind


def job_body(by_kind: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The `spec` of the Job that runs the nodes, in any form, TrainJob's part put in."""
    if "Job" in by_kind:
        body = by_kind["Job"]["spec"]
    elif "JobSet" in by_kind:
        body = by_kind["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    else:
        runtime = by_kind["TrainingRuntime"]["spec"]["template"]["spec"]
        body = runtime["replicatedJobs"][0]["template"]["spec"]
        trainer = by_kind["TrainJob"]["spec"]["trainer"]
        container = body["template"]["spec"]["containers"][0]
        for name in ("image", "command", "args", "env"):
            container[name] = trainer[name]
        container["resources"] = trainer["resourcesPerNode"]
    assert isinstance(body, dict)
    return body


def container(by_kind: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The container that is a node of the run."""
    (found,) = job_body(by_kind)["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def script_spec(*arguments: str, path: str = "examples/digits.py", **fields: Any) -> JobSpec:
    """A script in the place of a job file."""
    return job_spec(program=Script(path=path, arguments=arguments), **fields)
