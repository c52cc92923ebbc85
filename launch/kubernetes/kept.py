"""Whether what a run leaves outlives its pods."""

import tomllib
from posixpath import join, normpath

from distrain.errors import UsageError
from launch.job_spec import WORKSPACE, JobFile, JobSpec, Volume


def check_kept(spec: JobSpec) -> list[str]:
    """Refuses a job whose run would be gone with a pod; gives what a person should know besides.

    Of a script nothing is known: it has to write to a claim by itself.

    Raises:
        UsageError: the run's folder is on no claim. `checkpoint.store` is not enough: a new pod
            that finds no folder begins another run.
    """
    if not isinstance(spec.program, JobFile):
        return []
    job = tomllib.loads(spec.program.toml)
    run, data = _absolute(job["run"]["dir"]), _absolute(job["data"]["path"])
    volume = _volume_of(spec, run)
    if volume is None or volume.claim is None or volume.read_only:
        raise UsageError(
            f"run.dir is {run}, which is on no claim that may be written to: the run would be lost "
            f"with its pod. Give --runs CLAIM and a run.dir below {WORKSPACE}/runs, or --volume "
            "CLAIM:PATH and a run.dir there"
        )
    if _volume_of(spec, data) is None:
        return [f"data.path is {data}, which is on no volume: it has to be in the image"]
    return []


def _absolute(path: str) -> str:
    return normpath(join(WORKSPACE, path))


def _volume_of(spec: JobSpec, path: str) -> Volume | None:
    """The volume that a path lies on: the innermost."""
    found = [
        volume for volume in spec.volumes if f"{path}/".startswith(f"{normpath(volume.path)}/")
    ]
    return max(found, key=lambda volume: len(normpath(volume.path)), default=None)
