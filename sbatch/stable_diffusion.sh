#!/usr/bin/env bash
#SBATCH --job-name=stable_diffusion
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=01:00:00
#SBATCH --output=slurm-%x-%j.out
#
# Only the teacher: as llcm.sh, without every other generator of the experiment (another one: CONFIG). Arguments are
# settings, as there. The run is results/stable_diffusion whatever CONFIG says; --run names another one.
#
#   bash sbatch/stable_diffusion.sh        sbatch sbatch/stable_diffusion.sh
set -euo pipefail

# Slurm runs a copy of this script: then the clone is where sbatch was called
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
[[ -f $here/common.sh ]] || here=${HIPGEN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/sbatch
[[ -f $here/common.sh ]] || { echo "error: call sbatch in the clone, or set HIPGEN_ROOT" >&2 && exit 2; }
cd "$here/.."
# shellcheck source=sbatch/common.sh
. sbatch/common.sh

others=(stable_diffusion_caption llcm llcm_paper llcm_ddim lora lcm_lora dreambooth
  discrete_vae dall_e clip prior unclip)
launch "${CONFIG:-configs/stable_diffusion.yaml}" name=stable_diffusion "${others[@]/%/=null}" "$@"
