"""One pipeline under everything that stops jobs: kills, preemptions and a time limit, at random.

Not part of `make test`, which it would double in length: `make endurance` runs it.
"""

import copy
import hashlib
import os
import random
import time
from collections import Counter

import pytest
from slurm_cluster import wait_until
from slurm_runs import on, site_with

from hpc_hipgen.cluster.slurm import submit_stages
from hpc_hipgen.cluster.stage_files import submitted
from hpc_hipgen.config import parse_experiment
from hpc_hipgen.pipeline import stages
from hpc_hipgen.run import Run

pytestmark = pytest.mark.endurance

KINDS = {"kill": 20, "preempt": 3, "limit": 1}
KILLS_OF_A_STAGE = 5
"""At most: else the longest stage would get nearly all."""
MODELS = {"ruler": 12_000, "autoencoder": 12_000, "stable_diffusion": 4000, "llcm": 4000}
"""Training images of each: minutes, with time for a few kills."""
SPOT = {"partition": "spot", "gpus": 2, "gres": "gpu:a100:{n}", "cpus": 1, "mem_gb": 8, "hours": 1}
SITE = {
    # everything with optimizer steps runs where it can be preempted
    "resources": site_with().model_dump(exclude_unset=True)["resources"]
    | {"train": SPOT, "gpu": SPOT | {"gpus": 1}},
    # two ranks, which share their state by ZeRO: small batches would otherwise have one
    "stages": {"train-stable_diffusion": {"gpus": 2}, "train-llcm": {"gpus": 2}},
    "requeues": 10,
}
RESULTS = ("*/export/**/*.safetensors", "samples/**/*.tar", "evaluation/**/*.parquet")
SEED = int(os.environ.get("HIPGEN_ENDURANCE_SEED", "1"))


@pytest.fixture
def config(tiny_settings):
    """The tiny experiment with minutes of training and many checkpoints."""
    tree = copy.deepcopy(tiny_settings)
    for model, images in MODELS.items():
        tree[model]["training"] |= {"images": images, "checkpoint_images": 160, "log_images": 8}
    tree["stable_diffusion"]["training"]["zero_stage"] = 2
    return parse_experiment(tree, "endurance")


class Pipeline:
    """A run on the cluster, and what is done to its jobs."""

    def __init__(self, folder, config, cluster):
        self.run = Run.create(folder, config)
        self.graph = stages(config)
        self.site = site_with(**SITE)
        self.cluster = cluster

    def submit(self):
        """Submits what is missing, beside what goes on."""
        submit_stages(self.run, self.graph, self.site)

    def queued(self, job):
        return any(number.split("_")[0] == job.split("_")[0] for number in self.cluster.queue())

    def finished(self):
        return all(stage.done(self.run) for stage in self.graph)

    def logged(self, model):
        path = self.run.path(model, "metrics.jsonl")
        return path.stat().st_size if path.is_file() else 0

    def running(self):
        """The stages whose job runs, with its id."""
        states = {number.split("_")[0]: state for number, state in self.cluster.queue().items()}
        jobs = {s.name: submitted(self.run, s.name) for s in self.graph if not s.done(self.run)}
        return {
            name: job["job"]
            for name, job in jobs.items()
            if job and states.get(job["job"].split("_")[0]) == "RUNNING"
        }

    def until_running(self, trains, spared):
        """Waits for a job, or for one that makes optimizer steps; returns its stage and id.

        The stages that are `spared` are let run.
        """
        while True:
            if not self.cluster.queue():
                if self.finished():
                    return None
                self.submit()
            before = {model: self.logged(model) for model in MODELS}
            time.sleep(0.5)
            for name, job in self.running().items():
                model = name.removeprefix("train-")
                if name in spared:
                    continue
                if not trains or (model in MODELS and self.logged(model) > before[model]):
                    return name, job

    def disturb(self, kind, chance, spared):
        """Stops a job that runs; returns its stage, or None when it ended by itself before that."""
        found = self.until_running(kind != "kill", spared)
        assert found, "the run ended before it was disturbed often enough"
        stage, job = found
        time.sleep(chance.uniform(0, 12 if kind == "kill" else 2))
        if self.running().get(stage) != job:
            return None
        getattr(self, kind)(job)
        return stage

    def kill(self, job):
        self.cluster.call("scancel", "--signal=KILL", job)
        wait_until(lambda: not self.queued(job), "the end of the killed job", 120)
        # what waited for it is cancelled a moment later
        time.sleep(3)
        self.submit()

    def preempt(self, job):
        node = self.cluster.job(job)["NodeList"]
        urgent = ("--partition=urgent", f"--nodelist={node}", "--exclusive", "--wrap=sleep 1")
        self.cluster.call("sbatch", "--output=/dev/null", *urgent)
        self._until_put_back(job)

    def limit(self, job):
        passed = self.cluster.call("squeue", "-h", "-o", "%M", "-j", job)
        minutes = int(passed.split(":")[-2]) + 2
        self.cluster.call("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
        self._until_put_back(job, 150)
        self.cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=60", check=False)

    def _until_put_back(self, job, seconds=90):
        before = int(self.cluster.job(job)["Restarts"])

        def back():
            now = self.cluster.job(job)
            return int(now["Restarts"]) > before or now["JobState"] == "COMPLETED"

        wait_until(back, "the requeue", seconds)

    def finish(self):
        while not self.finished():
            if not self.cluster.queue():
                self.submit()
            time.sleep(2)

    def digests(self):
        """Digest of every result by its path in the run."""
        paths = {path for pattern in RESULTS for path in self.run.folder.glob(pattern)}
        paths.add(self.run.path("report", "table1.csv"))
        return {
            str(path.relative_to(self.run.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(paths)
        }


def test_a_disturbed_pipeline_ends_with_the_bytes_of_an_undisturbed_one(cluster, config, tmp_path):
    chance = random.Random(SEED)
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    chance.shuffle(kinds)
    with on(cluster):
        calm = Pipeline(tmp_path / "calm", config, cluster)
        calm.finish()
        rough = Pipeline(tmp_path / "rough", config, cluster)
        hit, killed = Counter(), Counter()
        for kind in kinds:
            enough = [stage for stage, kills in killed.items() if kills >= KILLS_OF_A_STAGE]
            spared = enough if kind == "kill" else ()
            while not (stage := rough.disturb(kind, chance, spared)):
                pass
            print(f"{time.strftime('%T')} {kind:7} {stage}", flush=True)
            hit[kind] += 1
            killed[stage] += kind == "kill"
            if stage == "train-llcm":
                assert cluster.job(submitted(rough.run, stage)["job"])["NumTasks"] == "2"
        rough.finish()
    assert hit == KINDS
    assert all(killed[f"train-{model}"] for model in MODELS), killed
    one, other = calm.digests(), rough.digests()
    assert len(one) > 15 and set(one) == set(other)
    assert [name for name in one if one[name] != other[name]] == []
