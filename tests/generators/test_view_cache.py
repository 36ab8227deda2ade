"""The cache of what networks make of views."""

import dataclasses
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from warm_python import warm_python

from hpc_hipgen.config import Autoencoder
from hpc_hipgen.files import lock
from hpc_hipgen.generators import autoencoder as autoencoders
from hpc_hipgen.generators import view_cache
from hpc_hipgen.generators.autoencoder import build_autoencoder, cached_latents, encode
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.radiograph.pictures import Pictures, Places

ROOT = Path(__file__).parents[2]


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    return build_autoencoder(Autoencoder(block_out_channels=(8, 8)), 16).eval()


def some_films(seed=0, n=3):
    images = np.random.default_rng(seed).integers(0, 256, (n, 16, 16), dtype=np.uint8)
    ids = [f"view-{i}" for i in range(n)]
    angles = np.full(n, 100.0)
    classes = np.ones(n, np.int64)
    return Films(ids, images, np.zeros((n, 2, 5)), ids, angles, angles, classes, ids)


def test_they_are_computed_once(autoencoder, tmp_path, monkeypatch):
    films = some_films()
    first = cached_latents(autoencoder, films, tmp_path)
    assert torch.allclose(first, encode(autoencoder, films.images), atol=1e-5)
    monkeypatch.setattr(autoencoders, "encode", None)
    assert torch.equal(cached_latents(autoencoder, films, tmp_path), first)
    assert len(list(tmp_path.glob("*.npy"))) == 1


@pytest.mark.parametrize("left", [0, 300])
def test_a_file_that_lost_its_end_is_made_anew(autoencoder, tmp_path, capsys, left):
    films = some_films()
    first = cached_latents(autoencoder, films, tmp_path).clone()
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes(path.read_bytes()[:left])
    assert torch.equal(cached_latents(autoencoder, films, tmp_path), first)
    assert f"{path}: damaged" in capsys.readouterr().err


def test_of_two_jobs_that_want_the_same_one_computes(autoencoder, tmp_path, monkeypatch, capsys):
    films, waits = some_films(), []
    first = cached_latents(autoencoder, films, tmp_path)
    (path,) = tmp_path.glob("*.npy")
    path.rename(tmp_path / "later")
    with path.with_suffix(".lock").open("w") as other:
        assert lock(other)

        def other_is_done(seconds):
            waits.append(seconds)
            (tmp_path / "later").rename(path)
            other.close()

        monkeypatch.setattr(view_cache.time, "sleep", other_is_done)
        monkeypatch.setattr(autoencoders, "encode", None)
        assert torch.equal(cached_latents(autoencoder, films, tmp_path), first)
    assert len(waits) == 1
    assert capsys.readouterr().out == f"waits for another job that makes {path}\n"


TWO_RANKS = """
import sys, time
from datetime import timedelta
import numpy as np, torch
from hpc_hipgen.config import Autoencoder
from hpc_hipgen.files import lock
from pathlib import Path
from hpc_hipgen.generators import autoencoder as autoencoders, view_cache
from hpc_hipgen.radiograph.layouts import Films

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
(folder / f"here-{rank}").touch()
while len(list(folder.glob("here-*"))) < 2:
    time.sleep(0.05)
torch.distributed.init_process_group(
    "gloo", f"file://{folder}/store", timedelta(seconds=3), world_size=2, rank=rank
)
from hpc_hipgen.training import rank_zero
rank_zero.EVERY = 1
encode, autoencoders.views_at_once = autoencoders.encode, lambda resolution: 1
def said(autoencoder, images, batch):
    print("encodes", flush=True)
    time.sleep(1.2 * rank)
    return encode(autoencoder, images, batch) * factor
autoencoders.encode, joined = said, view_cache._joined
def slow(parts, views, say_busy):
    for data in joined(parts, views, say_busy):
        time.sleep(1)
        say_busy()
        time.sleep(0.5)
        yield data
view_cache._joined = slow
torch.manual_seed(0)
autoencoder = autoencoders.build_autoencoder(Autoencoder(block_out_channels=(8, 8)), 16).eval()
ids = [f"view-{i}" for i in range(6)]
images = np.random.default_rng(0).integers(0, 256, (6, 16, 16), dtype=np.uint8)
angles, classes = np.full(6, 100.0), np.ones(6, np.int64)
films = Films(ids, images, np.zeros((6, 2, 5)), ids, angles, angles, classes, ids)
for name, factor in (("good", 1), ("bad", torch.nan if rank else 1)):
    found = autoencoders.cached_latents(autoencoder, films, folder / name)
    print(name, found.double().sum().item(), flush=True)
"""


@pytest.mark.slow
def test_every_rank_encodes_a_share_and_one_joins_them(tmp_path, monkeypatch):
    ranks = [
        warm_python(TWO_RANKS, rank, tmp_path, output=tmp_path / f"said-{rank}", path=[ROOT])
        for rank in range(2)
    ]
    (one, first), (other, second) = [rank.finish() for rank in ranks]
    assert one and other, "both fail at the end"
    # a share of the second, and joining them, take longer than the process group lets a rank wait
    *said, found = [x for x in first.splitlines() if x.startswith(("encodes", "good "))][:4]
    assert said == ["encodes"] * 3 and found.startswith("good "), first
    assert found in second.splitlines() and second.count("encodes") >= 3, second
    for words in (first, second):  # that of the second
        assert "ValueError: the autoencoder gives non-finite numbers for view-3" in words
    # the same bytes as of one rank, and no parts of it are left
    (path,) = (tmp_path / "good").glob("*.npy")
    assert not list((tmp_path / "good").glob("*.part-*"))
    torch.manual_seed(0)
    alone = build_autoencoder(Autoencoder(block_out_channels=(8, 8)), 16).eval()
    monkeypatch.setattr(autoencoders, "views_at_once", lambda resolution: 1)
    cached_latents(alone, some_films(n=6), tmp_path / "alone")
    assert (tmp_path / "alone" / path.name).read_bytes() == path.read_bytes()


def test_other_films_or_another_autoencoder_have_their_own(autoencoder, tmp_path):
    films = some_films()
    cached_latents(autoencoder, films, tmp_path)
    cached_latents(autoencoder, some_films(seed=1), tmp_path)
    renamed = dataclasses.replace(films, ids=["a", "b", "c"])
    cached_latents(autoencoder, renamed, tmp_path)
    with torch.no_grad():
        autoencoder.quant_conv.bias[0] += 1
    moved = cached_latents(autoencoder, films, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 4
    assert torch.allclose(moved, encode(autoencoder, films.images), atol=1e-5)


def test_the_scaling_factor_counts(autoencoder, tmp_path):
    plain = cached_latents(autoencoder, some_films(), tmp_path)
    autoencoder.register_to_config(scaling_factor=0.5)
    assert torch.allclose(cached_latents(autoencoder, some_films(), tmp_path), plain / 2)


def test_views_without_finite_latents_are_named_and_nothing_is_kept(
    autoencoder, tmp_path, monkeypatch
):
    monkeypatch.setattr(autoencoders, "views_at_once", lambda resolution: 2)
    films = some_films()
    films.images[2] = 255

    def broken(autoencoder, images, batch):
        latents = encode(autoencoder, images, batch)
        latents[(images == 255).all((1, 2))] = torch.inf
        return latents

    monkeypatch.setattr(autoencoders, "encode", broken)
    with pytest.raises(ValueError, match="non-finite numbers for view-2"):
        cached_latents(autoencoder, films, tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def test_they_are_memory_mapped_and_independent_of_the_batch(autoencoder, tmp_path, monkeypatch):
    films = some_films(n=5)
    whole = cached_latents(autoencoder, films, tmp_path / "whole")
    monkeypatch.setattr(autoencoders, "views_at_once", lambda resolution: 2)
    parts = cached_latents(autoencoder, films, tmp_path / "parts")
    assert torch.allclose(whole, parts, atol=1e-6) and whole.dtype == torch.float32
    (path,) = (tmp_path / "parts").glob("*.npy")
    stored = np.load(path)
    parts[0] = 0
    assert np.array_equal(np.load(path), stored), "the file is not written to"
    chosen = np.array([3, 1])
    assert torch.equal(parts[chosen], torch.from_numpy(stored[chosen]))


def test_a_view_has_one_cache_in_whatever_layout_it_lies(autoencoder, tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(path)
    contents = [path.read_bytes() for path in paths]
    together = tmp_path / "together"
    together.write_bytes(b"".join(contents))
    size = np.array([len(content) for content in contents])
    crc32 = np.array([zlib.crc32(content) for content in contents], np.uint32)
    offset = np.cumsum([0, *size[:-1]])
    single = dataclasses.replace(some_films(), images=Pictures(Places.whole(paths)))
    places = Places([together], np.zeros(3, int), offset, size, crc32)
    joined = dataclasses.replace(single, images=Pictures(places))
    cache = tmp_path / "cache"
    first = cached_latents(autoencoder, single, cache)
    assert torch.equal(cached_latents(autoencoder, joined, cache), first)
    assert len(list(cache.glob("*.npy"))) == 1
    paths[1].write_bytes(contents[0])
    changed = dataclasses.replace(single, images=Pictures(Places.whole(paths)))
    cached_latents(autoencoder, changed, cache)
    assert len(list(cache.glob("*.npy"))) == 2
