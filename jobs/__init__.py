"""The commands: a module for each stage of a run, and for each other thing to do with runs.

`launch` starts the stages, whose graph is `hpc_hipgen.pipeline`; `status`, `tensorboard` and
`export` show what is there; `sweep`, `utility` and `solvers` compare; `measure` takes films of
anybody; `plan`, `prefetch`, `benchmark` and `gpu_check` are about the machine. A module holds a
command line and the functions that stages name; what modules share is in the library.
"""
