"""Where Horovod's workers can't be had, and what to do then: by each way to start them."""

import tomllib
from importlib.util import find_spec

from distrain.errors import ConfigError, UsageError
from launch.job_spec import JobFile, JobSpec


def check_installed() -> None:
    """Refuses it where it is not there.

    Raises:
        ConfigError: it isn't.
    """
    if find_spec("horovod") is None:
        raise ConfigError(
            "Horovod is not installed: install it by `make horovod`, or set parallel.backend = "
            '"torch" (of `distrain launch`: --backend torch); the bits are the same'
        )


def check_on_one_machine(*, is_fixed: bool) -> None:
    """Refuses it where workers may come and go.

    Raises:
        ConfigError: they may, or it is not installed.
    """
    check_installed()
    if not is_fixed:
        raise ConfigError(
            'parallel.backend is "horovod", whose workers are of one machine and of a fixed '
            "number here: give --workers one number and leave --nodes out, or set "
            'parallel.backend = "torch"'
        )


def check_on_hosts(backend: str) -> None:
    """Refuses `--hosts` for any other backend.

    Raises:
        ConfigError: it is another, or Horovod is not installed.
    """
    if backend != "horovod":
        raise ConfigError(
            f"--hosts is for Horovod, and the backend is {backend!r}: give "
            "--parallel.backend horovod (of `distrain launch`: --backend horovod), or run "
            "`--nodes ... --rendezvous ...` on each machine"
        )
    check_installed()


def check_on_cluster(spec: JobSpec, cluster: str) -> None:
    """Refuses it on several nodes of a cluster.

    Its launcher reaches other machines by ssh: past SLURM, and in Kubernetes that would take a
    server, keys and a shell in each pod, or an operator for MPI. On one node it works as anywhere.

    Args:
        spec: The job.
        cluster: Its kind, for the message.

    Raises:
        UsageError: that is what the job asks for.
    """
    if not isinstance(spec.program, JobFile) or spec.nodes.most == 1:
        return
    backend = tomllib.loads(spec.program.toml).get("parallel", {}).get("backend")
    if backend == "horovod":
        raise UsageError(
            f'parallel.backend is "horovod", and --nodes {spec.nodes}: on {cluster} it runs on '
            'one node alone. Set parallel.backend = "torch" (the bits are the same), or leave '
            "--nodes out"
        )
