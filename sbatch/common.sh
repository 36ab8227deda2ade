# shellcheck shell=bash
# Sourced by the scripts beside it, from the root of the clone: finds the python and starts a module.

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 # compute nodes have no internet
# ~/.local would come before the packages of conda or of a container
export PYTHONNOUSERSITE=${PYTHONNOUSERSITE-1}
# modules that are loaded put packages there, which would hide those of our own environment
export PYTHONPATH=$PWD${HIPGEN_PYTHON:+${PYTHONPATH:+:$PYTHONPATH}}

from_caller() { # from_caller PATH: a run or a file of the folder in which the script was called, or PATH as it is
    local there=$OLDPWD/$1
    if [[ $1 != /* && (-f $there || -f $there/config.yaml) ]]; then
        echo "$there"
    else
        echo "$1"
    fi
}
if [[ -n ${CONFIG:-} ]]; then
    CONFIG=$(from_caller "$CONFIG")
fi
if [[ ${HIPGEN_SITE:-} == *.yaml || ${HIPGEN_SITE:-} == *.yml ]]; then # else a name, maybe that of a run as well
    HIPGEN_SITE=$(from_caller "$HIPGEN_SITE")
    export HIPGEN_SITE
fi

if [[ ${0##*/} == slurm_script ]]; then # Slurm's copy: a job that is to submit others, not to do their work
    export HIPGEN_SUBMITS=1
fi

run() { # run MODULE ARGUMENTS...: python -m jobs.MODULE, in place of this shell
    local python module=$1
    shift
    python=$(bash sbatch/environment.sh)
    exec "$python" -m "jobs.$module" "$@"
}

launch() { run launch "$@"; }
