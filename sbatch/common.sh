# shellcheck shell=bash
# Sourced by the scripts beside it, from the root of the clone: finds the python and starts a launch.

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 # compute nodes have no internet
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

launch() { # launch ARGUMENTS...: python -m jobs.launch, in place of this shell
    local python
    python=$(bash sbatch/environment.sh)
    exec "$python" -m jobs.launch "$@"
}
