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
#   bash sbatch/evaluate.sh                                    of results/llcm
#   sbatch sbatch/evaluate.sh results/mine --redo evaluate     of another run, measured again
set -euo pipefail

# Slurm runs a copy of this script: then the clone is where sbatch was called
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
[[ -f $here/common.sh ]] || here=${HIPGEN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/sbatch
[[ -f $here/common.sh ]] || { echo "error: call sbatch in the clone, or set HIPGEN_ROOT" >&2 && exit 2; }
cd "$here/.."
# shellcheck source=sbatch/common.sh
. sbatch/common.sh

if [[ $# == 0 || $1 == -* ]]; then
    set -- llcm "$@"
fi
launch "$@"
