#!/usr/bin/env bash
#SBATCH --job-name=lab_ruler
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=02:00:00
#SBATCH --output=slurm-%x-%j.out
#
# The film ruler on a lab's own films: goes on from the ruler that was trained on drawings, the one in
# results/reference, says by cross-validation over dogs how far it is from the annotators, before and
# after, and trains the ruler that `python -m jobs.measure --ruler` then uses on all films.
#
#   FILMS=folder bash sbatch/lab_ruler.sh               PNG, JPEG, TIFF or DICOM, landmarks.csv beside
#   RULER=folder FILMS=folder bash sbatch/lab_ruler.sh  from another ruler: film_ruler/export of a run
#   FILMS=folder sbatch sbatch/lab_ruler.sh KEY=VALUE   on a cluster; arguments are settings
#
# The run is results/lab_ruler-FOLDER; other settings need another one: --run NAME.
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
    name=lab_ruler-$(basename -- "$films" | tr -c 'A-Za-z0-9._\n-' '-')
    settings+=("lab_ruler.films=$films" "name=$name")
fi
[[ -z $ruler ]] || settings+=("film_ruler.pretrained=$ruler")
# empty, it would count as unset before bash 4.4
launch "${CONFIG:-configs/lab_ruler.yaml}" ${settings[@]+"${settings[@]}"} "$@"
