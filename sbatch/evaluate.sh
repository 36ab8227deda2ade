#!/usr/bin/env bash
#SBATCH --job-name=evaluate
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=01:00:00
#SBATCH --output=slurm-%x-%j.out
#
# Samples, measures and reports what an existing run has not yet; trains only what is missing.
#
#   bash sbatch/evaluate.sh                                    of results/llcm, as wherever no run comes first
#   sbatch sbatch/evaluate.sh results/mine --redo evaluate     of another run, measured again
#
# With a grid: a sweep over settings of sampling (and kept checkpoints), an array task for each cell.
#
#   sbatch sbatch/evaluate.sh results/mine model=[stable_diffusion,llcm] steps=[4,8] guidance=[1,1.5,2]
#   sbatch sbatch/evaluate.sh results/mine model=llcm --split even --name even      from tight hips to loose ones
#   "$(bash sbatch/environment.sh)" -m jobs.sweep --help       says what can be crossed
set -euo pipefail

# Slurm runs a copy of this script: then the clone is where sbatch was called
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
[[ -f $here/common.sh ]] || here=${HIPGEN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/sbatch
[[ -f $here/common.sh ]] || { echo "error: call sbatch in the clone, or set HIPGEN_ROOT" >&2 && exit 2; }
cd "$here/.."
# shellcheck source=sbatch/common.sh
. sbatch/common.sh

if [[ $# == 0 || $1 == -* || $1 == [a-z]*=* ]]; then
    set -- llcm "$@"
fi
set -- "$(from_caller "$1")" "${@:2}"
job=launch help=
for argument in "${@:2}"; do
    case $argument in
        [a-z]*=* | --name* | --split*) job=sweep ;;
        -h | --help) help=yes ;;
    esac
done
if [[ $help$job == yeslaunch ]]; then
    echo "sbatch/evaluate.sh [RUN] [options below]      what RUN (results/llcm) has not sampled or measured yet"
    echo "sbatch/evaluate.sh [RUN] key=[a,b] [...]      a sweep over settings of sampling: steps=[4] --help says more"
    echo
fi
run "$job" "$@"
