"""Who asks, and which server: by a kubeconfig, or by what every pod has of its own cluster."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kubernetes.client import Configuration
from kubernetes.config import ConfigException, list_kube_config_contexts, load_kube_config
from kubernetes.config.incluster_config import InClusterConfigLoader
from kubernetes.config.kube_config import KubeConfigMerger
from yaml import YAMLError

from distrain.errors import ConfigError
from launch.job_spec import check_namespace
from launch.kubernetes.cluster import Cluster

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_USUAL = "~/.kube/config"
_ADDRESS = re.compile("https?://[^/]")


def cluster_of(kubeconfig: str | None, context: str | None, namespace: str | None) -> Cluster:
    """The cluster of a kubeconfig; within a pod, where there is none, the pod's own.

    Args:
        kubeconfig: A file, or several joined by ':'; None for the usual ones.
        context: Of the file; None for the current one.
        namespace: To work in; None for the context's.

    Raises:
        ConfigError: there is no such file or context, or it can't be used.
        UsageError: no namespace can be called as its own.
    """
    given = {"--kubeconfig": kubeconfig, "--context": context, "--namespace": namespace}
    options = [
        word for option, value in given.items() if value is not None for word in (option, value)
    ]
    files = kubeconfig or os.environ.get("KUBECONFIG") or _USUAL
    found = [file for file in files.split(os.pathsep) if Path(file).expanduser().is_file()]
    if found:
        configuration, own = _from_files(os.pathsep.join(found), context)
        return Cluster(configuration, namespace or own, options)
    if kubeconfig is None and context is None and (_SERVICE_ACCOUNT / "token").is_file():
        configuration, own = _from_pod()
        return Cluster(configuration, namespace or own, options)
    raise ConfigError(
        f"there is no kubeconfig at {files}, so no cluster is known: give --kubeconfig FILE, or "
        "set KUBECONFIG; who runs the cluster says how to get one"
    )


def _from_files(files: str, context: str | None) -> tuple[Configuration, str]:
    configuration = Configuration()
    try:
        contexts, current = list_kube_config_contexts(files)
        names = [each["name"] for each in contexts]
        if context is not None and context not in names:
            raise ConfigError(
                f"the kubeconfig {files} has no context {context!r}; it has {', '.join(names)}"
            )
        with _complaints() as complaints:
            load_kube_config(files, context, configuration, persist_config=False)
        chosen = next((each for each in contexts if each["name"] == context), current)
        # The package passes over it.
        clusters = KubeConfigMerger(files).config["clusters"]
        proxy = clusters.get_with_name(chosen["context"]["cluster"])["cluster"].safe_get(
            "proxy-url"
        )
    except (ConfigException, YAMLError, OSError, ValueError, TypeError) as error:
        # In what it names, an entry that has no name stands whole, a user's with what is secret.
        told = re.sub(r"\{.*\}", "{...}", str(error))
        raise ConfigError(f"the kubeconfig {files} can't be used: {told}") from error
    if complaints:
        user = chosen["context"].get("user")
        raise ConfigError(
            f"the program that the kubeconfig {files} has for the credentials of {user!r} failed: "
            f"{'; '.join(complaints)}"
        )
    for what, address in (("server", configuration.host), ("proxy-url", proxy)):
        if address is not None and not _ADDRESS.match(str(address)):
            raise ConfigError(
                f"the kubeconfig {files} can't be used: the {what} of its cluster is {address!r}; "
                "http:// and https:// can be asked"
            )
    configuration.proxy = proxy or configuration.proxy
    namespace = chosen["context"].get("namespace") or "default"
    check_namespace(f"the namespace of the kubeconfig {files}", namespace)
    return configuration, namespace


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the package only logs within, before it goes on to ask as nobody at all."""
    found: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: found.append(" ".join(record.getMessage().split()))  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield found
    finally:
        logging.getLogger().removeHandler(handler)


def _from_pod() -> tuple[Configuration, str]:
    configuration = Configuration()
    try:
        loader = InClusterConfigLoader(
            token_filename=str(_SERVICE_ACCOUNT / "token"),
            cert_filename=str(_SERVICE_ACCOUNT / "ca.crt"),
        )
        loader.load_and_set(configuration)
        own = (_SERVICE_ACCOUNT / "namespace").read_text().strip()
    except (ConfigException, OSError) as error:
        raise ConfigError(f"this pod's service account can't be used: {error}") from error
    return configuration, own
