#!/bin/bash
#SBATCH --job-name=digits
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --output=digits-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@45
#SBATCH --export=ALL

# One launcher of distrain on each node; see docs/slurm.md.

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RENDEZVOUS="$first:$((10000 + SLURM_JOB_ID % 20000))"

node() {
  exec distrain launch \
    --nodes 2 \
    --node-rank "$SLURM_NODEID" \
    --rendezvous "$RENDEZVOUS" \
    --workers 1 \
    --max-restarts 10 \
    -- train.py \
    --epochs 3
}

# A SIGTERM for this script says that SLURM ends the job: it is cancelled, or
# preempted. The launchers are told as well, and what comes then is SLURM's to say.
ended=
trap 'ended=1' TERM

# In a process group of its own: srun takes a SIGTERM for an order to force the
# launchers' end, and they are to have time to save.
set -m
srun \
    --nodes="$SLURM_JOB_NUM_NODES" \
    --ntasks-per-node=1 \
    --export=ALL \
    --cpus-per-task=1 \
    --kill-on-bad-exit=0 \
    --wait=45 \
    bash -c "$(declare -f node); node" </dev/null &
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
