#!/bin/bash
# Predicts one output by an array of Slurm jobs. Plan it once, where the files are visible to all nodes:
#     voxpatch plan job.json --tasks 32 -- scan.zarr organs.zarr --patch-size 128 --model unet.onnx --reduce argmax
#     sbatch examples/slurm_array.sh job.json
# The last task publishes the output. Tasks that were lost or preempted are queued again, and continue.
#SBATCH --array=0-31
#SBATCH --cpus-per-task=4
#SBATCH --mem=4G
#SBATCH --requeue
set -euo pipefail

voxpatch run-task "$1" "$SLURM_ARRAY_TASK_ID" --threads "${SLURM_CPUS_PER_TASK:-1}"
