"""The run folder: atomic files and folders, markers, settings that stay."""

import multiprocessing
import os
from pathlib import Path

import pytest
import yaml

from hpc_hipgen.config import ConfigError, parse_experiment
from hpc_hipgen.run import (
    HOW,
    Run,
    atomic_folder,
    clean_abandoned,
    remove_folder,
    row_model,
    row_settings,
    write_atomic,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.json"
    write_atomic(path, "first")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        write_atomic(path, b"second")
    assert path.read_text() == "first" and names(path.parent) == ["a.json"]


def test_files_have_the_rights_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", "x")
        with atomic_folder(tmp_path / "f") as folder:
            (folder / "b").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o750


def test_a_folder_replaces_the_older_one_or_changes_nothing(tmp_path):
    target = tmp_path / "export"
    for content in ("one", "two"):
        with atomic_folder(target) as folder:
            (folder / content).write_text(content)
            assert not (target / content).exists()
    assert names(target) == ["two"]
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as folder:
        (folder / "three").touch()
        raise KeyboardInterrupt
    assert names(target) == ["two"] and names(tmp_path) == ["export"]


def killed_while(write, *arguments):
    """A process that ends without any clean-up, as by SIGKILL, in the middle of `write`."""

    def work():
        os.replace = lambda *_: os._exit(9)
        write(*arguments)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 9


def replace_folder(path, content):
    with atomic_folder(path) as folder:
        (folder / content).touch()


def test_what_a_killed_process_left_goes_when_the_artefact_is_made_again(tmp_path):
    killed_while(write_atomic, tmp_path / "a", "x")
    killed_while(write_atomic, tmp_path / "never again", "x")
    killed_while(replace_folder, tmp_path / "f", "one")
    assert len(names(tmp_path)) == 2, "the second process removed what the first had left"
    write_atomic(tmp_path / "a", "y")
    replace_folder(tmp_path / "f", "two")
    assert names(tmp_path) == ["a", "f"] and names(tmp_path / "f") == ["two"]


def test_a_file_that_is_in_place_leaves_nothing_more_to_clean(tmp_path):
    replace = os.replace

    def then_killed(source, to):
        replace(source, to)
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(
        target=lambda: (setattr(os, "replace", then_killed), write_atomic(tmp_path / "a", "x"))
    )
    process.start()
    process.join()
    assert process.exitcode == 9 and names(tmp_path) == ["a"]


def test_what_a_living_process_makes_is_left_alone(tmp_path):
    with atomic_folder(tmp_path / "f") as folder:
        (folder / "mine").touch()
        replace_folder(tmp_path / "f", "other")
        clean_abandoned(tmp_path)
        assert names(folder) == ["mine"] and names(tmp_path / "f") == ["other"]
    assert names(tmp_path) == ["f"] and names(tmp_path / "f") == ["mine"]


def test_a_file_that_a_living_process_writes_is_left_alone(tmp_path, monkeypatch):
    replace = os.replace

    def meanwhile_cleaned(source, to):
        clean_abandoned(tmp_path)
        replace(source, to)

    monkeypatch.setattr(os, "replace", meanwhile_cleaned)
    write_atomic(tmp_path / "a", "x")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "x"


def test_an_older_folder_comes_back_when_its_successor_did_not_arrive(tmp_path, monkeypatch):
    replace, target = os.replace, tmp_path / "f"
    replace_folder(target, "one")

    def second_fails(source, to):
        if Path(source).name == "f" and Path(to) == target and Path(source) != target:
            raise OSError("gone")
        replace(source, to)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OSError, match="gone"):
        replace_folder(target, "two")
    assert names(tmp_path) == ["f"] and names(target) == ["one"]


def test_a_folder_is_removed_whole(tmp_path):
    replace_folder(tmp_path / "f", "one")
    remove_folder(tmp_path / "f")
    assert names(tmp_path) == []


def test_markers(tmp_path, tiny_settings):
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    assert run.done("prepare") is None
    run.mark_done("prepare", films=3)
    assert run.done("prepare")["films"] == 3 and "finished" in run.done("prepare")


def test_a_run_folder_repeats_its_settings(tmp_path, tiny_settings):
    config = parse_experiment(tiny_settings, "x")
    run = Run.create(tmp_path / "run", config)
    assert Run(run.folder).config == Run.create(run.folder, config).config == config
    tiny_settings["llcm"]["skip"] = 10
    tiny_settings["data"]["test"] = 6
    with pytest.raises(
        ConfigError, match=r"data.test: 5 there, 6 now; llcm.skip: 20 there, 10 now"
    ):
        Run.create(run.folder, parse_experiment(tiny_settings, "x"))
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["llcm"]["skip"] == 20


def test_a_run_takes_no_folder_of_somebodys(tmp_path, tiny_settings):
    """It would replace what has the name of an artefact."""
    config = parse_experiment(tiny_settings, "x")
    (tmp_path / "data").mkdir()
    with pytest.raises(ConfigError, match=r"is not empty \(data, ...\) and not a run"):
        Run.create(tmp_path, config)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".DS_Store").touch()
    run = Run.create(tmp_path / "new", config)
    (run.folder / "films").mkdir()
    tiny_settings["evaluation"]["films"] = str(run.folder / "films")
    with pytest.raises(ConfigError, match="films: lies in the run folder"):
        Run.create(run.folder, parse_experiment(tiny_settings, "x"))


def test_no_run_folder_is_said(tmp_path):
    with pytest.raises(ConfigError, match="not a run folder"):
        Run(tmp_path)


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


def test_what_a_folder_holds_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    own, target, synced = os.fsync, tmp_path / "export", []

    def note(handle):
        synced.append((os.fstat(handle).st_ino, target.exists()))
        own(handle)

    monkeypatch.setattr(os, "fsync", note)
    with atomic_folder(target) as folder:
        (folder / "weights").write_text("x")
        inode = (folder / "weights").stat().st_ino
    assert (inode, False) in synced and (tmp_path.stat().st_ino, True) in synced


def test_how_a_run_is_executed_may_change_and_what_it_makes_may_not():
    how = ("llcm.training.micro_batch", "sampling.batch", "logging.wandb", "ruler.training.workers")
    assert all(HOW.search(key) for key in how)
    what = ("llcm.training.lr", "llcm.training.batch", "llcm.training.images", "seed", "data.views",
            "evaluation.min_confidence", "sampling.guidance", "sampling.precision")  # fmt: skip
    assert not [key for key in what if HOW.search(key)]


def test_students_are_drawn_in_few_steps_and_an_lcm_lora_without_a_scale(tmp_path, tiny_settings):
    tiny_settings["lcm_lora"] = {"training": {"images": 8, "batch": 4, "lr": 1e-3}}
    tiny_settings["sampling"] |= {"guidance": 3.0, "eta": 1, "solver": "ddim"}
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    student = {"steps": 2, "guidance": 3.0, "solver": "lcm", "eta": 0.0}
    assert row_settings(run.config, "llcm_2") == student
    assert row_settings(run.config, "lcm_lora_2") == student | {"guidance": 1.0}
    teacher = {"steps": 2, "guidance": 3.0, "solver": "ddim", "eta": 1}
    assert row_settings(run.config, "stable_diffusion") == teacher
