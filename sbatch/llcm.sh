#!/usr/bin/env bash
#SBATCH --job-name=llcm
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=01:00:00
#SBATCH --output=slurm-%x-%j.out
#
# The main job: radiographs -> ruler, autoencoder, Stable Diffusion, LLCM -> samples -> report.
#
#   bash sbatch/llcm.sh                    here; where a Slurm answers, through it, unless HIPGEN_SITE=local
#   sbatch sbatch/llcm.sh                  on a cluster: this small job submits the stages and ends
#   ... sbatch/llcm.sh --run mine data.train=64    arguments are settings, and options of jobs.launch (--dry-run)
#   CONFIG=configs/NAME.yaml bash ...      another experiment
#   HIPGEN_SITE=a100 sbatch ...            another site file of configs/site/
#
# To go on after an interruption, run the same command again.
set -euo pipefail

# Slurm runs a copy of this script: then the clone is where sbatch was called
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
[[ -f $here/common.sh ]] || here=${HIPGEN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/sbatch
[[ -f $here/common.sh ]] || { echo "error: call sbatch in the clone, or set HIPGEN_ROOT" >&2 && exit 2; }
cd "$here/.."
# shellcheck source=sbatch/common.sh
. sbatch/common.sh

launch "${CONFIG:-configs/llcm.yaml}" "$@"
