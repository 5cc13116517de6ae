#!/bin/bash
# Fills an array by a job array, a share of its segments in each task, and validates it:
#
#     bash array-job.sh
#
# The same again continues where tasks failed. docs/batch_systems.md explains it, line by line.
#SBATCH --job-name=flowmap
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --output=%x-%A-%a.out
#SBATCH --open-mode=append

# The array, on a file system that all nodes see.
array=sweep.npy
job=(--shape 1000000 --dtype '<f8' --segments 64 --filler random --arguments seed=1)
shares=16

if [ -z "$SLURM_ARRAY_TASK_ID" ]; then # not in a task: allocate once, and submit
  flowmap alloc "$array" "${job[@]}" || exit
  tasks=$(sbatch --parsable --array="1-$shares" "$0") || exit
  echo "Job $tasks fills the shares."
  exec sbatch --dependency="afterok:$tasks" --kill-on-invalid-dep=yes --time=01:00:00 \
    --job-name=flowmap-validate --wrap "flowmap validate '$array'"
fi

ending=
trap 'ending=yes; [ -z "$fill" ] || kill -USR1 "$fill"' USR1
trap : TERM # `scancel`, and the time limit, send it to flowmap, too

flowmap fill "$array" --segment "$SLURM_ARRAY_TASK_ID-of-$shares" &
fill=$!
while # a signal ends the wait, not the fill
  wait "$fill"
  code=$?
  kill -0 "$fill" 2>/dev/null
do :; done

if [ -n "$ending" ] && [ "$code" -ne 0 ]; then
  # Not SLURM_JOB_ID, which in one of the tasks is the number of the whole array.
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
