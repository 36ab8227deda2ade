#!/usr/bin/env bash
#SBATCH --job-name=tensorboard
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=08:00:00
#SBATCH --output=slurm-%x-%j.out
#
# TensorBoard, with the ssh line that brings it to your own machine. It ends with the job.
#
#   bash sbatch/tensorboard.sh                   of all runs, on this machine
#   sbatch sbatch/tensorboard.sh results/llcm    of one run, on a compute node: the line to paste is
#                                                in slurm-tensorboard-JOB.out a few seconds later
set -euo pipefail

# Slurm runs a copy of this script: then the clone is where sbatch was called
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
[[ -f $here/common.sh ]] || here=${HIPGEN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/sbatch
[[ -f $here/common.sh ]] || { echo "error: call sbatch in the clone, or set HIPGEN_ROOT" >&2 && exit 2; }
cd "$here/.."
# shellcheck source=sbatch/common.sh
. sbatch/common.sh

runs=()
for argument in "$@"; do
    runs+=("$(from_caller "$argument")")
done
# empty, it would count as unset before bash 4.4
run tensorboard ${runs[@]+"${runs[@]}"}
