"""Python processes for tests that need one of their own, which begin with the packages loaded.

One that loads torch, diffusers and DeepSpeed by itself takes ten seconds to begin. These part from
a server (`multiprocessing`, "forkserver") that has loaded them once, and nothing of this project.
"""

import multiprocessing
import os
import runpy
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

PACKAGES = [
    "deepspeed",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "torch._dynamo",  # an optimizer loads it
]

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(PACKAGES)


@dataclass
class WarmPython:
    """A process that has begun.

    Attributes:
        process: as multiprocessing has it.
        output: file of its standard output and error.
    """

    process: multiprocessing.Process
    output: Path

    def finish(self, timeout: float = 240) -> tuple[int, str]:
        """Waits for its end; returns exit status and output."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            return -9, f"took more than {timeout} seconds\n{self.output.read_text()}"
        return self.process.exitcode, self.output.read_text()


def warm_python(script, *arguments, output, variables=None, path=()) -> WarmPython:
    """Starts what `python SCRIPT ARGUMENTS` or, where `script` is no path, `python -c` would.

    `output` is the file for what it says, `variables` are beside this process's, `path` holds the
    folders from which it may load code beside the packages.
    """
    given = (script, [str(a) for a in arguments], str(output), dict(os.environ))
    process = _server.Process(target=_run, args=(*given, variables or {}, [str(p) for p in path]))
    process.start()
    return WarmPython(process, Path(output))


def warm_ranks(script, *arguments, folder, path=(), ranks=2) -> None:
    """Runs a script as so many ranks that meet on this machine's CPUs, and sees that all end well.

    What each says is in `folder`; other arguments as of `warm_python`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    meeting = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    meeting["CUDA_VISIBLE_DEVICES"] = ""
    processes = [
        warm_python(
            script, *arguments,
            output=folder / f"rank-{rank}.txt",
            variables=meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            path=path,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    ends, said = zip(*(process.finish() for process in processes), strict=True)
    assert set(ends) == {0}, "\n".join(said)


def _run(script, arguments, output, environment, variables, path):
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(environment | variables)
    installed = [p for p in sys.path if Path(p).is_relative_to(sys.prefix)]
    standard = [p for p in sys.path if Path(p).is_relative_to(sys.base_prefix)]
    sys.path[:] = [*path, *dict.fromkeys(standard + installed)]
    sys.argv[:] = [str(script) if isinstance(script, Path) else "-c", *arguments]
    if isinstance(script, Path):
        runpy.run_path(str(script), run_name="__main__")
    else:
        exec(compile(script, "<string>", "exec"), {"__name__": "__main__"})
