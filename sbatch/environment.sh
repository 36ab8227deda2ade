#!/usr/bin/env bash
# Prints the python to use; builds the environment of requirements.lock first when it is missing.
#
#   HIPGEN_PYTHON=/path/to/python   use this one (a conda environment, a module, a container); nothing is built
#   HIPGEN_ENV=/shared/disk/mine    the folder in which to build env-<hash of the lock>; default: ~/.cache/hpc_hipgen
#
# The environment holds packages only, not this project, so all clones with the same lock share it.
# A marker file is written last: an interrupted installation is thrown away and done again. One that is
# complete is never thrown away: jobs may work with it, also when the lock of a clone has changed.
set -euo pipefail
shopt -s inherit_errexit 2> /dev/null || true # $(...) stops at its first error too, from bash 4.4 on

unset CDPATH # with it, cd prints where it went
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lock=$root/requirements.lock

say() { echo "environment: $*" >&2; }
die() {
    say "$*"
    exit 2
}

usable() { # usable PYTHON: it starts, is 3.11 or 3.12, and can make environments
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
        > /dev/null 2>&1
}

base_python() { # the first python on the path that will do
    local name
    for name in python3 python3.12 python3.11 python; do
        if command -v "$name" > /dev/null && usable "$name"; then
            command -v "$name"
            return
        fi
    done
    die "no python 3.11 or 3.12 with venv on the path (found: $(python3 --version 2>&1 || true));" \
        "on Debian or Ubuntu: apt-get install python3 python3-venv; on a cluster: module load python/3.11;" \
        "or with conda: conda env create -f environment.yml && conda activate hpc_hipgen" \
        "&& export HIPGEN_PYTHON=\$(command -v python)"
}

exclusively() { # exclusively FILE: two clones may start at once; the second waits for the first
    command -v flock > /dev/null || return 0
    exec 9> "$1"
    flock 9 || say "no file locks on this disk: start only one of these at a time"
}

find_uv() { # find_uv PYTHON: uv on the path, or one installed beside our environments
    if command -v uv > /dev/null && uv --version > /dev/null 2>&1; then
        command -v uv
        return
    fi
    local tools=$cache/uv
    exclusively "$tools.lock"
    if ! "$tools/bin/uv" --version > /dev/null 2>&1; then
        say "installing uv into $tools"
        rm -rf "$tools"
        { "$1" -m venv "$tools" && "$tools/bin/python" -m pip install --quiet --disable-pip-version-check uv; } >&2 ||
            die "uv could not be installed (above); run \`make env\` where there is internet"
    fi
    echo "$tools/bin/uv"
}

if [[ -n ${HIPGEN_PYTHON:-} ]]; then
    command -v "$HIPGEN_PYTHON" > /dev/null || die "HIPGEN_PYTHON=$HIPGEN_PYTHON is not a program"
    command -v "$HIPGEN_PYTHON"
    exit
fi
[[ -n ${HOME:-}${HIPGEN_ENV:-} ]] || die "HOME is not set; set it, or HIPGEN_ENV or HIPGEN_PYTHON"
cache=${HOME:-$(dirname "${HIPGEN_ENV:-}")}/.cache/hpc_hipgen
hash_of_lock=$(sha256sum "$lock" | cut -c 1-12)
environment=${HIPGEN_ENV:-$cache}/env-$hash_of_lock
before=${HIPGEN_ENV:+$HIPGEN_ENV/hpc_hipgen.complete} # of one that lies in HIPGEN_ENV itself, as it once did
if [[ -n $before && -f $before && $(< "$before") == "$hash_of_lock" ]]; then
    environment=$HIPGEN_ENV
fi
marker=$environment/hpc_hipgen.complete
started=$environment/hpc_hipgen.started
compiled=$environment/hpc_hipgen.compiled

complete() { [[ -f $marker && -x $environment/bin/python ]]; }

build() {
    local python uv
    if [[ -f $marker ]]; then
        die "$environment is complete, but its python does not start here; load the module that it was built with," \
            "or remove that folder and run \`make env\` again"
    fi
    if [[ -n $before && -x $HIPGEN_ENV/bin/python && ! -f $before && ! -f $HIPGEN_ENV/hpc_hipgen.started ]]; then
        die "HIPGEN_ENV=$HIPGEN_ENV is an environment that this script did not make; name a folder for those that" \
            "it makes, or set HIPGEN_PYTHON=$HIPGEN_ENV/bin/python to use this one as it is"
    fi
    # uv keeps what it has fetched, some 8 GB, in the home, unless the environment is elsewhere
    [[ -z ${HIPGEN_ENV:-} ]] || export UV_CACHE_DIR=${UV_CACHE_DIR:-$(dirname "$environment")/uv-cache}
    python=$(base_python)
    uv=$(find_uv "$python")
    # throw away only what this script began
    if [[ -e $environment && -n $(ls -A "$environment") && ! -f $started ]]; then
        die "$environment exists and was not made by this script; remove it, or name another folder: HIPGEN_ENV"
    fi
    say "building $environment from requirements.lock (about 8 GB; minutes)"
    rm -rf "$environment"
    mkdir -p "$environment"
    touch "$started"
    "$python" -m venv "$environment" >&2
    "$uv" pip sync --python "$environment/bin/python" "$lock" >&2 ||
        die "the installation failed (above); run the same command again to go on"
    echo "$hash_of_lock" > "$marker.new"
    mv "$marker.new" "$marker"
    say "complete"
}

compile() { # uv leaves that to the first import, which cannot where the folder is not to be written to; -j: a login node
    say "compiling its packages, so that every start takes half the time (a minute or two)"
    "$environment/bin/python" -m compileall -q -j 4 "$environment/lib" > /dev/null 2>&1 || true
    touch "$compiled"
}

if ! { complete && [[ -f $compiled ]]; }; then
    mkdir -p "$cache" "$(dirname "$environment")"
    exclusively "$environment.lock"
    complete || build
    [[ -f $compiled ]] || compile
fi
echo "$environment/bin/python"
