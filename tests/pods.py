"""Pods of a manifest, really run: what a kubelet does for a container, on a host of `tests.hosts`.

A pod's root is this machine's, seen through an overlay with the image's files in it, and read-only;
its volumes lie at their paths, its variables are those of the manifest and of the image alone, and
its command is the container's user's, who can have no more rights.
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.hosts import Hosts

IMAGE_VARIABLES = {
    "PATH": "/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": "/opt/distrain",
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""What the image says."""

_REFERENCE = re.compile(r"\$(\$|\([^)]*\))")
_ANNOTATION = "batch.kubernetes.io/job-completion-index"

_ENTRY = f"""\
#!/opt/venv/bin/{Path(sys.executable).name}
from launch.main import command

if __name__ == "__main__":
    command()
"""


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """What the kubelet makes of a word: $(NAME) is a variable's value, if there is one, $$ a $."""

    def value(found: re.Match[str]) -> str:
        name = found[1].strip("()")
        return "$" if found[1] == "$" else variables.get(name, found[0])

    return _REFERENCE.sub(value, text)


def _bound(source: object, target: str, *, read_only: bool) -> list[list[object]]:
    closed: list[list[object]] = [["mount", "-o", "remount,ro,bind", target]]
    return [["mount", "--bind", source, target], *(closed if read_only else ())]


@dataclass(frozen=True)
class Form:
    """Where a form of a job's manifests has its pods.

    Attributes:
        pod: The template's `spec`.
        container: Its only one, as it comes to be.
        prefix: The pods are called so, with their numbers behind.
    """

    pod: Mapping[str, Any]
    container: Mapping[str, Any]
    prefix: str
    subdomain: str
    count: int


def form_in(manifests: Sequence[Mapping[str, Any]]) -> Form:
    """What the controllers make of a Job, a JobSet, or a TrainJob and its runtime."""
    kinds = {manifest["kind"]: manifest for manifest in manifests}
    if "Job" in kinds:
        name, job = kinds["Job"]["metadata"]["name"], kinds["Job"]["spec"]
        pod = job["template"]["spec"]
        (container,) = pod["containers"]
        services = [each["metadata"]["name"] for each in manifests if each["kind"] == "Service"]
        subdomain = pod.get("subdomain", "")  # a node alone has nobody to be found by
        assert services == ([subdomain] if subdomain else [])
        return Form(pod, container, name, subdomain, job["completions"])
    if "JobSet" in kinds:
        name, body, given = kinds["JobSet"]["metadata"]["name"], kinds["JobSet"]["spec"], {}
    else:
        run = kinds["TrainJob"]
        assert run["spec"]["runtimeRef"]["name"] == kinds["TrainingRuntime"]["metadata"]["name"]
        name, body = run["metadata"]["name"], kinds["TrainingRuntime"]["spec"]["template"]["spec"]
        given = {key: run["spec"]["trainer"][key] for key in ("image", "command", "args", "env")}
    (replicated,) = body["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    prefix = f"{name}-{replicated['name']}-0"
    return Form(pod, container | given, prefix, body["network"]["subdomain"], job["completions"])


@dataclass(frozen=True)
class Pod:
    """One of them.

    Attributes:
        form: Whose.
        index: Its number.
        volumes: By name of a ConfigMap or a claim, the folder that it is.
        folder: For its empty volumes.
    """

    form: Form
    index: int
    volumes: Mapping[str, Path]
    folder: Path

    @property
    def hostname(self) -> str:
        return f"{self.form.prefix}-{self.index}"

    def variables(self) -> dict[str, str]:
        """The container's, each expanded by those before it."""
        found: dict[str, str] = {}
        for variable in self.form.container["env"]:
            if "value" in variable:
                found[variable["name"]] = expanded(variable["value"], found)
                continue
            field = variable["valueFrom"]["fieldRef"]["fieldPath"]
            assert field == f"metadata.annotations['{_ANNOTATION}']"
            found[variable["name"]] = str(self.index)
        return found

    def command(self) -> list[str]:
        """The container's process."""
        container, variables = self.form.container, self.variables()
        return [expanded(word, variables) for word in (*container["command"], *container["args"])]

    def on(self, hosts: Hosts, host: int) -> list[str]:
        """The command that starts it on a host, and becomes it."""
        return [*hosts.on(host), "sh", "-e", "-c", "\n".join(self._steps(hosts)), "sh"]

    def _steps(self, hosts: Hosts) -> list[str]:
        root, above = self.folder / "root", self.folder / "above"
        container = self.form.container
        made = [*(mount["mountPath"] for mount in container["volumeMounts"])]
        made += [container["workingDir"], "/opt/venv", "/opt/distrain"]
        entry = self.folder / "distrain"
        self.folder.mkdir()
        entry.write_text(_ENTRY)
        for folder in (root, above):
            folder.mkdir()
        lower = f"lowerdir=/,upperdir={above}/upper,workdir={above}/work"
        # The Python that the image's environment is of may lie in a home that is closed to others.
        opened = [f"{root}{folder}" for folder in Path(sys.base_prefix).parents]
        steps: list[list[object]] = [
            ["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", above],
            ["mkdir", f"{above}/upper", f"{above}/work"],
            ["mount", "-t", "overlay", "-o", lower, "overlay", root],
            ["mkdir", "-p", *(f"{root}{path}" for path in made)],
            ["chmod", "o+x", *opened],
            ["install", "-m", "755", entry, f"{root}/usr/local/bin/distrain"],
            *_bound(ROOT, f"{root}/opt/distrain", read_only=True),
            *_bound(sys.prefix, f"{root}/opt/venv", read_only=True),
            ["mount", "--bind", hosts.names_file, f"{root}/etc/hosts"],
            ["mount", "--rbind", "/dev", f"{root}/dev"],
            ["mount", "-t", "proc", "proc", f"{root}/proc"],
            ["mount", "-o", "remount,ro", root],
            *self._mounts(root),
            ["hostname", self.hostname],
            ["exec", "chroot", root, *self._started()],
        ]
        return [shlex.join(str(word) for word in words) for words in steps]

    def _mounts(self, root: Path) -> list[list[object]]:
        sources = {volume["name"]: volume for volume in self.form.pod["volumes"]}
        steps: list[list[object]] = []
        for mount in self.form.container["volumeMounts"]:
            volume, target = sources[mount["name"]], f"{root}{mount['mountPath']}"
            empty = volume.get("emptyDir")
            if empty is not None and empty.get("medium") == "Memory":
                size = f"mode=1777,size={empty['sizeLimit'].removesuffix('i')}"
                steps.append(["mount", "-t", "tmpfs", "-o", size, "tmpfs", target])
                continue
            steps += _bound(self._source(volume), target, read_only=mount.get("readOnly", False))
        return steps

    def _source(self, volume: Mapping[str, Any]) -> Path:
        if "configMap" in volume:
            return self.volumes[str(volume["configMap"]["name"])]
        if "persistentVolumeClaim" in volume:
            return self.volumes[str(volume["persistentVolumeClaim"]["claimName"])]
        assert volume["emptyDir"] == {}
        made = self.folder / str(volume["name"])
        made.mkdir()
        os.chown(made, self.user, self.user)
        return made

    @property
    def user(self) -> int:
        """Who it runs as."""
        assert self.form.pod["securityContext"]["runAsNonRoot"]
        return int(self.form.pod["securityContext"]["runAsUser"])

    def _started(self) -> list[str]:
        """The process, as its user and without rights that it could ask for."""
        security = self.form.container["securityContext"]
        assert not security["allowPrivilegeEscalation"]
        assert security["readOnlyRootFilesystem"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        group = self.form.pod["securityContext"]["runAsGroup"]
        rights = ["--reuid", str(self.user), "--regid", str(group), "--clear-groups"]
        rights += ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
        variables = {**IMAGE_VARIABLES, **self.variables()}
        given = [f"{name}={value}" for name, value in variables.items()]
        where = self.form.container["workingDir"]
        return ["setpriv", *rights, "env", "-i", "-C", where, *given, *self.command()]
