#!/usr/bin/env bash
#SBATCH --job-name=film_ruler
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=01:00:00
#SBATCH --output=slurm-%x-%j.out
#
# The ruler for whole films: draws scenes, trains the networks that find and measure hips on them,
# and calibrates their uncertainty on held-out phantoms. No film is trained on.
#
#   bash sbatch/film_ruler.sh              then: python -m jobs.measure FILES...
#   sbatch sbatch/film_ruler.sh KEY=VALUE  on a cluster; arguments are settings
set -euo pipefail

# Slurm runs a copy of this script: then the clone is where sbatch was called
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
[[ -f $here/common.sh ]] || here=${HIPGEN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/sbatch
[[ -f $here/common.sh ]] || { echo "error: call sbatch in the clone, or set HIPGEN_ROOT" >&2 && exit 2; }
cd "$here/.."
# shellcheck source=sbatch/common.sh
. sbatch/common.sh

launch "${CONFIG:-configs/film_ruler.yaml}" "$@"
