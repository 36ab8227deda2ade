#!/usr/bin/env bash
#SBATCH --job-name=ruler
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=01:00:00
#SBATCH --output=slurm-%x-%j.out
#
# The ruler alone: trains the landmark network and reports the errors of its Norberg angles.
#
#   bash sbatch/ruler.sh                             on held-out phantoms
#   FILMS=folder bash sbatch/ruler.sh                on real films too: PNG, JPEG, TIFF, DICOM, landmarks.csv
#                                                    beside; they are measured, never trained on
#   RULER=results/llcm/ruler/export FILMS=folder bash sbatch/ruler.sh    with a ruler that is trained
#   FILMS=folder sbatch sbatch/ruler.sh KEY=VALUE    on a cluster; arguments are settings
#
# data.resolution and data.head_distance must be those that the ruler was trained with. The run is
# results/ruler-FOLDER; another ruler or other settings need another one: --run NAME.
set -euo pipefail

films=${FILMS:+$(realpath -m -- "$FILMS")} # before the folder changes
ruler=${RULER:+$(realpath -m -- "$RULER")}
# Slurm runs a copy of this script: then the clone is where sbatch was called
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
[[ -f $here/common.sh ]] || here=${HIPGEN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/sbatch
[[ -f $here/common.sh ]] || { echo "error: call sbatch in the clone, or set HIPGEN_ROOT" >&2 && exit 2; }
cd "$here/.."
# shellcheck source=sbatch/common.sh
. sbatch/common.sh

settings=()
if [[ -n $films ]]; then
    name=ruler-$(basename -- "$films" | tr -c 'A-Za-z0-9._\n-' '-')
    settings+=("evaluation.films=$films" "name=$name")
fi
if [[ -n $ruler ]]; then
    settings+=("ruler.pretrained=$ruler" data.views=1 data.warp=0 data.balance=0) # jittered views are for training
fi
# empty, it would count as unset before bash 4.4
launch "${CONFIG:-configs/ruler.yaml}" ${settings[@]+"${settings[@]}"} "$@"
