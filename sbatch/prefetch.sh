#!/usr/bin/env bash
# Fetches published weights (Stable Diffusion 1.5, CLIP, Inception) into weights/: on the login node,
# with bash. The only thing here that uses the network; afterwards every job runs without.
#
#   bash sbatch/prefetch.sh                            all that are known, about 6.1 GB
#   bash sbatch/prefetch.sh configs/llcm_a100.yaml     what one experiment needs
#   HIPGEN_WEIGHTS=/scratch/me/weights bash ...        elsewhere; weights/ becomes a link to it
#   bash sbatch/prefetch.sh --help                     more
set -euo pipefail

cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/.."
# shellcheck source=sbatch/common.sh
. sbatch/common.sh

run prefetch "$@"
