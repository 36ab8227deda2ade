"""What the memorisation audit is checked by: planted copies, and films after the autoencoder."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from hpc_hipgen.evaluation import audit
from hpc_hipgen.evaluation.audit import HELD_OUT, Controls, read_controls
from hpc_hipgen.evaluation.film_pixels import Nearest
from hpc_hipgen.evaluation.memorisation import Verdict
from hpc_hipgen.radiograph.layouts import read_manifest


def test_controls_are_held_out_films_and_copies_that_know_their_film(tiny_run):
    data = tiny_run.path("data")
    films, views = read_manifest(data, "train", nominal_only=True), read_manifest(data, "train")
    held_out = read_manifest(data, HELD_OUT, nominal_only=True)
    controls = read_controls(data, films)
    assert len(set(controls.keys)) == len(controls.images)
    n = len(held_out)
    assert (controls.images[:n] == np.asarray(held_out.images)).all()
    assert set(controls.kinds[:n]) == {HELD_OUT} and set(controls.sources[:n]) == {-1}
    assert HELD_OUT not in controls.kinds[n:] and controls.sources[n:].min() == 0

    mirrored = controls.kinds == "mirrored"
    copied = np.asarray(films.images)[controls.sources[mirrored]]
    assert (controls.images[mirrored] == copied[:, :, ::-1]).all()
    other = np.flatnonzero(controls.kinds == "another view")
    assert len(other)
    for place in other:
        film, image = controls.sources[place], controls.images[place]
        own = [
            v for v, name in zip(views.images, views.film, strict=True) if name == films.film[film]
        ]
        assert (image != films.images[film]).any()
        assert any((image == view).all() for view in own)


def judging(films, seen=lambda images: None):
    """An auditor that takes n images for copies of so many films, whatever they are."""

    def judge(features, images):
        seen(images)
        nearest = Nearest(np.zeros(len(films)), np.array(films), np.zeros(len(films), bool))
        return Verdict({"pixels": nearest}, {"pixels": np.zeros(len(films))})

    return SimpleNamespace(judge=judge)


def test_a_copy_that_is_taken_for_another_film_is_not_found():
    kinds, sources = np.array([HELD_OUT, "shifted", "shifted"]), np.array([-1, 4, 5])
    controls = Controls(["a", "b", "c"], np.zeros((3, 4, 4), np.uint8), kinds, sources)
    found = audit._recall(judging([4, 9]), controls, np.zeros((3, 2)))
    assert list(found) == ["shifted"]
    assert (found["shifted"]["found"], found["shifted"]["n"]) == (1, 2)


def test_decoded_films_are_looked_for_among_the_originals_by_their_name():
    """In whatever order; those whose original was not measured are left out."""
    tables = {
        "ruler": pd.DataFrame({"film": ["a", "b", "c"]}),
        "round_trip": pd.DataFrame({"film": ["c", "new", "a"]}),
    }
    images = {row: np.arange(3, dtype=np.uint8).reshape(3, 1, 1) + 10 for row in tables}
    features, seen = {row: np.zeros((3, 2)) for row in tables}, []

    def against(features, originals):
        assert originals is images["ruler"]
        return judging([2, 1], lambda decoded: seen.append(decoded.ravel().tolist()))

    auditor = SimpleNamespace(against=against)
    flags = audit._decoded(auditor, "round_trip", tables, features, images)
    assert seen == [[10, 12]]
    assert flags["either"].tolist() == [True, False]
