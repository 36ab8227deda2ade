# shellcheck shell=bash
# Sourced by the scripts beside it, from the root of the clone: finds the python and starts a module.

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 # compute nodes have no internet
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

run() { # run MODULE ARGUMENTS...: python -m jobs.MODULE, in place of this shell
    local python module=$1
    shift
    python=$(bash sbatch/environment.sh)
    exec "$python" -m "jobs.$module" "$@"
}

launch() { run launch "$@"; }
