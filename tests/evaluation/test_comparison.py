"""What a generator cost, with what it was trained on."""

import pytest
from report_run import GENERATORS, experiment

from hpc_hipgen.evaluation import comparison
from hpc_hipgen.evaluation.results import Results
from hpc_hipgen.radiograph.geometry import PATIENT_SIDES
from hpc_hipgen.run import Run

SECONDS = {"ruler": 1000, "autoencoder": 40, "stable_diffusion": 20, "llcm": 10}


def test_what_a_generator_was_trained_on_is_added_to_its_own_time(tmp_path):
    run = Run.create(tmp_path / "run", experiment(**GENERATORS))
    logs = {
        model: [
            {"images": 16, "images_per_second": 32.0},
            {"images": 16 + 8 * (s - 0.5), "images_per_second": 8.0},
        ]
        for model, s in SECONDS.items()
    }  # half a second and the rest
    rows = ("ruler", "stable_diffusion", "llcm_4")
    scores = {side: {"r": 0.5, "mae": 2.0, "failed": 1} for side in PATIENT_SIDES}
    metrics = {"frechet": None, "memorisation": None, "faithfulness": dict.fromkeys(rows, scores)}
    lines = comparison.compare(
        run, Results(dict.fromkeys(rows), [], {}, metrics, logs), {row: row for row in rows}
    )
    costs = {x["row"]: (x["training_seconds"], x["seconds_with_bases"]) for x in lines}
    assert costs == {
        "stable_diffusion": pytest.approx((20, 60)),
        "llcm_4": pytest.approx((10, 70)),
    }
    assert "| llcm_4 | – | – | 0.2 (1.2) | 0.50 / 0.50 | 2.0 / 2.0 | 1 / 1 |" in (
        comparison.markdown(lines)
    )
