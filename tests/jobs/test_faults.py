"""Disks that fill and files that are damaged: nothing complete is lost, and the words help."""

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

from hpc_hipgen.cluster import stage_files
from hpc_hipgen.cluster.calls import StageCall
from hpc_hipgen.cluster.stage_files import failures, holding
from hpc_hipgen.evaluation.samples import read_samples
from hpc_hipgen.pipeline import Stage
from hpc_hipgen.radiograph.layouts import read_shards
from hpc_hipgen.run import Run
from jobs import evaluate, train


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of so many bytes on a folder; called again, it gives that disk another size."""
    mounted = []

    def mount(folder: Path, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        options = f"size={size}" + (",remount" if folder in mounted else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a small disk can be mounted by root only")
        mounted.append(folder)

    yield mount
    for folder in set(mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def prepared(tiny_run, folder, **training):
    """A run of the same data with nothing trained, the ruler's training changed."""
    tree = tiny_run.config.model_dump(mode="json")
    tree["ruler"]["training"] |= training
    shutil.copytree(tiny_run.path("data"), folder / "data")
    (folder / "stages").mkdir()
    shutil.copy(tiny_run.path("stages", "prepare.json"), folder / "stages")
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return Run(folder)


def checkpoint_files(run, name):
    return json.loads(run.path("ruler", "checkpoints", name, "complete.json").read_text())["files"]


def test_training_by_hand_leaves_a_job_of_the_run_alone(tiny_run, tmp_path, monkeypatch, capsys):
    run = prepared(tiny_run, tmp_path / "run")
    monkeypatch.setattr(stage_files, "_LOCK_SECONDS", 0.1)
    with holding(run, "train-ruler"):
        assert train.main(["--run", str(run.folder), "ruler"]) == 2
    assert "train-ruler is at work already (pid " in capsys.readouterr().err
    assert not run.path("ruler").exists() and run.done("train-ruler") is None
    assert train.main(["--run", str(run.folder), "probe"]) == 2
    assert not run.path("logs", "train-probe").exists(), "which is no model of this run"


@pytest.mark.slow
def test_a_disk_that_fills_during_a_checkpoint(tiny_run, tmp_path, small_disk, capsys):
    run = prepared(tiny_run, tmp_path / "run", checkpoint_images=4)
    expected = checkpoint_files(tiny_run, "0000000008")
    size = sum(size for size, _ in expected.values())
    folder = run.path("ruler")
    small_disk(folder, int(1.5 * size))
    capsys.readouterr()

    assert train.main(["--run", str(run.folder), "ruler"]) == 1
    (said,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert said == (
        f"error: {folder / 'checkpoints'}: the checkpoint at 8 images could not be written "
        "(the disk is full); the one at 4 is kept. Free space there, then start again to go on."
    )
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["0000000004"]
    assert run.done("train-ruler") is None

    small_disk(folder, 10 * size)
    assert train.main(["--run", str(run.folder), "ruler"]) == 0
    assert "goes on from 4 images" in capsys.readouterr().err
    assert checkpoint_files(run, "0000000008") == expected, "as if the disk had never been full"
    assert run.done("train-ruler")


def fill(run: Run) -> None:
    """A stage that writes until the disk is full."""
    with run.path("full", "file").open("wb") as file:
        while True:
            file.write(bytes(65_536))


def test_a_full_disk_in_any_stage_names_the_run(tiny_run, tmp_path, small_disk, monkeypatch):
    run = Run.create(tmp_path / "run", tiny_run.config)
    small_disk(run.path("full"), 200_000)
    monkeypatch.setattr("hpc_hipgen.cluster.calls.resolve_name", lambda name: fill)
    with pytest.raises(OSError):
        StageCall(Stage("fill", "any:fill", "cpu"), str(run.folder))()
    (failure,) = failures(run, "fill")
    assert failure["error"].startswith(f"{run.folder}: the disk is full. Free space")


def cuts(path):
    """Lengths at which a tar can be cut off: at each member, amid each, and before its end."""
    with tarfile.open(path) as tar:
        members = [(m.offset, m.offset_data + m.size // 2) for m in tar]
        end = -(-tar.offset // 512) * 512
    return sorted({*(place for pair in members for place in pair), end - 512, end})


def cut_copies(source, folder):
    """A copy of a tar, cut off at one place after another."""
    whole, copy = source.read_bytes(), folder / source.name
    for length in cuts(source):
        copy.write_bytes(whole[:length])
        yield copy


@pytest.mark.parametrize("row", ["ruler", "llcm_1"])
def test_a_sample_shard_that_is_cut_off_is_named(tiny_run, tmp_path, row):
    source = tiny_run.path("samples", row, "shard-00000.tar")
    assert len(read_samples(source)) == 4
    seen = 0
    for copy in cut_copies(source, tmp_path):
        with pytest.raises(ValueError, match=r"shard-00000.tar: unreadable .* remove it and start"):
            read_samples(copy)
        seen += 1
    assert seen > 20


@pytest.mark.slow
@pytest.mark.parametrize("row", ["ruler", "llcm_1"])
def test_a_sample_shard_that_is_cut_off_is_drawn_anew(tiny_run, tmp_path, row, capsys):
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    shard = run.path("samples", row, "shard-00000.tar")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert evaluate.evaluate_items(run, [(row, 0)]) == 1
    said = capsys.readouterr().err
    assert "unreadable sample shard" in said and "drawing it anew" in said
    assert shard.read_bytes() == whole
    assert run.path("evaluation", row, "shard-00000.parquet").is_file()


def test_a_data_shard_that_is_cut_off_or_altered_is_named(tiny_run, tmp_path):
    folder = tiny_run.path("data", "layouts", "shards")
    shards = sorted(folder.glob("train-class_*.tar"))
    for shard in shards:
        shutil.copy(shard, tmp_path)
    assert len(read_shards(tmp_path, "train")) == 12
    for copy in cut_copies(shards[0], tmp_path):
        with pytest.raises(ValueError, match=f"{copy.name}: unreadable shard"):
            read_shards(tmp_path, "train")
    content = bytearray(shards[0].read_bytes())
    content[content.index(b"IDAT") + 40] ^= 1
    copy.write_bytes(content)
    with pytest.raises(ValueError, match=f"{shards[0].name}: unreadable shard"):
        read_shards(tmp_path, "train")


@pytest.mark.slow
def test_a_data_shard_that_is_gone_is_noticed(tiny_run, tmp_path, capsys):
    run = prepared(tiny_run, tmp_path / "run")
    shards = sorted(run.path("data", "layouts", "shards").glob("train-class_*.tar"))
    assert len(shards) > 1
    shards[0].unlink()
    assert train.main(["--run", str(run.folder), "llcm"]) == 2
    said = capsys.readouterr().err
    assert f"waits for train-stable_diffusion; `python -m jobs.launch {run.folder}` runs" in said
    run.mark_done("train-stable_diffusion")
    assert train.main(["--run", str(run.folder), "llcm"]) == 2
    assert "layouts/shards" in (said := capsys.readouterr().err) and "12 were prepared" in said
