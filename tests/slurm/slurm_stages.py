"""Stages for tests of jobs: a toy training that can be made slow, and an array of small items."""

import atexit
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from hpc_hipgen.files import write_atomic
from hpc_hipgen.pipeline import Item, Stage
from hpc_hipgen.run import Run
from hpc_hipgen.training.interruption import Interrupted

ITEMS = [("row", number) for number in range(32)]
LONG = {"images": 2400, "checkpoint_images": 2400, "log_images": 8}
"""300 steps, of which only the last is saved unless something happens."""
STEP_SECONDS = 1.0


@dataclass
class Slow:
    """Makes each step of a task take its time while its job has not been put back."""

    task: object

    def __getattr__(self, name):
        return getattr(self.task, name)

    def batch(self, indices, random):
        if "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(STEP_SECONDS)
        return self.task.batch(indices, random)


def toy(name, slow=True, **settings) -> Stage:
    """A stage that trains the toy of tests/training in the folder `name` of the run."""
    arguments = (name, json.dumps({"slow": slow} | LONG | settings))
    return Stage(name, "slurm_stages:train_toy", "train", arguments=arguments)


def train_toy(run: Run, name: str, given: str) -> None:
    """Trains from the last checkpoint; writes the weights, and for each start what it trained."""
    import torch
    from toy_task import ToyTask, toy_train

    settings = json.loads(given)
    task = Slow(ToyTask()) if settings.pop("slow") else ToyTask()
    try:
        toy_train(run.path(name), task, **settings)
    finally:
        if os.environ["RANK"] == "0":
            with run.path(f"{name}-starts.txt").open("a") as file:
                file.write(f"{task.seen[0]} {len(task.seen) * int(os.environ['WORLD_SIZE'])}\n")
    if os.environ["RANK"] == "0":
        torch.save(task.state(), run.path(f"{name}.pt"))


def starts(run: Run, name: str) -> list[tuple[int, int]]:
    """For each start of a toy that ended by itself: the images seen before, and in it."""
    lines = run.path(f"{name}-starts.txt").read_text().splitlines()
    return [(int(first), int(count)) for first, count in map(str.split, lines)]


def steps(run: Run, name: str) -> int:
    """Steps of a toy that are written down."""
    path = run.path(name, "metrics.jsonl")
    return path.read_text().count("\n") if path.is_file() else 0


def losses_of_ranks(run: Run, name: str, stages: str) -> None:
    """Trains the toy at one ZeRO stage after another, in the folders <name>/0, 1, ..."""
    from toy_task import toy_train

    for stage in stages:
        toy_train(run.path(name, stage), images=400, log_images=8, zero_stage=int(stage))


def all_items(run: Run) -> list[Item]:
    return ITEMS


def first_items(run: Run) -> list[Item]:
    return ITEMS[:4]


def item_file(run: Run, item: Item) -> Path:
    return run.path("items", f"{item[1]:03d}")


def work(run: Run, todo: list[Item]) -> None:
    """Does its items in no time, save those whose file `broken-N` is there; writes all down."""
    for item in todo:
        with run.path("starts.txt").open("a") as file:
            file.write(f"{item[1]} {time.time()}\n")
        if run.path(f"broken-{item[1]}").exists():
            raise RuntimeError(f"item {item[1]} is broken")
        write_atomic(item_file(run, item), str(time.time()))


ARRAY = Stage("array", "slurm_stages:work", "gpu", items=all_items, artefact=item_file)


def at_once(run: Run) -> None:
    """Does nothing."""


def slow_to_end(run: Run) -> None:
    """Does nothing, after which Python takes its time to end."""
    atexit.register(time.sleep, 10)
    atexit.register(write_atomic, run.path("ending"), "")


def until_terminated(run: Run) -> None:
    """Waits for SIGTERM and stops as training does after it; a second start ends at once."""
    if "SLURM_RESTART_COUNT" in os.environ:
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    if os.environ["RANK"] == "0":
        write_atomic(run.path("waiting"), "")
    while not asked:
        time.sleep(0.05)
    signal.signal(signal.SIGTERM, before)
    raise Interrupted("saved", signal.SIGTERM)
