#!/bin/bash
#SBATCH --reservation=spring
#SBATCH --exclusive
#SBATCH --gres=nvme:1
#SBATCH --job-name=digits
#SBATCH --nodes=2-4
#SBATCH --cpus-per-task=64
#SBATCH --mem=524288M
#SBATCH --gpus-per-node=8
#SBATCH --partition=gpu,long
#SBATCH --account=lab
#SBATCH --qos=high
#SBATCH --time=2-00:00:00
#SBATCH --constraint=a100&nvlink
#SBATCH --output=logs/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@106
#SBATCH --export=ALL
#SBATCH --no-kill

# One launcher of distrain on each node; see docs/slurm.md.
export NCCL_DEBUG=INFO
export NOTE='it'"'"'s; $(mine)
all'

# As --setup had it; the shell's options are as before afterwards.
settings=$(set +o)
source /dev/stdin <<'SETUP'
module load cuda
source venv/bin/activate
SETUP
code=$?
eval "$settings"
if ((code != 0)); then
  echo "distrain: what --setup gave has ended with $code" >&2
  exit 78
fi

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RENDEZVOUS="$first:$((10000 + SLURM_JOB_ID % 20000))"

node() {
  exec distrain train /dev/stdin \
    --nodes 2:4 \
    --node-rank "$SLURM_NODEID" \
    --rendezvous "$RENDEZVOUS" \
    --workers 8 \
    --max-restarts 10
}

# A SIGTERM for this script says that SLURM ends the job: it is cancelled, or
# preempted. The launchers are told as well, and what comes then is SLURM's to say.
ended=
trap 'ended=1' TERM

# In a process group of its own: srun takes a SIGTERM for an order to force the
# launchers' end, and they are to have time to save.
set -m
srun \
    --cpu-bind=none \
    '--container-image=it'"'"'s/mine' \
    --nodes="$SLURM_JOB_NUM_NODES" \
    --ntasks-per-node=1 \
    --export=ALL \
    --cpus-per-task=64 \
    --kill-on-bad-exit=0 \
    --wait=0 \
    --no-kill \
    bash -c "$(declare -f node); node" <<'JOB' &
[data]
path = "shards/it's \"$HOME\""

[run]
dir = "runs/of mine"
JOB
launchers=$!
set +m
while kill -0 "$launchers" 2>/dev/null; do wait "$launchers"; done
wait "$launchers"
code=$?
[ -z "$ended" ] || exit "$code"

again() {
  echo "distrain: $1, and the job goes back into the queue" >&2
  scontrol requeue "$SLURM_JOB_ID" || [ -n "$ended" ] ||
    echo "distrain: it does not; submitted again, the run goes on" >&2
}

case $code in
75)
  again "all is saved"
  ;;
69 | 137 | 138 | 143)
  times=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %k)
  times=${times#distrain-lost-}
  [[ $times =~ ^[0-9]+$ ]] || times=0
  if ((times < 10)); then
    times=$((times + 1))
    for _ in 1 2 3 4 5; do  # it may be refused for a moment
      scontrol update "JobId=$SLURM_JOB_ID" "Comment=distrain-lost-$times" && break
      sleep 1
    done
    again "loss $times of 10"
  fi
  ;;
esac
exit "$code"
