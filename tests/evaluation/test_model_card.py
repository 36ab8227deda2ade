"""Model cards: what the hub reads, scores when there are some, and nothing of the machine."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hpc_hipgen.config import parse_experiment
from hpc_hipgen.evaluation.model_card import A_FOLDER, write_card, write_cards
from hpc_hipgen.run import Run

ROOT = Path(__file__).parents[2]
METRICS = json.loads((ROOT / "results" / "reference" / "metrics.json").read_text())


@pytest.fixture
def run(tmp_path, tiny_settings):
    tiny_settings["lora"] = {"base": str(tmp_path / "secret"), "training": {**TRAINING}}
    return Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))


TRAINING = {"images": 8, "batch": 4, "lr": 1e-3}


def both(row, score):
    """A score of the record, left / right."""
    sides = METRICS["faithfulness"][row]
    return f"{sides['left'][score]:.2f} / {sides['right'][score]:.2f}"


def test_an_export_of_training_has_its_card(tiny_run):
    for model in tiny_run.config.trained():
        card = ModelCard.load(tiny_run.path(model, "export", "README.md"))
        assert "not-for-diagnosis" in card.data.tags and model in card.data.tags
        assert "**Not for diagnosis.**" in card.text and "Not evaluated yet." in card.text
        assert "6 drawn phantoms for training" in card.text
        assert "8 training images seen" in card.text
        assert card.data.pipeline_tag == (
            None if model in ("ruler", "autoencoder") else "text-to-image"
        )


def test_the_evaluation_writes_the_scores_of_the_models_own_rows(run):
    run.path("report").mkdir()
    run.path("report", "metrics.json").write_text(json.dumps(METRICS))
    for model in ("llcm", "ruler"):
        run.path(model, "export").mkdir(parents=True)
        run.mark_done(f"train-{model}", images=8, parameters=12.0)
    write_cards(run)
    card = ModelCard.load(run.path("llcm", "export", "README.md"))
    values = {r.metric_name: r.metric_value for r in card.data.eval_results}
    names = {r.dataset_name for r in card.data.eval_results}
    assert all(name.endswith(" images for captions of held-out drawn phantoms") for name in names)
    r = METRICS["faithfulness"]["llcm_4"]["left"]["r"]
    assert values["r of the left Norberg angle, LLCM, 4 steps"] == round(r, 4)
    assert f"| LLCM, 4 steps | {both('llcm_4', 'r')} | {both('llcm_4', 'mae')} |" in card.text
    assert "Stable Diffusion, " not in card.text and "LLCM, 4 steps: Fréchet" in card.text
    text = run.path("ruler", "export", "README.md").read_text()
    assert f"| Test films (ruler alone) | {both('ruler', 'r')} |" in text
    assert not run.path("stable_diffusion", "export").exists()


def test_the_call_is_how_the_run_drew_its_samples(run, tmp_path):
    calls = {
        "stable_diffusion": "num_inference_steps=2, guidance_scale=3, eta=1",
        "lora": "num_inference_steps=2, guidance_scale=3, eta=1",
        "llcm": "num_inference_steps=2, guidance_scale=3",
        "ruler": None,
        "autoencoder": None,
    }
    for model, call in calls.items():
        write_card(run, model, tmp_path, {}, {})
        text = (tmp_path / "README.md").read_text()
        said = (
            f"As the run drew its samples, but for the seed: `pipeline(prompt, {call}).images[0]`"
        )
        assert (said in text) if call else ("As the run drew" not in text), model


@pytest.mark.parametrize("size, named", [(64, True), (None, True), (4, False)])
@pytest.mark.parametrize("model", ["lora", "lcm_lora"])
def test_a_call_on_a_base_of_another_size_names_the_size(
    tmp_path, tiny_settings, model, size, named
):
    base = {"unet": {"sample_size": size}, "vae": {"block_out_channels": [8] * 4}}
    for part, settings in base.items():
        (tmp_path / "base" / part).mkdir(parents=True)
        (tmp_path / "base" / part / "config.json").write_text(json.dumps(settings))
    tiny_settings[model] = {"base": str(tmp_path / "base"), "training": {**TRAINING}}
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    write_card(run, model, tmp_path, {}, {})
    assert (", height=32, width=32)" in (tmp_path / "README.md").read_text()) is named


def test_adapters_on_a_base_of_another_scheduler_are_drawn_with_ddim(run, tmp_path):
    scheduler = tmp_path / "secret" / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir(parents=True)
    scheduler.write_text('{"_class_name": "PNDMScheduler", "steps_offset": 1}')
    write_card(run, "lora", tmp_path / "export", {}, METRICS)
    text = (tmp_path / "export" / "README.md").read_text()
    said = (
        "DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, set_alpha_to_one"
    )
    assert said in " ".join(text.split()) and "steps_offset=" not in text
    scheduler.write_text('{"_class_name": "DDIMScheduler"}')
    write_card(run, "lora", tmp_path / "export", {}, METRICS)
    assert "DDIMScheduler" not in (tmp_path / "export" / "README.md").read_text()


def test_a_solver_that_diffusers_lacks_is_named(tmp_path, tiny_settings):
    tiny_settings["sampling"] = {**tiny_settings["sampling"], "solver": "leapfrog", "eta": 0}
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    for model, named in {"stable_diffusion": True, "llcm": False}.items():
        write_card(run, model, tmp_path, {}, {})
        text = (tmp_path / "README.md").read_text()
        assert ("LeapfrogScheduler.from_config" in text) is named, model


def test_a_model_that_no_row_judges_has_its_own_error(tmp_path, tiny_settings):
    tiny_settings |= {name: {"training": {**TRAINING}} for name in ("reward_model", "feedback")}
    tiny_settings["clip"] = {"contrast": 2, "training": {**TRAINING}}
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    sides = {"validation_mae_left": 0.5, "validation_mae_right": 1.25}
    said = "On validation films its mean absolute error is"
    for model, figures, error in (
        ("reward_model", sides, "0.50 / 1.25 degrees, left / right."),
        ("clip", {"validation_angle_mae": 2.0}, "2.00 degrees."),
        ("ruler", sides, None),
    ):
        write_card(run, model, tmp_path, figures, {})
        text = (tmp_path / "README.md").read_text()
        assert f"{said} {error}" in text if error else said not in text, model
        assert ("Not evaluated yet." in text) is (model == "ruler")


def test_no_folder_of_the_machine_is_named(run, tmp_path):
    write_card(run, "lora", tmp_path, {}, {})
    text = (tmp_path / "README.md").read_text()
    assert f"base: {A_FOLDER}" in text and f"Started from {A_FOLDER}." in text
    assert "secret" not in text and str(tmp_path) not in text


def test_a_published_base_is_named_as_the_hub_does(tmp_path, tiny_settings):
    tiny_settings["lora"] = {"base": "weights/stable-diffusion-v1-5", "training": {**TRAINING}}
    run = Run.create(tmp_path / "run", parse_experiment(tiny_settings, "x"))
    write_card(run, "lora", tmp_path, {}, {})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
