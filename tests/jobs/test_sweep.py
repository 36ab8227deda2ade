"""Sweeps: the grid, what is left out of it, cells that are drawn once, and the merged table."""

import csv
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hpc_hipgen.comparisons import cells
from hpc_hipgen.comparisons.sampling_grid import MADE, Sweep, plan
from hpc_hipgen.config import ConfigError, Data, parse_experiment
from hpc_hipgen.evaluation.bands import BANDS
from hpc_hipgen.radiograph import made_captions as made
from hpc_hipgen.radiograph.captions import PROMPT_CLASSES, parse_caption
from hpc_hipgen.radiograph.film_set import film_pixels, phantom_films
from hpc_hipgen.radiograph.geometry import Angles
from hpc_hipgen.radiograph.layouts import read_manifest
from hpc_hipgen.radiograph.phantom import draw_phantom
from hpc_hipgen.radiograph.phantom_anatomy import sample_angles
from hpc_hipgen.radiograph.views import make_view
from hpc_hipgen.run import Run
from jobs import solvers, sweep

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, tiny_settings):
    return looks_trained(tmp_path / "run", tiny_settings)


def looks_trained(folder, tree):
    """A run with exports of both generators and one kept checkpoint, all of them empty."""
    run = Run.create(folder, parse_experiment(tree, "x"))
    for model in ("stable_diffusion", "llcm"):
        run.path(model, "export").mkdir(parents=True)
        run.path(model, "export", "model_index.json").touch()
    run.path("llcm", "checkpoints", "0000000008").mkdir(parents=True)
    run.path("llcm", "checkpoints", "0000000008", "complete.json").touch()
    run.path("ruler", "export").mkdir(parents=True)
    run.path("ruler", "export", "ruler.json").touch()
    run.path("data").mkdir()
    run.path("data", "manifest.csv").touch()
    return run


def planned(run, *arguments, split="validation"):
    return plan(run, list(arguments), split)


@pytest.mark.parametrize("command", [sweep.main, solvers.main])
def test_a_run_without_generators_is_refused_in_one_line(tmp_path, capsys, command):
    settings = {"name": "x", "film_ruler": {"training": {"images": 8, "batch": 4, "lr": 1e-3}}}
    run = Run.create(tmp_path / "run", parse_experiment(settings, "x"))
    assert command([str(run.folder)]) == 2
    assert capsys.readouterr().err == f"error: {run.folder}: this run has no generator\n"


def test_a_grid_is_crossed_for_each_model(run):
    found, notes = planned(
        run, "model=[stable_diffusion,llcm]", "steps=[2,4]", "guidance=[3,5]", "solver=[ddim,paper]"
    )
    assert found.split == "validation" and len(found.cells) == 2 * 2 * 2 + 2 * 2
    assert {c.solver for c in found.cells if c.model == "llcm"} == {"lcm"}
    assert notes == ["llcm: solver ddim, paper ignored, a student has its own"]
    assert "stable_diffusion-export-ddim-2-3" in [c.name for c in found.cells]
    assert len({c.name for c in found.cells}) == len(found.cells)


@pytest.mark.parametrize("name", ["x-table", "x-samples", "a/b", ""])
def test_no_sweep_is_called_like_a_stage_of_another(run, capsys, name):
    assert sweep.main([str(run.folder), "model=llcm", "--name", name]) == 2
    assert capsys.readouterr().err.startswith(f"error: --name {name}: ")


def test_what_is_not_named_is_as_in_the_report(run):
    found, notes = planned(run)
    sampling = run.config.sampling
    assert [(c.model, c.steps, c.guidance) for c in found.cells] == [
        ("stable_diffusion", sampling.steps, sampling.guidance),
        *(("llcm", steps, sampling.student_guidance) for steps in sampling.llcm_steps),
    ]
    assert notes == []


def test_what_a_student_cannot_do_is_left_out_and_said(run):
    found, notes = planned(run, "model=llcm", "steps=[2,60]", "guidance=[1,3]")
    assert [c.name for c in found.cells] == ["llcm-export-lcm-2-3"]
    assert notes == [
        "llcm: steps 60 left out, it has 50 at most",
        "llcm: guidance 1 left out, it is trained for 3 to 7",
    ]


def test_steps_that_begin_amid_the_schedule_are_one_line(run):
    with pytest.raises(ConfigError, match="stable_diffusion: steps: 501 steps would begin"):
        planned(run, "model=stable_diffusion", "steps=[20,501]")
    found, _ = planned(run, "model=stable_diffusion", "steps=[20,501]", "solver=leapfrog")
    assert [c.steps for c in found.cells] == [20, 501]


def test_steps_of_the_run_are_checked_for_the_solver_of_the_sweep(tmp_path, tiny_settings):
    tiny_settings["sampling"] |= {"solver": "leapfrog", "steps": 150, "eta": 0}
    run = looks_trained(tmp_path / "run", tiny_settings)
    planned(run, "model=stable_diffusion", "solver=leapfrog")
    with pytest.raises(ConfigError, match="150 steps would begin at timestep 895"):
        planned(run, "model=stable_diffusion", "solver=[ddim,leapfrog]")


def test_a_scale_at_the_end_of_what_a_student_knows_is_drawn(tmp_path, tiny_settings):
    """1.6 - 1 is a little more than 0.6."""
    tiny_settings["llcm"]["guidance"] = [0.2, 0.6]
    tiny_settings["sampling"] |= {"llcm_guidance": 1.6}
    run = looks_trained(tmp_path / "run", tiny_settings)
    found, notes = planned(run, "model=llcm", "steps=2", "guidance=[1.2,1.6,1.7]")
    assert [cell.guidance for cell in found.cells] == [1.2, 1.6] and "1.7 left out" in notes[0]
    assert [cell.guidance for cell in planned(run, "model=llcm", "steps=2")[0].cells] == [1.6]


def test_a_saved_sweep_is_not_one_of_another_split(run, capsys):
    planned(run, "model=llcm")[0].save(run, "few")
    given = [str(run.folder), "--name", "few", "--site", "local", "--dry-run"]
    assert sweep.main([*given, "--split", "test"]) == 2
    assert "few was drawn for captions of validation" in capsys.readouterr().err
    assert sweep.main([*given, "--split", "validation"]) == 0


def test_a_teacher_that_saw_captions_alone_is_not_guided(tmp_path, tiny_settings):
    tiny_settings["stable_diffusion"]["caption_dropout"] = 0
    tiny_settings["sampling"]["guidance"] = 1
    tiny_settings["llcm"]["guidance"] = [0.0, 0.0]
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    run.path("stable_diffusion", "export").mkdir(parents=True)
    run.path("stable_diffusion", "export", "model_index.json").touch()
    found, notes = planned(run, "model=stable_diffusion", "guidance=[1,2,3]")
    assert [c.guidance for c in found.cells] == [1.0]
    assert notes == ["stable_diffusion: guidance 2, 3 left out, its caption_dropout is 0"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["step=4"], "sweep: unknown key 'step'"),
        (["steps=[]"], "steps: no value is given"),
        (["steps=0"], "steps lie within 1..999"),
        (["steps=[2,2]"], "given twice"),
        (["guidance=0.5"], "guidance scales are 1 or more"),
        (["solver=euler"], "solver"),
        (["checkpoint=last"], "'export', or the images seen"),
        (["model=dalle"], "model"),
        (["model=stable_diffusion_caption"], "has no stable_diffusion_caption; it has stable"),
        (["model=llcm", "checkpoint=9"], "llcm has those at 8 images"),
        (["model=llcm", "guidance=1"], "nothing is left to draw; llcm: guidance 1 left out"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run, capsys, arguments, words):
    assert sweep.main([str(run.folder), *arguments, "--site", "local"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and words in said.err and said.err.count("\n") == 1
    assert not run.path("sweeps").exists()


def test_every_row_of_latent_diffusion_is_swept(tmp_path, tiny_settings):
    training = {"training": tiny_settings["llcm"]["training"]}
    tiny_settings |= {name: {**training} for name in ("lora", "lcm_lora", "dreambooth")}
    tiny_settings["llcm_ddim"] = training | {"solver": "ddim"}
    tiny_settings["dreambooth"]["subjects"] = {1: "sks"}
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    for model in run.config.trained():
        run.path(model, "export").mkdir(parents=True)
        adapters = model in ("lora", "lcm_lora")
        file = "pytorch_lora_weights.safetensors" if adapters else "model_index.json"
        run.path(model, "export", file).touch()
    found, notes = planned(run, "steps=2", "guidance=[3,4]", "solver=[ddim,leapfrog]")
    cells = [(c.model, c.solver, c.guidance) for c in found.cells]
    for model in ("stable_diffusion", "lora", "dreambooth"):
        assert [c for c in cells if c[0] == model] == [
            (model, s, g) for s in ("ddim", "leapfrog") for g in (3.0, 4.0)
        ]
    assert cells.count(("llcm_ddim", "lcm", 4.0)) == 1
    assert [c for c in cells if c[0] == "lcm_lora"] == [("lcm_lora", "lcm", 1.0)]
    assert "lcm_lora: guidance ignored, its adapters hold their own" in notes


def test_a_sweep_keeps_its_grid(run):
    found, _ = planned(run, "model=llcm")
    found.save(run, "x")
    Sweep(split=found.split, cells=found.cells[::-1]).save(run, "x")
    assert Sweep.load(run, "x") == found and Sweep.names(run) == ["x"]
    for other in (planned(run)[0], planned(run, "model=llcm", split="test")[0]):
        with pytest.raises(ConfigError, match="another --name"):
            other.save(run, "x")
    with pytest.raises(ConfigError, match="letters, digits"):
        cells.check_name("../x")


def test_without_captions_or_ruler_nothing_is_planned(run, capsys):
    run.path("ruler", "export", "ruler.json").unlink()
    assert sweep.main([str(run.folder), "steps=2"]) == 2
    assert "ruler.json: missing; finish the run first" in capsys.readouterr().err


def test_the_dry_run_lists_cells_and_scripts_and_writes_nothing(run, capsys):
    arguments = [str(run.folder), "model=llcm", "steps=[1,2]", "--dry-run", "--site", "a100"]
    assert sweep.main(arguments) == 0
    said = capsys.readouterr().out
    assert "  llcm-export-lcm-1-3\n  llcm-export-lcm-2-3\n" in said
    assert "#SBATCH --array=0-" in said and "sweep-grid-table" in said
    assert not run.path("sweeps").exists()


def test_the_table_is_made_again_only_when_a_cell_was_missing(run, capsys, monkeypatch):
    started = []
    monkeypatch.setattr(cells, "execute", lambda run, graph, *_: started.append(graph) or 0)
    arguments = [str(run.folder), "model=llcm", "steps=[1,2]", "--site", "local"]
    assert sweep.main(arguments) == 0 and len(started) == 1
    array, table = started[0]
    assert array.missing(run) == [(f"llcm-export-lcm-{n}-3", 0) for n in (1, 2)]
    for item in array.missing(run):
        array.artefact(run, item).parent.mkdir(parents=True)
        array.artefact(run, item).touch()
    run.mark_done(table.name)
    Sweep.path(run, "grid", "table.csv").touch()
    capsys.readouterr()
    assert sweep.main(arguments[:1] + arguments[-2:]) == 0  # the saved grid
    assert "all 2 cells are there" in capsys.readouterr().out and len(started) == 1
    array.artefact(run, ("llcm-export-lcm-1-3", 0)).unlink()
    assert sweep.main(arguments) == 0 and len(started) == 2
    assert run.done(table.name) is None
    assert array.missing(run) == [("llcm-export-lcm-1-3", 0)]


def test_the_script_takes_a_grid(run):
    done = subprocess.run(
        ["bash", "sbatch/evaluate.sh", str(run.folder), "model=llcm", "--dry-run"],
        cwd=ROOT,
        env=os.environ | {"HIPGEN_PYTHON": sys.executable, "HIPGEN_SITE": "local"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "  llcm-export-lcm-1-3\n" in done.stdout, done.stderr


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory):
    """A copy of the trained run, to sweep over."""
    folder = tmp_path_factory.mktemp("sweep") / "run"
    shutil.copytree(tiny_run.folder, folder)
    return Run(folder)


GRID = ["model=[stable_diffusion,llcm]", "steps=[1,2]", "checkpoint=[8,export]"]


def pngs(path):
    with tarfile.open(path) as tar:
        return [tar.extractfile(m).read() for m in tar if m.name.endswith("png")]


@pytest.mark.slow
def test_a_sweep_from_the_command_to_the_table(trained, capfd):
    assert sweep.main([str(trained.folder), *GRID, "--site", "local"]) == 0
    assert "Everything is done. Table: " in capfd.readouterr().out
    folder = Sweep.path(trained, "grid")
    with (folder / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["model"] for line in lines] == ["stable_diffusion"] * 4 + ["llcm"] * 4
    assert {line["images"] for line in lines} == {str(trained.config.data.validation)}
    assert (folder / "sweep.svg").read_bytes().startswith(b"<?xml")
    assert not list(folder.rglob(".*"))
    # the average of the last checkpoint is what was exported
    for model, rest in (("stable_diffusion", "ddim-2-3"), ("llcm", "lcm-2-3")):
        last, export = (
            pngs(folder / "cells" / f"{model}-{at}-{rest}" / "samples.tar") for at in (8, "export")
        )
        assert last == export and len(last) == trained.config.data.validation


@pytest.mark.slow
def test_a_lost_cell_is_drawn_again_alone_and_the_table_is_the_same(trained, monkeypatch):
    sweep.main([str(trained.folder), *GRID, "--site", "local"])
    folder = Sweep.path(trained, "grid")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    lost, half = (folder / "cells" / f"llcm-8-lcm-{n}-3" for n in (1, 2))
    shutil.rmtree(lost)
    (half / "table.parquet").unlink()
    with pytest.raises(ValueError, match="missing; start the sweep again"):
        sweep.merge(trained, "grid")
    kept = (half / "samples.tar").stat().st_mtime_ns
    todo = Sweep.graph("grid")[0].missing(trained)
    assert sorted(todo) == [(lost.name, 0), (half.name, 0)]
    assert sweep.draw_and_measure(trained, "grid", todo) == 2
    assert (half / "samples.tar").stat().st_mtime_ns == kept
    sweep.merge(trained, "grid")
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    # a cell of other captions is not merged
    shutil.copy(half / "table.parquet", lost / "table.parquet")
    with pytest.raises(ValueError, match="holds other images"):
        sweep.merge(trained, "grid")


@pytest.mark.slow
def test_captions_that_are_even_over_all_angles(trained, monkeypatch, capsys):
    few = replace(made.EVEN, count=12)
    monkeypatch.setitem(made.CAPTION_SETS, "even", few)
    planned(trained, "model=llcm", "steps=1", split="even")[0].save(trained, "even")
    assert sweep.draw_and_measure(trained, "even", Sweep.items(trained, "even")) == 2
    folder = Sweep.path(trained, "even")
    table = pd.read_parquet(folder / "cells" / "llcm-export-lcm-1-3" / "table.parquet")
    asked = table[["asked_left", "asked_right"]]
    learnt = read_manifest(trained.path("data"), "train").prompt_class
    assert set(table["prompt_class"]) == set(learnt.tolist())
    assert list(table["film"]) == [f"even-{i:03d}" for i in range(12)]
    # what the caption says, in half degrees, is what is asked for
    films = made.made_captions(few, trained.config.seed, [1])
    told = np.stack([films.patient_left, films.patient_right], 1)
    assert np.array_equal(asked, told) and (told * 2 % 1 == 0).all()
    table.loc[:, "measured_left"] = asked["asked_left"] + 1
    table.loc[:, "measured_right"] = asked["asked_right"] - 2
    monkeypatch.setattr(
        "hpc_hipgen.evaluation.measured_files.load_table",
        lambda path: table.assign(row=path.parent.name),
    )
    assert sweep.merge(trained, "even")["images"] == 12
    line = pd.read_csv(folder / "table.csv").iloc[0]
    low = (told < 80).ravel()
    assert 0 < low.sum() == line["n_below_80"] < 24
    assert line["model"] == "ruler" and (folder / "sweep.svg").is_file()
    assert line["mae_below_80"] == pytest.approx(np.tile([1, 2], 12)[low].mean(), abs=1e-4)
    assert line[[f"n_{band}" for band in BANDS]].sum() == 24
    assert "mae_left" in (said := capsys.readouterr().out) and "mae_below_80" not in said


@pytest.mark.parametrize("which", made.CAPTION_SETS.values(), ids=lambda which: which.name)
def test_phantoms_have_the_angles_of_the_captions(which):
    which = replace(which, count=3)
    told = made.made_captions(which, 3, [2, 4])
    views = list(made.made_phantoms(which, Data(resolution=64, head_distance=0.7), 3, told))
    assert len(views) == 3 and list(told.prompt_class) == [2, 4, 2]
    for i, view in enumerate(views):
        angles = Angles(told.patient_right[i], told.patient_left[i])
        phantom = draw_phantom(
            3, which.first_index + i, film_pixels(64), told.prompt_class[i], angles
        )
        found = phantom.landmarks.norberg_angles()
        assert found.patient_left == pytest.approx(told.patient_left[i], abs=1e-6)
        assert found.patient_right == pytest.approx(told.patient_right[i], abs=1e-6)
        assert np.array_equal(view, make_view(phantom.image, phantom.landmarks, 64, 0.7)[0])


def test_even_captions_reach_all_angles():
    films = made.made_captions(made.EVEN, 0, [*PROMPT_CLASSES])
    angles = np.concatenate([films.patient_left, films.patient_right])
    assert len(films) == 120 and len(set(films.film)) == 120
    counts, _ = np.histogram(angles, np.linspace(58, 122, 5))
    assert counts.sum() == 240 and counts.min() > 35
    assert set(films.prompt_class) == set(PROMPT_CLASSES)
    for text, left in zip(films.captions, films.patient_left, strict=True):
        assert parse_caption(text).patient_left == left


def test_fresh_captions_have_the_populations_angles_and_those_of_no_film():
    films = made.made_captions(made.FRESH, 0, [*PROMPT_CLASSES])
    angles = np.concatenate([films.patient_left, films.patient_right])
    assert len(set(films.film)) == 240 and (angles * 2 % 1 == 0).all()
    rng = np.random.default_rng(5)
    many = [a for _ in range(2000) for a in vars(sample_angles(rng)).values()]
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(angles, share) == pytest.approx(np.quantile(many, share), abs=2.5)
    split = phantom_films(0, {"train": 1, "validation": 1, "test": 1}, 64)
    assert made.FRESH.first_index > made.EVEN.first_index > max(film.index for film in split)


def test_every_set_of_made_captions_can_be_asked_for():
    assert set(MADE) == set(made.CAPTION_SETS)


def test_films_have_no_fresh_captions(run):
    data = run.config.data.model_copy(update={"source": "films"})
    run.config = run.config.model_copy(update={"data": data})
    with pytest.raises(ConfigError, match=r"--split fresh: .* has films"):
        plan(run, ["model=llcm"], "fresh")


@pytest.mark.slow
def test_averages_of_a_trained_text_encoder_are_loaded_and_baked(trained, tmp_path):
    import torch

    from hpc_hipgen.generators import sampling, text

    pipeline = sampling.load_pipeline(trained.path("stable_diffusion", "export"))
    other = sampling.load_pipeline(trained.path("stable_diffusion", "export"))
    text.unbake_measurements(other.text_encoder)
    with torch.no_grad():
        for parameter in (*other.unet.parameters(), *other.text_encoder.parameters()):
            parameter.add_(0.125)
    networks = torch.nn.ModuleDict({"unet": other.unet, "text_encoder": other.text_encoder})
    averages = {"export": {"steps": 1, "module": networks.state_dict()}}
    torch.save(averages, tmp_path / "averages.pt")
    table = other.text_encoder.get_input_embeddings().table()
    assert not torch.equal(pipeline.text_encoder.get_input_embeddings().weight, table)
    sampling.load_average(pipeline, tmp_path)
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight, table)
    for found, wanted in zip(pipeline.unet.parameters(), other.unet.parameters(), strict=True):
        assert torch.equal(found, wanted)
