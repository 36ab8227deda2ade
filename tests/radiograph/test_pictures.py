"""Views that are decoded when they are asked for are the views."""

import multiprocessing
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from hpc_hipgen.files import DamagedError
from hpc_hipgen.radiograph import pictures
from hpc_hipgen.radiograph.layouts import read_imagefolder, read_shards, write_layouts
from hpc_hipgen.radiograph.pictures import Pictures, Places
from tests.radiograph.test_layouts import fill

KEYS = [
    3,
    np.int64(-1),
    slice(None),
    slice(1, 5, 2),
    slice(9, None),
    [4, 0, 4],
    np.array([5, 1]),
    np.arange(6) % 2 == 0,
    np.s_[:, :, ::-1],
    np.s_[1:4, 2, :3],
    np.s_[2, ::2],
]


@pytest.fixture
def arrays(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 5, 7), dtype=np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    return images, [tmp_path / f"{number}.png" for number in range(6)]


@pytest.mark.parametrize("kept", [0, 10**6])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_they_index_like_the_array(arrays, monkeypatch, key, workers, kept):
    monkeypatch.setattr(pictures, "_workers", lambda: workers)
    monkeypatch.setattr(pictures, "KEPT_BYTES", kept)
    images, files = arrays
    views = Pictures(Places.whole(files))
    for _ in range(2):
        found = views[key]
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, images[key])
    assert (views.shape, len(views), views.ndim) == (images.shape, 6, 3)
    np.testing.assert_array_equal(np.concatenate([images, views]), np.concatenate([images] * 2))
    np.testing.assert_array_equal(views.take([2, 5, 1])[[1, 0]], images[[5, 2]])
    np.testing.assert_array_equal(list(views), list(images))
    with pytest.raises(IndexError):
        views[6]


@pytest.mark.parametrize("kept", [0, 10**6])
def test_views_are_decoded_ahead_in_other_threads(arrays, monkeypatch, kept):
    monkeypatch.setattr(pictures, "KEPT_BYTES", kept)
    images, files = arrays
    views = Pictures(Places.whole(files))
    where = []
    decode = views._decode

    def watched(number):
        where.append((number, threading.current_thread() is threading.main_thread()))
        return decode(number)

    monkeypatch.setattr(views, "_decode", watched)
    monkeypatch.setattr(pictures, "_workers", lambda: 1)
    views.ahead(np.array([4, 1, 4]))
    np.testing.assert_array_equal(views[[1, 4]], images[[1, 4]])
    assert sorted(where) == [(1, False), (4, False)]
    views.ahead(np.array([1]))
    np.testing.assert_array_equal(views[[1, 2]], images[[1, 2]])
    again = [(1, False)] if kept == 0 else []
    assert sorted(where[2:]) == [*again, (2, True)]


def test_a_process_that_is_forked_off_waits_for_no_thread_of_its_parent(arrays):
    images, files = arrays
    views = Pictures(Places.whole(files))
    views.ahead(np.array([0, 1]))
    views[[0]]

    def child():
        views.ahead(np.array([2]))
        np.testing.assert_array_equal(views[[1, 2]], images[[1, 2]])

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(timeout=30)
    alive = process.is_alive()
    process.kill()
    assert not alive and process.exitcode == 0


def test_processes_that_are_forked_off_decode_for_all(arrays):
    """Of a set that stays in memory, there is one copy, whoever makes the batches."""
    images, files = arrays
    views = Pictures(Places.whole(files))
    context = multiprocessing.get_context("fork")
    for numbers in ([1, 3], [3, 4]):
        process = context.Process(target=views.__getitem__, args=(numbers,))
        process.start()
        process.join(30)
        assert process.exitcode == 0
        for number in numbers:
            files[number].unlink(missing_ok=True)
    np.testing.assert_array_equal(views[:5], images[:5])
    files[5].unlink()
    with pytest.raises(ValueError, match=r"5\.png"):
        views[5]


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path):
    write_layouts(tmp_path, fill(tmp_path))
    films = read_shards(tmp_path / "layouts/shards", "train")
    assert not films.images._known.any()
    assert not films.take([1, 2]).images._known.any()
    films.images[[1, 2]]
    assert films.images._known.tolist() == [False, True, True, False, False, False]


def test_files_and_shards_have_one_fingerprint(tmp_path):
    write_layouts(tmp_path, fill(tmp_path))
    shards = read_shards(tmp_path / "layouts/shards", "train")
    files = read_imagefolder(tmp_path / "layouts/imagefolder/train")
    assert shards.fingerprint() == files.fingerprint()
    assert shards.take([1, 0]).fingerprint() == files.take([1, 0]).fingerprint()
    assert shards.take([1, 0]).fingerprint() != shards.take([0, 1]).fingerprint()


def test_odd_images_are_named(arrays):
    images, files = arrays
    Image.fromarray(images[1][:, :4]).save(files[1])
    Image.fromarray(images[2]).convert("RGB").save(files[2])
    files[3].write_bytes(files[3].read_bytes()[:50])
    files[4].write_bytes(b"no image")
    views = Pictures(Places.whole(files))
    for number in (1, 2, 3, 4):
        with pytest.raises(ValueError, match=rf"/{number}\.png: unreadable view at byte 0 \(.+\);"):
            views[number]
    files[5].unlink()
    with pytest.raises(DamagedError, match=r"5\.png: missing; make the data again"):
        Places.whole(files)


def test_many_threads_read_many_shards(tmp_path, monkeypatch):
    """A shard that is opened twice, or closed for others, is still open while it is read."""
    rng = np.random.default_rng(0)
    files, sizes, contents = [], [], []
    for number in range(64):
        path = tmp_path / f"{number}.png"
        contents.append(rng.integers(0, 256, (4, 4), dtype=np.uint8))
        Image.fromarray(contents[-1]).save(path)
        files.append(path)
        sizes.append(path.stat().st_size)
    crc32 = np.array([zlib.crc32(path.read_bytes()) for path in files], np.uint32)
    monkeypatch.setattr(pictures, "OPEN_SHARDS", 2)
    monkeypatch.setattr(pictures, "KEPT_BYTES", 0)
    number = np.arange(64)
    views = Pictures(Places(files, number, 0 * number, np.array(sizes), crc32))
    for _ in range(20):
        views.ahead(number)
        np.testing.assert_array_equal(views[number], np.stack(contents))
