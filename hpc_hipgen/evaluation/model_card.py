"""The model card beside every export: README.md with the front matter of the Hugging Face Hub.

Written with the export, and again, with the scores, when the run is evaluated. It holds no path
of the machine: folders that a setting names appear as what they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from hpc_hipgen.config import DDIM, GENERATORS, Adapters, autoencoder_config, autoencoder_stride
from hpc_hipgen.config.public import A_FOLDER, public_settings
from hpc_hipgen.evaluation.metrics_file import read_metrics
from hpc_hipgen.files import write_atomic
from hpc_hipgen.models import MODELS
from hpc_hipgen.rows import STUDENT_SOLVER, model_rows, row_model, row_settings
from hpc_hipgen.run import Run

FILE = "README.md"


ARGUMENTS = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "prior_steps": "prior_num_inference_steps",
    "prior_guidance": "prior_guidance_scale",
}
"""What diffusers' pipelines call the settings of a row; the others have the same name."""

VALIDATION = ("validation_mae_left", "validation_mae_right", "validation_angle_mae")
"""Figures of training that stand for a model of which the report says nothing."""

LEAPFROG = (
    "after `pipeline.scheduler = LeapfrogScheduler.from_config(pipeline.scheduler.config)` with "
    "the one of `hpc_hipgen.diffusion.scheduler`; the exported DDIM is of first order"
)
"""For rows whose solver stock diffusers does not have."""


def write_card(
    run: Run, model: str, folder: Path, figures: dict[str, Any], metrics: dict[str, Any]
) -> None:
    """Writes the card of a model of the run into the folder of its export, atomically.

    Args:
        run: the run.
        model: section of the experiment.
        folder: the export.
        figures: of its training stage.
        metrics: content of metrics.json; empty before the evaluation.
    """
    import jinja2
    from huggingface_hub import ModelCardData

    about, drawn = MODELS[model], model in GENERATORS
    scores = list(_scores(run, model, metrics)) if metrics else []
    section = getattr(run.config, model)
    data = ModelCardData(
        language="en",
        model_name=f"{run.config.name}/{model}",
        pipeline_tag="text-to-image" if drawn else None,
        library_name="diffusers" if "diffusers" in about.use else None,
        tags=["synthetic-data", "not-for-diagnosis", "veterinary", "radiography", model],
        base_model=_hub_id(section),
        eval_results=(list(_results(run, scores)) or None) if drawn else None,
    )
    # as huggingface_hub's ModelCard.from_template, whose environment keeps a loop's empty lines
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["num"] = _number
    text = environment.get_template("model_card.md.j2").render(
        card_data=data.to_yaml(),
        title=about.title,
        what=about.what,
        draws=drawn,
        use=about.use,
        call=_call(run, model) if "diffusers" in about.use and drawn else None,
        run=run.config,
        films=split_sizes(run),
        lab=(run.done("prepare") or {}) if model == "lab_ruler" else None,
        bases=sorted({v for v in _folders(section) if v}),
        figures=figures,
        settings=yaml.safe_dump(public_settings(section), sort_keys=False),
        scores=scores,
        judged=drawn or bool(about.scored),
        validation=[figures[name] for name in VALIDATION if name in figures],
        ruler=(metrics.get("ruler") or {}).get("mae"),
        baseline=metrics.get("baseline"),
        audited=any(score["copies"] for score in scores),
        distance_name=(metrics.get("frechet") or {}).get("name"),
    )
    write_atomic(folder / FILE, text)


def write_cards(run: Run) -> None:
    """Writes the cards of all exports again, with the scores of the run's report."""
    metrics = read_metrics(run)
    for model in run.config.trained():
        figures, folder = run.done(f"train-{model}"), run.path(model, "export")
        if figures and folder.is_dir():
            write_card(run, model, folder, figures, metrics)


def _call(run: Run, model: str) -> str:
    """How a diffusers pipeline draws as the run drew the model's last row, in Markdown."""
    settings = row_settings(run.config, model_rows(run.config, model)[-1])
    solver = settings.pop("solver")  # a scheduler, no argument of the call
    if not settings["eta"]:
        del settings["eta"]
    given = ", ".join(f"{ARGUMENTS.get(k, k)}={v:g}" for k, v in settings.items())
    resolution = run.config.data.resolution
    adapters = isinstance(getattr(run.config, model), Adapters)
    if adapters and _draws_another(run.base(model), resolution):
        given += f", height={resolution}, width={resolution}"
    call = f"`pipeline(prompt, {given}).images[0]`"
    if solver == "leapfrog":
        return f"{call}, {LEAPFROG}"
    # other exports have the scheduler that they are drawn with
    return call + (_ddim_first(run.base(model)) if adapters and solver != STUDENT_SOLVER else "")


def _ddim_first(base: Path) -> str:
    """How a base gets DDIM, with which adapters are drawn, where it has another scheduler."""
    path = base / "scheduler" / "scheduler_config.json"
    stated = json.loads(path.read_text()) if path.is_file() else {}
    if stated.get("_class_name", "DDIMScheduler") == "DDIMScheduler":
        return ""
    more = "".join(f", {name}={value}" for name, value in DDIM.items() if name not in stated)
    return (
        ", after `pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config"
        f"{more})` with diffusers' own"
    )


def _draws_another(base: Path, resolution: int) -> bool:
    """Whether a diffusers folder is known to draw another size where none is given."""
    unet = base / "unet" / "config.json"
    if not (unet.is_file() and autoencoder_config(base).is_file()):
        return False
    size = json.loads(unet.read_text()).get("sample_size")
    return size != resolution // autoencoder_stride(base)


def _folders(section: BaseModel) -> Iterator[str]:
    for name in ("pretrained", "base"):
        folder = getattr(section, name, None)
        if folder:
            yield public_settings(folder)


def _hub_id(section: BaseModel) -> str | None:
    """The published model that this one starts from, as the hub names it."""
    return next((name for name in _folders(section) if name != A_FOLDER), None)


def split_sizes(run: Run) -> dict[str, int]:
    """Films of each split of the run's data set, or dogs and phantoms of its film ruler."""
    data = run.config.data
    drawn = {"train": data.train, "validation": data.validation, "test": data.test}
    if own := run.config.film_ruler:  # on scenes of its own
        return {"train": own.dogs, "validation": own.held_out, "test": own.held_out}
    if data.source == "phantom":
        return drawn
    found = (run.done("prepare") or {}).get("films", {})
    return {split: found.get(split, 0) for split in drawn}


def _scores(run: Run, model: str, metrics: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Label, scores of both sides and distance of every row that this model made."""
    from hpc_hipgen.evaluation.results import row_label

    distances = (metrics["frechet"] or {"rows": {}})["rows"]
    copies = _audited(metrics)
    for row, sides in metrics["faithfulness"].items():
        drawn = model in GENERATORS and row_model(run.config, row)[0] == model
        if drawn or row in MODELS[model].scored:
            distance = distances.get(row, {}).get("all")
            known_distance = distance if distance and distance["frechet"] is not None else None
            # of films themselves there is nothing to tell
            shown = known_distance if drawn else None
            yield {
                "row": row,
                "label": row_label(row, run),
                "distance": shown,
                "copies": copies.get(row),
                **sides,
            }


def _audited(metrics: dict[str, Any]) -> dict[str, Any]:
    """Copies by row; nothing from earlier runs, whose rate was no audit."""
    found = metrics.get("memorisation") or {}
    return found["rows"] if "controls" in found else {}


def _results(run: Run, scores: list[dict[str, Any]]) -> Iterator[Any]:
    """The scores as the hub's tables take them."""
    from huggingface_hub import EvalResult

    from hpc_hipgen.radiograph.geometry import PATIENT_SIDES

    films = "drawn phantoms" if run.config.data.source == "phantom" else "radiographs"
    for row in scores:
        for side in PATIENT_SIDES:
            for metric, name in (("pearsonr", "r"), ("mae", "mae")):
                if row[side][name] is not None:
                    yield EvalResult(
                        task_type="text-to-image",
                        dataset_type="hpc_hipgen",
                        dataset_name=f"{row[side]['n']} images for captions of held-out {films}",
                        metric_type=metric,
                        metric_name=f"{name} of the {side} Norberg angle, {row['label']}",
                        metric_value=round(row[side][name], 4),
                    )


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
