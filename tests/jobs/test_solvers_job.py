"""The table of solvers from the command to its files; untrained networks, few steps."""

import csv
import json

import pytest
from safetensors.numpy import load_file

from hpc_hipgen.config import ConfigError, parse_experiment
from hpc_hipgen.files import write_atomic
from hpc_hipgen.performance import solver_table, workspace
from hpc_hipgen.performance.solver_table import Cell
from hpc_hipgen.run import Run
from jobs import solvers
from tests.conftest import STEPS, TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose models are exported as they are before training."""
    experiment = parse_experiment(TINY, "tiny")
    return workspace.make_run(tmp_path_factory.mktemp("solvers") / "run", experiment)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    small = {"STEPS": (2, 4), "STUDENT_STEPS": (1, 2), "BAR_STEPS": (2, 4)}
    small |= {"REFERENCE_STEPS": 12, "CHECK_STEPS": 6}
    for name, value in small.items():
        monkeypatch.setattr(solver_table, name, value)


def test_the_table_and_a_cell_that_was_lost(run, tmp_path, capsys):
    command = [str(run.folder), "--out", str(tmp_path / "out")]
    assert solvers.main(command) == 0
    assert "final error of leapfrog over that of ddim" in capsys.readouterr().out
    with (tmp_path / "out" / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    # four solvers, two spacings, two numbers of steps; two more of the leapfrog; at two scales
    teacher = [line for line in lines if line["model"] == "stable_diffusion"]
    assert len(teacher) == 2 * (4 * 2 * 2 + 2)
    for line in lines:
        double = line["model"] == "stable_diffusion" and float(line["guidance"]) > 1
        assert int(line["passes"]) == int(line["evaluations"]) * (1 + double)
    # the student takes guidance as a condition, for which it was trained at the second scale only
    assert [line["evaluations"] for line in lines if line["model"] == "llcm"] == ["1", "2"]
    content = json.loads((tmp_path / "out" / "solvers.json").read_text())
    assert len(content["leapfrog over ddim"]) == 4 and content["machine"]["torch"]
    assert (tmp_path / "out" / "solvers.svg").read_bytes().startswith(b"<?xml")
    # a second start computes what is missing alone, and the same
    cells = sorted((tmp_path / "out" / "cells").iterdir())
    kept, lost = cells[0].stat().st_mtime_ns, cells[1]
    before, table = load_file(lost), (tmp_path / "out" / "table.csv").read_bytes()
    lost.unlink()
    assert solvers.main(command) == 0
    assert cells[0].stat().st_mtime_ns == kept
    assert (load_file(lost)["latents"] == before["latents"]).all()
    assert (tmp_path / "out" / "table.csv").read_bytes() == table
    # a damaged file is named
    for path in (lost, tmp_path / "out" / "plan.json"):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert solvers.main(command) == 2
        assert f"{path}: damaged; remove" in capsys.readouterr().err
        path.write_bytes(whole)
    # other captions are not mixed with these
    assert solvers.main([*command, "--captions", "1"]) == 2
    assert "made with other captions" in capsys.readouterr().err


def test_a_teacher_with_feedback_is_compared_as_it_draws(tmp_path, tiny_settings, monkeypatch):
    tree = tiny_settings | {"reward_model": tiny_settings["ruler"], "feedback": {"training": STEPS}}
    tree["sampling"] = tree["sampling"] | {"guidance": 4.0}
    run = Run.create(tmp_path / "run", parse_experiment(tree, "x"))
    monkeypatch.setattr(solver_table, "check_there", lambda *_: None)
    found = {(cell.model, cell.guidance) for cell in solver_table.cells_of(run)}
    assert found == {("feedback", 1.0), ("llcm", 4.0)}, "the student has a scale of its own"


@pytest.mark.parametrize("films", [0, 3])
def test_captions_are_those_of_the_films_and_no_proportion(tmp_path, tiny_settings, films):
    tree = tiny_settings | {"data": {"source": "films", "films": str(tmp_path), "validation": 15}}
    run = Run.create(tmp_path / "run", parse_experiment(tree, "x"))
    rows = ["split,view", "train,0", *("validation,0", "validation,1") * films]
    write_atomic(run.path("data", "manifest.csv"), "\n".join(rows))
    if not films:
        with pytest.raises(ConfigError, match="no films in the split validation"):
            solvers._captions(run, None)
        return
    assert solvers._captions(run, None) == 3 and solvers._captions(run, 2) == 2
    with pytest.raises(ConfigError, match="--captions 4: the validation split has 3"):
        solvers._captions(run, 4)


def test_errors_are_rms_of_latents_and_means_of_angles(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    cells = [Cell("stable_diffusion", "ddim", "karras", n, 1.0) for n in (2, 4)]
    cells.append(cells[0].reference)
    (tmp_path / "cells").mkdir()
    asked = np.array([[100.0, 100.0], [90.0, 90.0]])
    for cell, far, angle in zip(cells, (0.4, 0.1, 0.0), (103.0, np.nan, 101.0), strict=True):
        latents = np.full((2, 4, 2, 2), 1.0 + far, np.float32)
        angles = np.array([[angle, 100.0], [90.0, 90.0]])
        arrays = {"latents": latents, "angles": angles, "asked": asked}
        cost = {"evaluations": str(cell.steps), "passes": str(cell.steps)}
        save_file(arrays, solver_table.cell_file(tmp_path, cell), cost)
    two, four, reference = solver_table.table(tmp_path, cells)
    assert two["final error"] == pytest.approx(0.4) and four["order"] == pytest.approx(2)
    assert (two["angle error"], two["angle shift"], two["refused"]) == (0.75, 0.5, 0)
    assert (four["angle error"], four["refused"]) == (0.0, 1)
    assert "final error" not in reference and reference["angle error"] == 0.25


def test_a_leapfrog_with_half_the_error_has_a_ratio_of_one_half():
    errors = {("leapfrog", "karras"): 1.0, ("ddim", "karras"): 2.0,
              ("leapfrog", "trailing"): 4.0, ("ddim", "trailing"): 5.0}  # fmt: skip
    lines = [
        {
            "solver": solver,
            "spacing": spacing,
            "steps": steps,
            "guidance": 1.0,
            "final error": error,
        }
        for (solver, spacing), error in errors.items()
        for steps in (2, 4)
    ]
    for found in solver_table.against_ddim(lines):
        assert (found["karras"], found["trailing"], found["best"]) == (0.5, 0.8, 0.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "not a run folder"),
        (["RUN", "--captions", "3"], "the validation split has 2"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run, tmp_path, capsys, arguments, words):
    out = tmp_path / "out"
    given = [str(run.folder) if a == "RUN" else a for a in arguments]
    assert solvers.main([*given, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not out.exists()
