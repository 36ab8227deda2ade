"""Stages that take no time, for tests of what runs them. Importable in the jobs' own processes."""

import os
import signal
import time
from pathlib import Path

from hpc_hipgen.files import write_atomic
from hpc_hipgen.pipeline import Item, Stage
from hpc_hipgen.run import Run
from hpc_hipgen.training.interruption import Interrupted

ITEMS = [("a", 0), ("a", 1), ("b", 0)]


def items(run: Run) -> list[Item] | None:
    """Known only when the first stage has run."""
    return ITEMS if run.done("first") else None


def artefact(run: Run, item: Item) -> Path:
    return run.path("out", f"{item[0]}-{item[1]}")


def first(run: Run) -> dict:
    print("first speaks")
    return {"value": 7}


def second(run: Run, word: str) -> None:
    print(f"second says {word}")
    for name in ("RANK", "WORLD_SIZE", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        print(f"{name}={os.environ.get(name)}")


def array(run: Run, todo: list[Item]) -> None:
    for item in todo:
        with run.path("array.log").open("a") as file:
            file.write(f"{item}\n")
        write_atomic(artefact(run, item), "x")


def lengths_of_secrets(run: Run) -> dict:
    return {"lengths": {n: len(os.environ.get(n, "")) for n in ("HF_TOKEN", "WANDB_API_KEY")}}


def broken(run: Run) -> None:
    print("about to break")
    raise RuntimeError("the loss is not finite")


def interrupted(run: Run, number: int) -> None:
    raise Interrupted("saved at 64 images", signal.Signals(number))


def terminated(run: Run) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def slow(run: Run) -> None:
    write_atomic(run.path("slow.pid"), str(os.getpid()))
    print("slow is working")
    time.sleep(60)


def saves(run: Run, name: str = "slow", deaf: float = 0.0) -> None:
    """As training does: saves at the end of a step, which takes a while; deaf before the first."""
    asked = []
    write_atomic(run.path(f"{name}.pid"), str(os.getpid()))
    time.sleep(deaf)
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    for _ in range(600):
        time.sleep(0.1)
        if asked:
            time.sleep(2)
            write_atomic(run.path(f"{name}.saved"), "")
            raise Interrupted("saved at 64 images", signal.SIGTERM)


def beside(run: Run, name: str, other: str) -> None:
    """Ends when the other one is at work, too."""
    write_atomic(run.path(f"{name}.threads"), os.environ.get("OMP_NUM_THREADS", ""))
    print(f"{name} waits for {other}")
    for _ in range(200):
        if run.path(f"{other}.threads").is_file():
            return
        time.sleep(0.1)
    raise RuntimeError(f"{other} was not started beside {name}")


def breaks_beside(run: Run) -> None:
    for _ in range(200):
        if run.path("slow.pid").is_file():
            raise RuntimeError("the loss is not finite")
        time.sleep(0.1)


GRAPH = [
    Stage("first", "fake_stages:first", "cpu"),
    Stage("second", "fake_stages:second", "train", ("first",), ("hello",)),
    Stage("array", "fake_stages:array", "gpu", ("first",), items=items, artefact=artefact),
]
FOLLOWED = [
    *GRAPH,
    Stage(
        "follower",
        "fake_stages:array",
        "gpu",
        ("second", "array"),
        items=lambda run: (found := items(run)) and [*found, ("c", 0)],
        artefact=lambda run, item: run.path("after", f"{item[0]}-{item[1]}"),
        follows="array",
    ),
]
BROKEN = [GRAPH[0], Stage("broken", "fake_stages:broken", "cpu", ("first",))]
BESIDE = [
    GRAPH[0],
    Stage("left", "fake_stages:beside", "cpu", ("first",), ("left", "right")),
    Stage("right", "fake_stages:beside", "cpu", ("first",), ("right", "left")),
    Stage("third", "fake_stages:beside", "cpu", ("first",), ("third", "left")),
    Stage("last", "fake_stages:beside", "cpu", ("left", "right", "third"), ("last", "left")),
]
SAVING_BESIDE = [
    GRAPH[0],
    Stage("train-other", "fake_stages:saves", "gpu", ("first",), ("other", 4.0), model="other"),
    Stage("train-slow", "fake_stages:saves", "gpu", ("first",), ("slow", 4.0), model="slow"),
    Stage("third", "fake_stages:first", "cpu", ("first",)),
]
BREAKS_BESIDE = [
    GRAPH[0],
    Stage("breaks", "fake_stages:breaks_beside", "cpu", ("first",)),
    Stage("train-slow", "fake_stages:saves", "gpu", ("first",), model="slow"),
    Stage("left", "fake_stages:beside", "cpu", ("first",), ("left", "right")),
]
SLOW = [GRAPH[0], Stage("slow", "fake_stages:slow", "cpu", ("first",))]
SAVING = [GRAPH[0], Stage("train-slow", "fake_stages:saves", "gpu", ("first",), model="slow")]
