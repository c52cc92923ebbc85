"""From a job to the script that `sbatch` is given; pure text.

The script starts one launcher a node and decides, by how they end, whether the job goes back into
the queue:

srun -> launcher of node 0 -> its workers        exit code, or that of the batch script
     -> launcher of node 1 -> its workers        0       done
                                                 75      saved: `scontrol requeue`
                                                 69      lost: the same, so and so often
                                                 others  end the job
"""

import shlex
import tomllib
from collections.abc import Iterator

from distrain.errors import ExitCode, UsageError
from launch.horovod.rules import check_on_cluster
from launch.job_spec import JobFile, JobSpec, node_command
from launch.slurm.options import SlurmOptions, cores, mebibytes, warning_s

_JOB = "/dev/stdin"
"""`srun` hands its own to every launcher, so that no file has to lie where all nodes find it."""

_RENDEZVOUS = '"$RENDEZVOUS"'
_NODE_RANK = '"$SLURM_NODEID"'
_SEED = '"$SLURM_ARRAY_TASK_ID"'

_SIGNALLED = (128 + 9, 128 + 10, 128 + 15)
"""A launcher that was killed, or that SIGUSR1 or SIGTERM has ended before it took them."""

_FIRST = """\
# One launcher of distrain on each node; see docs/slurm.md.
"""

_PLACE = """\
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RENDEZVOUS="$first:$((10000 + SLURM_JOB_ID % 20000))"
"""

_BEFORE = """\
# A SIGTERM for this script says that SLURM ends the job: it is cancelled, or
# preempted. The launchers are told as well, and what comes then is SLURM's to say.
ended=
trap 'ended=1' TERM

# In a process group of its own: srun takes a SIGTERM for an order to force the
# launchers' end, and they are to have time to save.
set -m
"""

_AFTER = """\
launchers=$!
set +m
while kill -0 "$launchers" 2>/dev/null; do wait "$launchers"; done
wait "$launchers"
code=$?
[ -z "$ended" ] || exit "$code"
"""

_SETUP = """\
# As --setup had it; the shell's options are as before afterwards.
settings=$(set +o)
source /dev/stdin {text}
code=$?
eval "$settings"
if ((code != 0)); then
  echo "distrain: what --setup gave has ended with $code" >&2
  exit {config}
fi
"""

_AGAIN = """\
again() {{
  echo "distrain: $1, and the job goes back into the queue" >&2
  scontrol requeue "$SLURM_JOB_ID" || [ -n "$ended" ] ||
    echo "distrain: it does not; submitted again, the run goes on" >&2
}}

case $code in
{stopped})
  again "all is saved"
  ;;
{lost})
  times=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %k)
  times=${{times#distrain-lost-}}
  [[ $times =~ ^[0-9]+$ ]] || times=0
  if ((times < {most})); then
    times=$((times + 1))
    for _ in 1 2 3 4 5; do  # it may be refused for a moment
      scontrol update "JobId=$SLURM_JOB_ID" "Comment=distrain-lost-$times" && break
      sleep 1
    done
    again "loss $times of {most}"
  fi
  ;;
esac
exit "$code"
"""


def render(spec: JobSpec, options: SlurmOptions) -> str:
    """The script.

    Raises:
        UsageError: SLURM has nothing that stands for what is asked.
    """
    options.check_time(spec.grace_s)
    check_on_cluster(spec, "SLURM")
    if options.seeds is not None and not isinstance(spec.program, JobFile):
        raise UsageError("--seeds are those of a job file; submit a script once for each seed")
    lines = "".join(f"#SBATCH --{line}\n" for line in _directives(spec, options))
    exports = "".join(f"export {name}={_word(text)}\n" for name, text in spec.environment.items())
    return "\n".join(
        part
        for part in (
            f"#!/bin/bash\n{lines}",
            _FIRST + exports,
            _setup(options.setup) if options.setup else "",
            _PLACE if spec.nodes.most > 1 else "",
            _node_function(spec, options),
            f"{_BEFORE}{_step(spec, options)}{_AFTER}",
            _again(spec),
        )
        if part
    )


def log_of(spec: JobSpec, options: SlurmOptions) -> str:
    """Where the job's output goes, as SLURM writes it."""
    if options.output is not None:
        return options.output
    return f"{spec.name}-%A-seed-%a.log" if options.seeds is not None else f"{spec.name}-%j.log"


def _directives(spec: JobSpec, options: SlurmOptions) -> Iterator[str]:
    yield from options.sbatch  # first: of a setting that is given twice, the last one holds
    yield f"job-name={spec.name}"
    yield f"nodes={str(spec.nodes).replace(':', '-')}"
    if not spec.nodes.is_elastic:  # told so, SLURM 22.05 gives a range's fewest nodes alone
        yield "ntasks-per-node=1"
    asked = {
        "cpus-per-task": cores(spec.resources, spec.workers),
        "mem": None if (memory := mebibytes(spec.resources)) is None else f"{memory}M",
        "gpus-per-node": spec.resources.gpus or None,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "time": options.time,
        "constraint": options.constraint,
        "array": options.seeds,
    }
    yield from (f"{name}={value}" for name, value in asked.items() if value is not None)
    yield f"output={log_of(spec, options)}"
    yield "open-mode=append"
    yield "requeue"
    yield f"signal=TERM@{warning_s(spec.grace_s)}"
    yield "export=ALL"
    if spec.nodes.is_elastic:
        yield "no-kill"


def _node_function(spec: JobSpec, options: SlurmOptions) -> str:
    """What runs on each node, `srun` having set the node's number."""
    words = [_word(word) for word in node_command(spec, node_rank="", host="", job=_JOB)]
    for option, value in (("--node-rank", _NODE_RANK), ("--rendezvous", _RENDEZVOUS)):
        if spec.nodes.most > 1:
            words[words.index(option) + 1] = value
    if options.seeds is not None and isinstance(spec.program, JobFile):
        folder = tomllib.loads(spec.program.toml)["run"]["dir"]
        words += ["--run.seed", _SEED, "--run.dir", f"{_word(folder)}/seed-{_SEED}"]
    return f"node() {{\n  exec {_in_lines(words)}\n}}\n"


def _in_lines(words: list[str]) -> str:
    """Each option on a line of its own."""
    text = words[0]
    for word in words[1:]:
        text += f" \\\n    {word}" if word.lstrip("'").startswith("--") else f" {word}"
    return text


def _step(spec: JobSpec, options: SlurmOptions) -> str:
    """Starts the launchers.

    One that ends early must not take the others with it while they save, as --kill-on-bad-exit
    does: they learn of it by the rendezvous. Where all nodes are needed, none waits for long.
    """
    wait_s = 0 if spec.nodes.is_elastic else warning_s(spec.grace_s)
    words = [_word(f"--{each}") for each in options.srun]
    words += ['--nodes="$SLURM_JOB_NUM_NODES"', "--ntasks-per-node=1", "--export=ALL"]
    number = cores(spec.resources, spec.workers)
    words += [] if number is None else [f"--cpus-per-task={number}"]
    words += ["--kill-on-bad-exit=0", f"--wait={wait_s}"]
    words += ["--no-kill"] if spec.nodes.is_elastic else []
    command = f'{_in_lines(["srun", *words])} \\\n    bash -c "$(declare -f node); node"'
    if isinstance(spec.program, JobFile):
        return f"{command} {_input('JOB', spec.program.toml, ' &')}\n"
    return f"{command} </dev/null &\n"


def _setup(text: str) -> str:
    return _SETUP.format(text=_input("SETUP", text), config=int(ExitCode.CONFIG))


def _input(end: str, text: str, then: str = "") -> str:
    """What a command reads: the text as it stands, nothing in it having a meaning to a shell."""
    lines = text.rstrip("\n").split("\n")
    while end in lines:
        end += "_"
    return "\n".join([f"<<'{end}'{then}", *lines, end])


def _again(spec: JobSpec) -> str:
    """What becomes of the job by its exit code."""
    lost = [*sorted(spec.retried - {ExitCode.STOPPED}), *_SIGNALLED]
    return _AGAIN.format(
        stopped=int(ExitCode.STOPPED), lost=" | ".join(map(str, lost)), most=spec.node_retries
    )


def _word(text: str) -> str:
    """A word of the script for a shell: the one place where that is quoted.

    `sbatch` refuses scripts with the line ends of DOS, wherever in them they stand.
    """
    if "\r" not in text:
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\r", "\\r")
    return f"$'{escaped}'"
