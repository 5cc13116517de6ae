#!/bin/bash
# Fills an array by one job. The job requeues itself before its time limit, until all is done:
#
#     sbatch requeue.sh
#
# docs/batch_systems.md explains it, line by line.
#SBATCH --job-name=flowmap
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --cpus-per-task=8
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append

# The array, on a file system that all nodes see.
array=sweep.npy
job=(--shape 1000000 --dtype '<f8' --segments 64 --filler random --arguments seed=1)

ending=
trap 'ending=yes; [ -z "$fill" ] || kill -USR1 "$fill"' USR1
trap : TERM # `scancel`, and the time limit, send it to flowmap, too

flowmap alloc "$array" "${job[@]}" || exit

flowmap fill "$array" --workers "${SLURM_CPUS_PER_TASK:-1}" &
fill=$!
while # a signal ends the wait, not the fill
  wait "$fill"
  code=$?
  kill -0 "$fill" 2>/dev/null
do :; done

if [ "$code" -ne 0 ]; then
  [ -z "$ending" ] || scontrol requeue "$SLURM_JOB_ID"
  exit "$code"
fi
flowmap validate "$array"
