"""Rows of the report: their names, models and settings."""

from pathlib import Path

from hpc_hipgen.config import parse_experiment
from hpc_hipgen.rows import row_model, row_settings
from hpc_hipgen.run import Run


def test_rows_follow_the_models(tmp_path, tiny_settings):
    def rows(tree):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return Run.create(folder, parse_experiment(tree, "x")).rows()

    every = ["ruler", "round_trip", "stable_diffusion", "llcm_1", "llcm_2"]
    assert rows(tiny_settings) == every
    baseline = tiny_settings["stable_diffusion"] | {"conditioning": "caption"}
    with_baseline = rows(tiny_settings | {"stable_diffusion_caption": baseline})
    assert with_baseline == [*every[:3], "stable_diffusion_caption", *every[3:]]
    assert rows({k: tiny_settings[k] for k in ("name", "ruler")}) == ["ruler"]


def test_rows_name_their_model(tmp_path, tiny_settings):
    training = {"training": {"images": 8, "batch": 4, "lr": 1e-3}}
    tiny_settings |= {"lora": training, "lcm_lora": training, "dreambooth": training}
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    drawn = run.rows()[run.rows().index("stable_diffusion") :]
    assert [row_model(run.config, row) for row in drawn] == [
        ("stable_diffusion", None),
        ("llcm", 1),
        ("llcm", 2),
        ("lora", None),
        ("lcm_lora", 1),
        ("lcm_lora", 2),
        ("dreambooth", None),
    ]
    caption = "stable_diffusion_caption"
    assert row_model(run.config, caption) == (caption, None)
    assert run.base("lora") == run.path("stable_diffusion", "export")


def test_with_feedback_the_teacher_is_the_model_that_had_it(tmp_path, tiny_settings):
    training = {"training": {"images": 8, "batch": 4, "lr": 1e-3}}
    tiny_settings["sampling"]["guidance"] = 3.0
    tiny_settings |= {"reward_model": tiny_settings["ruler"], "feedback": training}
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    drawn = run.rows()[run.rows().index("round_trip") + 1 :]
    assert [(row, *row_model(run.config, row)) for row in drawn] == [
        ("stable_diffusion_untuned", "stable_diffusion", None),
        ("stable_diffusion", "feedback", None),
        ("llcm_1", "llcm", 1),
        ("llcm_2", "llcm", 2),
    ]
    guidance = [row_settings(run.config, row)["guidance"] for row in drawn[:2]]
    assert guidance == [3.0, 1.0], "what was tuned without guidance is drawn without"
    assert run.base("llcm") == run.path("feedback", "export")
    assert run.base("feedback") == run.path("stable_diffusion", "export")
    tiny_settings["llcm"]["base"] = "/elsewhere"
    other = Run.create(tmp_path / "other", parse_experiment(tiny_settings, "x"))
    assert other.base("llcm") == Path("/elsewhere")


def test_feedback_alone_goes_on_from_another_teacher(tmp_path, tiny_settings):
    training = {"training": {"images": 8, "batch": 4, "lr": 1e-3}, "base": "/elsewhere"}
    tiny_settings |= {"reward_model": tiny_settings["ruler"], "feedback": training}
    del tiny_settings["stable_diffusion"]
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    assert "stable_diffusion" in run.rows() and "stable_diffusion_untuned" not in run.rows()
    assert run.base("feedback") == Path("/elsewhere")
    assert run.base("llcm") == run.path("feedback", "export")


def test_students_are_drawn_in_few_steps_and_an_lcm_lora_without_a_scale(tmp_path, tiny_settings):
    tiny_settings["lcm_lora"] = {"training": {"images": 8, "batch": 4, "lr": 1e-3}}
    tiny_settings["sampling"] |= {"guidance": 3.0, "eta": 1, "solver": "ddim"}
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    student = {"steps": 2, "guidance": 3.0, "solver": "lcm", "eta": 0.0}
    assert row_settings(run.config, "llcm_2") == student
    assert row_settings(run.config, "lcm_lora_2") == student | {"guidance": 1.0}
    teacher = {"steps": 2, "guidance": 3.0, "solver": "ddim", "eta": 1}
    assert row_settings(run.config, "stable_diffusion") == teacher
    tiny_settings["sampling"]["llcm_guidance"] = 5.0
    run = Run.create(tmp_path / "other", parse_experiment(tiny_settings, "x"))
    scales = [row_settings(run.config, row)["guidance"] for row in ("llcm_2", "stable_diffusion")]
    assert scales == [5.0, 3.0]
