"""What models learn from: training films, and no other."""

import pytest

from hpc_hipgen.radiograph.layouts import read_manifest
from hpc_hipgen.tasks import task_of


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_run", "token_run", "embedding_run"])
def test_models_learn_from_training_films_alone(name, request):
    run = request.getfixturevalue(name)
    films = {s: set(read_manifest(run.path("data"), s).film) for s in ("train", "validation")}
    for model in run.config.trained():
        task = task_of(run, model)
        assert set(task.films.film) == films["train"], model
        held_out = getattr(task, "held_out", None) or getattr(task, "validation", None)
        assert held_out is None or set(held_out.film) == films["validation"], model
