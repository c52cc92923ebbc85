"""`distrain submit kubernetes`: a job's manifests, shown or sent."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing

from launch.failure import Cause, tell
from launch.job_spec import JobSpec
from launch.kubernetes import parser
from launch.kubernetes.connection import check_following, connect
from launch.kubernetes.kept import check_kept
from launch.kubernetes.manifests import manifests
from launch.kubernetes.options import Form
from launch.kubernetes.yaml_text import as_yaml

_KINDS: dict[Form, str] = {"job": "Job", "jobset": "JobSet", "trainjob": "TrainJob"}


def run(known: argparse.Namespace, overrides: Sequence[str], script: Sequence[str]) -> Cause | None:
    """Renders the manifests, and prints or sends them.

    Args:
        known: What `add_kubernetes` has added.
        overrides: The job file's, `--section.field VALUE`.
        script: A script's own arguments.

    Returns:
        How the job has failed, where it was followed to its end.

    Raises:
        UsageError, ConfigError: the job can't be run as described.
        ClusterError: the cluster refuses it, or can't be reached.
    """
    spec = parser.job_spec(known, overrides, script)
    _warn(spec)
    if not known.dry_run:
        return _send(known, spec)
    form: Form = "job"
    if known.form == "auto":
        _say("no cluster is asked, so --form auto is a plain Job")
    else:
        form = known.form
    sys.stdout.write(as_yaml(manifests(spec, parser.options(known, form))))
    return None


def _send(known: argparse.Namespace, spec: JobSpec) -> Cause | None:
    # Whatever can be refused is, before a cluster is asked.
    manifests(spec, parser.options(known, "job" if known.form == "auto" else known.form))
    check_following(known)
    with closing(connect(known)) as cluster:
        # They need the kubernetes package, which `connect` has found.
        from launch.kubernetes.follow import follow  # noqa: PLC0415
        from launch.kubernetes.submission import chosen_form, submit  # noqa: PLC0415

        form = chosen_form(cluster, known.form)
        submit(cluster, manifests(spec, parser.options(known, form)))
        _say(
            f"the job {spec.name} is in namespace {cluster.namespace} of {cluster.host}, as a "
            f"{_KINDS[form]}"
        )
        if known.follow:
            return follow(cluster, spec.name, logs=known.logs, lost_after_s=known.lost_after)
        _say(f"to watch it: {cluster.command('follow', spec.name)}")
        _say(f"to end it: {cluster.command('cancel', spec.name)}")
    return None


def _warn(spec: JobSpec) -> None:
    for text in check_kept(spec):
        _say(text)
    if not spec.has_digest:
        _say(
            f"the image {spec.image} is named by a tag, which may be another one at the next "
            "start: give --image REGISTRY/NAME@sha256:DIGEST"
        )


def _say(text: str) -> None:
    tell(f"distrain: {text}\n", sys.stderr)
