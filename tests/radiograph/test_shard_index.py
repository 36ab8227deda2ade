"""The index of the shards: what is in it, and when it is made anew."""

import io
import os
import tarfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hpc_hipgen.radiograph import shard_index
from hpc_hipgen.radiograph.layouts import read_manifest, read_shards, write_layouts
from tests.radiograph.test_layouts import fill, same


@pytest.fixture
def folder(tmp_path):
    write_layouts(tmp_path, fill(tmp_path))
    return tmp_path / "layouts" / "shards"


@pytest.fixture
def passes(monkeypatch):
    """The shards that were gone through, in order."""
    seen = []
    inner = shard_index._contents
    monkeypatch.setattr(
        shard_index, "_contents", lambda path: seen.append(path.name) or inner(path)
    )
    return seen


SHARDS = ["train-class_1-000000.tar", "train-class_2-000000.tar"]


def test_it_says_where_the_images_lie(folder):
    table = pd.read_parquet(folder / "train.parquet")
    assert table["id"].is_monotonic_increasing and len(table) == 6
    for line in table.itertuples():
        data = (folder / line.shard).read_bytes()[line.offset : line.offset + line.size]
        with tarfile.open(folder / line.shard) as tar:
            assert tar.extractfile(f"{line.id}.png").read() == data
            assert tar.extractfile(f"{line.id}.txt").read().decode() == line.caption
        assert Image.open(io.BytesIO(data)).size == (96, 64)


def test_prepared_shards_are_not_gone_through_again(folder, passes):
    same(read_manifest(folder.parents[1], "train"), read_shards(folder, "train"))
    assert passes == []


def touch(folder):
    later = (folder / "train.parquet").stat().st_mtime_ns + 10**9
    os.utime(folder / SHARDS[0], ns=(later, later))


def damage(folder):
    (folder / "train.parquet").write_bytes(b"PAR1")


def replace_by_another_table(folder):
    pd.DataFrame({"id": []}).to_parquet(folder / "train.parquet")


def flip_a_number(folder):
    """A byte of the landmarks: the table reads as before, but for the value."""
    path = folder / "train.parquet"
    content, table = bytearray(path.read_bytes()), pd.read_parquet(path)
    value = table["patient_left"].iloc[0]
    place = content.index(np.float64(value).tobytes())
    content[place + 5] ^= 1
    path.write_bytes(content)
    assert pd.read_parquet(path)["patient_left"].iloc[0] != value


OLD = [lambda f: (f / "train.parquet").unlink(), touch, damage]
OLD += [replace_by_another_table, flip_a_number]


@pytest.mark.parametrize("change", OLD, ids=["none", "older", "damaged", "foreign", "flipped"])
def test_it_is_made_anew_where_there_is_none_or_an_old_one(folder, passes, change):
    content = (folder / "train.parquet").read_bytes()
    change(folder)
    same(read_manifest(folder.parents[1], "train"), read_shards(folder, "train"))
    assert passes == SHARDS
    assert (folder / "train.parquet").read_bytes() == content


def test_a_shard_more_or_less_is_noticed(folder, passes):
    (folder / SHARDS[0]).rename(folder / "aside")
    assert len(read_shards(folder, "train")) == 2
    (folder / "aside").rename(folder / SHARDS[0])
    assert len(read_shards(folder, "train")) == 6
    assert passes == [SHARDS[1], *SHARDS]


def test_a_view_that_changed_behind_its_back_is_named(folder):
    path, index = folder / SHARDS[0], folder / "train.parquet"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 40] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(0, index.stat().st_mtime_ns))
    films = read_shards(folder, "train")
    with pytest.raises(ValueError, match=rf"{path.name}: unreadable view at byte \d+ \(its bytes"):
        films.images[:]
    np.testing.assert_array_equal(
        films.images[1:], read_manifest(folder.parents[1], "train").images[1:]
    )


def test_a_folder_that_may_not_be_written_to(folder, monkeypatch, passes):
    (folder / "train.parquet").unlink()

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shard_index, "write_atomic", refuse)
    assert len(read_shards(folder, "train")) == 6
    assert passes == SHARDS and not (folder / "train.parquet").exists()
