"""What an API server refuses, or why it can't be reached, in words for the person who can act."""

import json
from collections.abc import Mapping
from typing import Any

from distrain.errors import DistrainError, ExitCode

_LONGEST_RETRY_AFTER_S = 30.0
_VERBS = {"POST": "create", "GET": "get", "PATCH": "patch", "DELETE": "delete"}
BUSY = frozenset({429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""


class ClusterError(DistrainError):
    """A request to the cluster has failed.

    Attributes:
        status: The HTTP status; None where there was no answer.
        exit_code: 64 if the name is taken, 78 if access or the request is at fault, 69 if to try
            again may help.
        retry_after_s: For how long the server asks to be left alone.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int | None,
        exit_code: ExitCode,
        retry_after_s: float | None = None,
    ) -> None:
        """`text` is the message."""
        super().__init__(text)
        self.status, self.exit_code, self.retry_after_s = status, exit_code, retry_after_s

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        return self.exit_code == ExitCode.WORKER_LOST


def lost(text: str) -> ClusterError:
    """The error of a cluster that gives no answer."""
    return ClusterError(text, status=None, exit_code=ExitCode.WORKER_LOST)


def refused(
    status: int,
    body: str | None,
    headers: Mapping[str, str],
    *,
    method: str,
    what: str,
    namespace: str,
    host: str,
) -> ClusterError:
    """The error that an answer stands for.

    Args:
        status: The HTTP status.
        body: A `Status` object in JSON, as a rule; a proxy may answer in its own way.
        headers: Of the answer.
        method: Of the request; `WATCH` and `LIST` are known as well.
        what: It was about, such as `jobs.batch`, or `pods/log`.
        namespace: There.
        host: The server's address.
    """
    told = _status_object(body)
    message = str(told.get("message") or (body or "").strip()[:300] or f"status {status}")
    verb = _VERBS.get(method, method.lower())
    if status == 401:
        text = (
            f"{host} doesn't know who is asking (401 {message}): the kubeconfig's credentials are "
            "missing or have expired; log in to the cluster anew"
        )
    elif status == 403:
        text = _forbidden(verb, what, namespace, message)
    elif status == 404:
        text = (
            f"the cluster has no {what} to {verb} in namespace {namespace} ({message}): check "
            "--namespace and --context"
        )
    elif status == 409:
        text = f"the cluster refuses to {verb} {what}: {message}"
    elif status in (400, 422):
        text = f"the cluster finds {what} at fault:{_causes(told) or f' {message}'}"
    else:
        busy = "is too busy" if status == 429 else "has failed"
        text = f"the cluster {busy} to {verb} {what} ({status} {message}); try again later"
    return ClusterError(
        text,
        status=status,
        exit_code=_exit_code(status, str(told.get("reason", ""))),
        retry_after_s=retry_after_s(headers) if status in BUSY else None,
    )


def unreachable(host: str, reason: str) -> ClusterError:
    """The error of a server that can't be asked: no route, no answer, no trust."""
    if "CERTIFICATE_VERIFY_FAILED" in reason or "certificate" in reason.lower():
        return ClusterError(
            f"{host} is not the server that the kubeconfig trusts ({reason}): check its "
            "certificate-authority, and the clock of this machine",
            status=None,
            exit_code=ExitCode.CONFIG,
        )
    return lost(
        f"the cluster's API server at {host} can't be reached ({reason}): check the kubeconfig's "
        "server, the network or VPN, and that the cluster runs"
    )


def unusable(host: str) -> ClusterError:
    """The error of a request that could not be written down."""
    return ClusterError(
        f"{host} can't be asked: there are signs in the kubeconfig's token, such as the end of a "
        "line, that no request can hold",
        status=None,
        exit_code=ExitCode.CONFIG,
    )


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds of `Retry-After`, up to 30; its other form, a date, is not of Kubernetes."""
    given = headers.get("Retry-After", "")
    return min(float(given), _LONGEST_RETRY_AFTER_S) if given.isdecimal() else None


def _exit_code(status: int, reason: str) -> ExitCode:
    if status == 409:
        return ExitCode.USAGE if reason == "AlreadyExists" else ExitCode.WORKER_LOST
    # 410: what a watch goes on from is forgotten, and a new list helps.
    if status in BUSY or status in (408, 410):
        return ExitCode.WORKER_LOST
    return ExitCode.CONFIG


def _forbidden(verb: str, what: str, namespace: str, message: str) -> str:
    if 'User "system:anonymous"' in message:
        return (
            f"the cluster was asked by nobody ({message}): the kubeconfig names no user, or one "
            "without credentials"
        )
    if f"cannot {verb} resource" not in message:  # a quota, a policy, or pod security
        return f"the cluster forbids to {verb} {what} in namespace {namespace}: {message}"
    return (
        f"you may not {verb} {what} in namespace {namespace}: ask for a role there with the verb "
        f"{verb!r} on {what!r} ({message})"
    )


def _status_object(body: str | None) -> dict[str, Any]:
    try:
        told = json.loads(body or "")
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _causes(told: Mapping[str, Any]) -> str:
    """A line for each field at fault."""
    details = told.get("details") or {}
    causes = [cause for cause in details.get("causes") or () if cause.get("field")]
    return "".join(f"\n  {cause['field']}: {cause.get('message', '')}" for cause in causes)
