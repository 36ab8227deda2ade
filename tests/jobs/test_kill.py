"""A pipeline killed at random moments in every stage ends with the bytes of an undisturbed one."""

import copy
import hashlib
import json
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from warm_python import warm_python

from hpc_hipgen.config import parse_experiment
from hpc_hipgen.pipeline import stages

ROOT = Path(__file__).parents[2]
SEED = 20
MODELS = ("ruler", "autoencoder", "stable_diffusion", "llcm")
TIMINGS = {"images_per_second", "memory_gib"}
COSTS = {"training_seconds", "seconds_with_bases", "seconds_per_image"}
# event files and logs say when; markers, the page and the comparison hold timings
REPORT = tuple(f"report/{name}" for name in ("report.html", "metrics.json", "comparison."))
OTHERWISE = ("logs/", "tensorboard/", "stages/", *REPORT)


def longer(tree):
    """The tiny experiment with a checkpoint after each of six optimizer steps."""
    tree = copy.deepcopy(tree)
    for model in MODELS:
        tree[model]["training"] |= {"images": 24, "checkpoint_images": 4, "log_images": 4}
    return tree


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Both run folders, the experiment, and what became of every child."""
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("killed")
    (folder / "settings.yaml").write_text(yaml.safe_dump(longer(TINY)))
    script = Path(__file__).with_name("killed_pipeline.py")
    pipeline = warm_python(
        script, folder, SEED,
        output=folder / "said", variables={"CUDA_VISIBLE_DEVICES": ""}, path=[ROOT],
    )  # fmt: skip
    status, failed = pipeline.finish(timeout=2400)
    said = "".join(path.read_text()[-3000:] for path in sorted(folder.glob("*.txt"))[-1:])
    assert status == 0, failed + said
    return SimpleNamespace(
        config=parse_experiment(longer(TINY), "killed"),
        undisturbed=folder / "undisturbed",
        killed=folder / "killed",
        attempts=json.loads((folder / "attempts.json").read_text()),
    )


def files(run):
    """Digest of every file whose bytes must not depend on the clock, by its path in the run."""
    paths = [p for p in run.rglob("*") if p.is_file()]
    names = {str(p.relative_to(run)): p for p in paths}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in names.items()
        if not name.startswith(OTHERWISE)
        and path.name != "metrics.jsonl"
        # what a shard cost
        and not (name.startswith("samples/") and path.suffix == ".json")
    }


def curve(run, model):
    lines = (run / model / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in TIMINGS} for x in lines]


@pytest.mark.slow
def test_it_was_killed_often_and_everywhere(killed):
    kills = [a for a in killed.attempts if a["status"] == -signal.SIGKILL]
    assert killed.attempts[-1]["status"] == 0 and len(kills) >= 20
    hit = Counter(kill["stage"] for kill in kills)
    assert set(hit) >= {stage.name for stage in stages(killed.config)}
    for model in MODELS:
        kinds = {kill["kind"] for kill in kills if kill["stage"] == f"train-{model}"}
        assert "within-save" in kinds, model
    by_clock = [k for k in kills if k["kill"]["seconds"] is not None and k["kind"] != "leaves"]
    assert len(by_clock) >= 3


@pytest.mark.slow
def test_every_byte_is_that_of_the_undisturbed_run(killed):
    one, other = files(killed.undisturbed), files(killed.killed)
    assert set(one) == set(other)
    assert [name for name in one if one[name] != other[name]] == []
    for name in (
        "llcm/export/unet/diffusion_pytorch_model.safetensors",
        "llcm/checkpoints/0000000024/averages.pt",
        "samples/llcm_2/shard-00001.tar",
        "evaluation/llcm_2/shard-00001.parquet",
        "report/table1.csv",
    ):
        assert name in one, name


@pytest.mark.slow
def test_numbers_are_those_of_the_undisturbed_run(killed):
    for model in MODELS:
        lines = curve(killed.undisturbed, model)
        assert [line["images"] for line in lines] == [4, 8, 12, 16, 20, 24]
        assert curve(killed.killed, model) == lines
    one, other = (
        json.loads((run / "report" / "metrics.json").read_text())
        for run in (killed.undisturbed, killed.killed)
    )
    for metrics in (one, other):
        assert len(metrics.pop("runtime")) > len(MODELS)
        for line in metrics["comparison"]:
            assert all(line.pop(name) > 0 for name in COSTS)
    assert one == other and one["faithfulness"]["llcm_1"]


@pytest.mark.slow
def test_nothing_is_left_of_the_killed_processes(killed):
    assert [str(path) for path in killed.killed.rglob(".*")] == []
    for model in MODELS:
        checkpoints = [p.name for p in (killed.killed / model / "checkpoints").iterdir()]
        assert sorted(checkpoints) == ["0000000020", "0000000024"]
