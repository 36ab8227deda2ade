"""Downstream utility, from the command to the table, resumed, and in the report."""

import csv
import json
import shutil
from pkgutil import resolve_name
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from hpc_hipgen.comparisons.downstream_utility import ARMS, Utility, plan, summaries
from hpc_hipgen.config import ConfigError, parse_experiment
from hpc_hipgen.evaluation.samples import read_samples, shard_bytes
from hpc_hipgen.files import write_atomic
from hpc_hipgen.radiograph.layouts import read_manifest
from hpc_hipgen.rulers import few_films
from hpc_hipgen.run import Run
from hpc_hipgen.training import loop
from jobs import report
from jobs import utility as job

SETTINGS = ["row=llcm_2", "films=[2,4]", "seeds=1", "generated=7", "images=8"]


@pytest.fixture
def run(tmp_path, tiny_settings):
    """A run that looks trained."""
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    run.path("llcm", "export").mkdir(parents=True)
    run.path("data").mkdir()
    lines = [f"film-{i // 2},train,{i % 2}" for i in range(12)]
    run.path("data", "manifest.csv").write_text("\n".join(["film,split,view", *lines]) + "\n")
    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["film=4"], "utility: unknown key 'film'"),
        (["films=[4,4]"], "different numbers of films"),
        (["films=[2,9]"], "films=9: the run has 6 training films"),
        (["films=1"], "films=1: 2 views, less than a batch of 4"),
        (["images=2", "films=4"], "images=2: less than a batch of 4"),
        (["row=ruler"], "row=ruler: not one of stable_diffusion, llcm_1, llcm_2"),
        (["row=stable_diffusion"], "train it to its end first"),
        (["--name", "../x"], "letters, digits"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run, capsys, arguments, words):
    assert job.main([str(run.folder), *arguments, "--site", "local"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and words in said.err and said.err.count("\n") == 1
    assert not run.path("utility").exists()


def test_the_dry_run_lists_rulers_and_scripts_and_writes_nothing(run, capsys):
    assert job.main([str(run.folder), "films=4", "seeds=1", "--dry-run", "--site", "a100"]) == 0
    said = capsys.readouterr().out
    assert "  alone-4-0\n  generated-4-0\n  angles-4-0\n" in said
    assert said.count("#SBATCH --array=0-") >= 1 and "utility-utility-table" in said
    assert not run.path("utility").exists()


def test_with_all_films_there_are_no_others_to_add(run):
    found = plan(run, ["films=[4,6]", "seeds=1", "row=llcm_1"]).cells(run)
    arms = [(cell.films, cell.arm) for cell in found]
    assert arms == [(4, "alone"), (4, "generated"), (4, "angles"), (6, "alone"), (6, "generated")]


def test_a_ruler_from_elsewhere_does_not_say_how_rulers_are_trained(run, tmp_path, tiny_settings):
    other = run.folder.rename(tmp_path / "other")
    tiny_settings["ruler"] = {"pretrained": str(tmp_path)}
    settings = parse_experiment(tiny_settings, "x").model_dump(mode="json")
    (other / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    run = Run(other)
    with pytest.raises(ConfigError, match=r"ruler\.training: missing in this run"):
        plan(run, SETTINGS)


def test_generated_films_have_the_angles_of_their_captions_by_side_of_the_image(run):
    settings = plan(run, SETTINGS)
    settings.save(run, "few")
    specs = [
        {"row": "llcm_2", "index": n, "seed": n, "film": "a", "prompt": "", "prompt_class": 4}
        | {"asked_left": 100.0 + n, "asked_right": 80.0 + n}
        for n in range(7)
    ]
    for item in Utility.sample_items(run, "few"):
        part = specs[4 * item[1] : 4 * item[1] + 4]
        images = np.zeros((len(part), 8, 8), np.uint8)
        write_atomic(Utility.sample_shard(run, item, "few"), shard_bytes(part, images, True))
    found = job._generated(run, "few", settings)
    assert found.angles.tolist() == [[80.0 + n, 100.0 + n] for n in range(7)]


def test_every_seed_has_films_and_weights_of_its_own_and_the_test_films_measure(
    tiny_run, tmp_path, monkeypatch
):
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    run, began = Run(tmp_path / "run"), []
    plan(run, ["row=llcm_2", "films=2", "seeds=3", "images=8"]).save(run, "x")

    def train(task, training, folder, *, seed, title):
        (folder / "checkpoints").mkdir(parents=True)
        first = next(task.module.parameters()).sum().item()
        began.append((seed, tuple(sorted(set(task.films.film))), first))

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(job, "_generated", lambda *_: None)
    items = [(f"alone-2-{seed}", 0) for seed in range(3)]
    assert job.train_and_measure(run, "x", items) == 3
    seeds, films, weights = map(set, zip(*began, strict=True))
    assert len(seeds) == len(weights) == 3 and len(films) > 1
    measured = json.loads(Utility.cell_result(run, items[0], "x").read_text())["films"]
    assert measured == read_manifest(run.path("data"), "test", nominal_only=True).film


def test_a_checkpoint_that_cannot_be_removed_is_no_failure_of_what_is_done(run, monkeypatch):
    def busy(path):
        raise OSError("Directory not empty: .nfs0001")

    plan(run, ["row=llcm_2", "films=2", "seeds=1"]).save(run, "x")
    monkeypatch.setattr(few_films, "chosen_films", lambda *_: (None, None))
    monkeypatch.setattr(few_films, "angles_alone", lambda *_: None)
    ruler = SimpleNamespace(ruler=lambda: None)
    monkeypatch.setattr(few_films, "FewFilmsTask", lambda *_: ruler)
    monkeypatch.setattr(few_films, "held_out_errors", lambda *_: {"errors": [1.0, -3.0]})
    monkeypatch.setattr(loop, "train", lambda *_, **__: None)
    monkeypatch.setattr(job, "remove_folder", busy)
    cell = Utility.saved(run, "x").cells(run)[0]
    assert job._train_and_measure(run, "x", cell, None, None, None) == 2.0
    assert Utility.cell_result(run, (cell.name, 0), "x").is_file()


@pytest.mark.slow
def test_from_the_settings_to_the_table_and_again(tiny_run, tmp_path, capfd, monkeypatch):
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    plan(run, SETTINGS).save(run, "utility")
    for stage in Utility.graph("utility"):  # as the jobs of the pipeline call them
        todo = [stage.missing(run)] if stage.items else []
        resolve_name(stage.function)(run, *stage.arguments, *todo)
        assert not stage.items or stage.done(run)
    folder = Utility.path(run, "utility")
    with (folder / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(x["films"], x["arm"]) for x in lines] == [(n, arm) for n in "24" for arm in ARMS]
    assert (folder / "curve.svg").read_bytes().startswith(b"<?xml")
    assert not list(folder.rglob("checkpoints")), "of a ruler that was measured, nothing is needed"
    shards = [
        Utility.sample_shard(run, item, "utility") for item in Utility.sample_items(run, "utility")
    ]
    drawn = [sample for path in shards for sample in read_samples(path)]
    assert len(drawn) == 7 and {s.info["film"][:13] for s in drawn} == {"phantom-train"}
    assert len({s.info["film"] for s in drawn}) == 6, "every film once, and one of them again"

    # a ruler that is lost is trained again, alone, and measures the same
    before = {p: p.read_bytes() for p in folder.rglob("*.*") if p.suffix in (".csv", ".tar")}
    lost = Utility.cell_result(run, ("generated-2-0", 0), "utility")
    errors = json.loads(lost.read_text())["errors"]
    shutil.rmtree(lost.parent)
    with pytest.raises(ValueError, match="missing; start it again"):
        job.merge(run, "utility")
    array = Utility.graph("utility")[1]
    assert array.missing(run) == [("generated-2-0", 0)]
    assert job.train_and_measure(run, "utility", array.missing(run)) == 1
    assert json.loads(lost.read_text())["errors"] == errors
    made = []
    monkeypatch.setattr(report, "report", lambda run, force: made.append(force))
    job.merge(run, "utility")
    for stage in ("report", Utility.graph("utility")[2].name):
        run.mark_done(stage)
    job.merge(run, "utility")
    assert made == [True], "a report that is there is made again"
    assert all(path.read_bytes() == content for path, content in before.items())
    assert summaries(run)["utility"]["label"] == "LLCM, 2 steps"
    assert job.main([str(run.folder), "--site", "local"]) == 0
    assert "all 6 cells are there" in capfd.readouterr().out
