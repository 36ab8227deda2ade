"""Runs a whole pipeline in children that are killed, for test_kill.py.

python tests/jobs/killed_pipeline.py FOLDER SEED makes FOLDER/undisturbed in one go, then
FOLDER/killed in many: each child goes on where the one before it was killed. FOLDER/attempts.json
says where each child ended. Heavy modules are imported once, here; nothing is initialised before
the children part.

The moments at which a child can be killed are the system calls that its artefacts depend on, before
and after each, and the middle of each written checkpoint file; others are taken by the clock.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from hpc_hipgen.cluster.calls import StageCall
from hpc_hipgen.config import parse_experiment
from hpc_hipgen.pipeline import stages
from hpc_hipgen.run import Run

HEAVY = """deepspeed diffusers matplotlib.figure pandas pyarrow.parquet scipy.stats skimage torch
torch.utils.tensorboard torchvision transformers webdataset jobs.evaluate jobs.prepare jobs.report
jobs.sample jobs.train hpc_hipgen.evaluation.distances hpc_hipgen.evaluation.report
hpc_hipgen.rulers.ruler_training hpc_hipgen.generators.llcm hpc_hipgen.generators.sampling
hpc_hipgen.radiograph.dataset hpc_hipgen.training.loop""".split()
ENTERS = "enters"
LONGEST = 400.0  # seconds of a child; on a quiet machine the undisturbed one needs 15


@dataclass
class Kill:
    """Where a child is to die: at the n-th moment of a kind in a stage, or after so many seconds.

    `kind` "" is any moment.
    """

    stage: str
    kind: str = ""
    number: int = 0
    seconds: float | None = None


class Moments:
    """Counts and writes down the moments of a child, and ends it at the one that was asked for."""

    def __init__(self, log: Path, kill: Kill | None) -> None:
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.kill = kill
        self.stage = "create"
        self.passed = 0

    def enter(self, stage: str) -> None:
        self.stage, self.passed = stage, 0
        self.note(ENTERS)

    def note(self, kind: str) -> None:
        os.write(self.log, f"{self.stage} {kind} {time.monotonic()}\n".encode())

    def __call__(self, kind: str) -> None:
        self.note(kind)
        kill = self.kill
        if kill and kill.seconds is None and kill.stage == self.stage and kill.kind in ("", kind):
            self.passed += 1
            if self.passed == kill.number:
                os.kill(os.getpid(), signal.SIGKILL)

    def leave(self) -> None:
        """A stage that was faster than its kill is killed at its end."""
        if self.kill and self.kill.stage == self.stage:
            self.note("leaves")
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner: object, name: str) -> None:
        """A moment before and one after each call of a function."""
        function = getattr(owner, name)

        def watched(*arguments, **settings):
            self(f"before-{name}")
            result = function(*arguments, **settings)
            self(f"after-{name}")
            return result

        setattr(owner, name, watched)

    def watch_saving(self) -> None:
        """A moment when a checkpoint's file is half written."""
        import torch

        function = torch.save

        def watched(content, file, *arguments, **settings):
            function(content, file, *arguments, **settings)
            file.flush()
            path = Path(file.name)
            whole = path.read_bytes()
            os.truncate(path, len(whole) // 2)
            self("within-save")
            path.write_bytes(whole)

        torch.save = watched


def work(settings: Path, folder: Path, moments: Moments) -> None:
    """What one child does: what is left of the run, up to the stage in which it is to die."""
    for owner, names in ((os, "replace fsync mkdir unlink"), (shutil, "rmtree")):
        for name in names.split():
            moments.watch(owner, name)
    moments.watch_saving()
    config = parse_experiment(yaml.safe_load(settings.read_text()), "killed")
    run = Run.create(folder, config)
    moments.leave()
    for stage in stages(config):
        if not stage.done(run):
            moments.enter(stage.name)
            StageCall(stage, str(folder))()
            moments.leave()
        elif moments.kill and moments.kill.stage == stage.name:
            return


def child(settings: Path, folder: Path, log: Path, kill: Kill | None) -> int:
    """Runs `work` in a child; returns its exit status, negative for a signal."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            output = os.open(log.with_suffix(".txt"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            work(settings, folder, Moments(log, kill))
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    began, ends = time.monotonic(), None
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        if kill and kill.seconds is not None and ends is None:
            entered = [line for line in read(log) if line[:2] == (kill.stage, ENTERS)]
            ends = entered[0][2] + kill.seconds if entered else None
        if (ends and now > ends) or now > began + LONGEST:
            os.kill(pid, signal.SIGKILL)
            ends = now + LONGEST
        time.sleep(0.005)


def read(log: Path) -> list[tuple[str, str, float]]:
    """(stage, kind, time) of the moments so far; a line that is being written is left out."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [(stage, kind, float(at)) for stage, kind, at in (line.split() for line in lines)]


def plan(moments: list[tuple[str, str, float]], seed: int) -> list[Kill]:
    """Kills in every stage: at moments, by the clock, and within each kind of checkpoint file."""
    chance = random.Random(seed)
    kills = []
    for stage in dict.fromkeys(stage for stage, _, _ in moments):
        mine = [m for m in moments if m[0] == stage]
        count = len(mine) - 1
        # what is done stays done, so a child has fewer moments than the one before it
        kills += [Kill(stage, number=chance.randint(1, max(1, count // k))) for k in (3, 4)]
        if any(kind == "within-save" for _, kind, _ in mine):
            kills.append(Kill(stage, "within-save", chance.randint(1, 3)))
            kills.append(Kill(stage, "before-replace", chance.randint(2, 5)))
        if stage != "create":
            kills.append(Kill(stage, seconds=chance.uniform(0, mine[-1][2] - mine[0][2])))
    return kills


def main(folder: Path, seed: int) -> None:
    """Makes both runs and writes down what became of every child."""
    for name in HEAVY:
        __import__(name)
    from hpc_hipgen.evaluation import figures

    # both runs' figures alike: where texts lie is no matter here, and takes most of a report
    figures.ConstrainedLayoutEngine.execute = lambda *_: {}
    settings = folder / "settings.yaml"
    log = folder / "undisturbed.log"
    assert child(settings, folder / "undisturbed", log, None) == 0, log.with_suffix(".txt")
    attempts = []
    for number, kill in enumerate([*plan(read(log), seed), None]):
        log = folder / f"killed-{number:02d}.log"
        began = time.monotonic()
        status = child(settings, folder / "killed", log, kill)
        last = [("", ""), *(line[:2] for line in read(log))][-1]
        attempts.append(
            {
                "kill": kill and asdict(kill),
                "status": status,
                "stage": last[0],
                "kind": last[1],
                "seconds": round(time.monotonic() - began, 2),
            }
        )
        (folder / "attempts.json").write_text(json.dumps(attempts, indent=1))
        assert status in (0, -signal.SIGKILL), log.with_suffix(".txt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
