"""The commands: a module for each stage of a run, and for each other thing to do with runs.

`launch` starts the stages, whose graph is `hpc_hipgen.pipeline`; `status`, `tensorboard` and
`export` show what is there; `sweep`, `utility` and `solvers` compare; `measure` takes films of
anybody; `plan`, `prefetch`, `benchmark` and `gpu_check` are about the machine. A module holds a
command line and the functions that stages name; what modules share is in the library.
"""

import sys
from importlib.util import find_spec

if find_spec("submitit") is None:
    print(
        f"error: {sys.executable} is not the environment's python (it has no submitit). In the "
        'clone: PATH="$(dirname "$(bash sbatch/environment.sh)"):$PATH"; where HIPGEN_PYTHON is '
        "set, it must name a python with the packages of pyproject.toml",
        file=sys.stderr,
    )
    sys.exit(2)
