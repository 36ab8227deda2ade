"""Checkpoints are whole or not there."""

import json

import pytest
from toy_task import ToyTask, toy_train

from hpc_hipgen.training.checkpoint import AVERAGES, KEEP, STATE, _write, complete_checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "toy"
    toy_train(folder)
    return folder / "checkpoints"


def test_the_last_ones_are_kept_and_nothing_partial_is_left(folder):
    assert [path.name for path in complete_checkpoints(folder)] == ["0000000096", "0000000064"]
    assert len(list(folder.iterdir())) == KEEP == 2


def test_one_after_every_so_many_images_is_kept_too(tmp_path):
    for images in range(30, 400, 30):
        _write(tmp_path, images, {"state.pt": {}}, keep=100)
    assert [int(path.name) for path in complete_checkpoints(tmp_path)] == [390, 360, 300, 210, 120]


def test_of_those_that_are_kept_for_sweeps_the_averages_stay(tmp_path, capsys):
    training = {"images": 160, "checkpoint_images": 32, "keep_images": 50}
    toy_train(tmp_path / "toy", **training)
    checkpoints = tmp_path / "toy" / "checkpoints"
    whole, last, *kept = complete_checkpoints(checkpoints)
    assert [int(path.name) for path in (whole, last, *kept)] == [160, 128, 64]
    assert [(path / STATE).exists() for path in (whole, last, *kept)] == [True, True, False]
    assert all((path / AVERAGES).is_file() for path in kept)
    (kept[0] / STATE).write_bytes(b"what an interruption left")
    toy_train(tmp_path / "toy", **training | {"images": 192})
    assert not (kept[0] / STATE).exists()
    for path in complete_checkpoints(checkpoints)[:KEEP]:
        (path / STATE).write_bytes(b"")
    task = toy_train(tmp_path / "toy", ToyTask(), **training | {"images": 32})
    assert task.seen[0] == 0, "there is nothing to go on from"
    said = capsys.readouterr().err
    assert said.count("damaged checkpoint") == 2 and "nothing to go on from" in said
    assert [int(path.name) for path in complete_checkpoints(checkpoints)] == [128, 64, 32]


def test_the_marker_lists_every_file(folder):
    newest = complete_checkpoints(folder)[0]
    stored = json.loads((newest / "complete.json").read_text())
    files = {str(f.relative_to(newest)) for f in newest.rglob("*") if f.is_file()}
    assert set(stored["files"]) == files - {"complete.json"}
    assert stored["images"] == 96 and files == {STATE, AVERAGES, "complete.json"}


def test_what_a_killed_writer_left_is_no_checkpoint_and_no_hindrance(tmp_path):
    partial = tmp_path / "toy" / "checkpoints" / ".0000000040.ab12cd34.tmp"
    partial.mkdir(parents=True)
    (partial / "complete.json").write_text("{}")
    (partial / "junk").write_text("half")
    assert complete_checkpoints(partial.parent) == []
    task = toy_train(tmp_path / "toy", ToyTask(), images=32)
    assert task.seen[0] == 0
    assert [path.name for path in partial.parent.iterdir()] == ["0000000032"]
    assert not (partial.parent / "0000000032" / "junk").exists()


def test_no_folder_is_no_checkpoint(tmp_path):
    assert complete_checkpoints(tmp_path / "nowhere") == []


def test_a_checkpoint_that_lost_a_file_is_passed_over(tmp_path):
    toy_train(tmp_path / "toy")
    checkpoints = tmp_path / "toy" / "checkpoints"
    (checkpoints / "0000000096" / STATE).unlink()
    assert [path.name for path in complete_checkpoints(checkpoints)] == ["0000000064"]
