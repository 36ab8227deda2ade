#!/usr/bin/env bash
#SBATCH --job-name=dreambooth
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=01:00:00
#SBATCH --output=slurm-%x-%j.out
#
# DreamBooth: radiographs -> ruler, autoencoder, probe, teacher -> subjects of a few films -> samples -> report.
# Arguments and variables as for llcm.sh.
#
#   bash sbatch/dreambooth.sh        sbatch sbatch/dreambooth.sh
# Another base, films of your own: configs/dreambooth.yaml says how.
set -euo pipefail

# Slurm runs a copy of this script: then the clone is where sbatch was called
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
[[ -f $here/common.sh ]] || here=${HIPGEN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/sbatch
[[ -f $here/common.sh ]] || { echo "error: call sbatch in the clone, or set HIPGEN_ROOT" >&2 && exit 2; }
cd "$here/.."
# shellcheck source=sbatch/common.sh
. sbatch/common.sh

launch "${CONFIG:-configs/dreambooth.yaml}" "$@"
