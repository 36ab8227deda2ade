"""Whether a run has what is compared: exports, kept checkpoints, captions and a ruler."""

from __future__ import annotations

from pathlib import Path

from hpc_hipgen.config import Adapters, ConfigError
from hpc_hipgen.run import Run
from hpc_hipgen.training.checkpoint_files import COMPLETE, checkpoint_path, named_checkpoints

EXPORT = "export"
"""What a model is drawn with where no checkpoint is named: the end of its training."""


def checkpoint_folder(run: Run, model: str, checkpoint: str) -> Path:
    """Where the checkpoint of so many images lies."""
    return checkpoint_path(run.path(model, "checkpoints"), int(checkpoint))


def check_there(run: Run, model: str, checkpoint: str) -> None:
    """Raises ConfigError unless the run has the export of a model, and that checkpoint."""
    adapters = isinstance(getattr(run.config, model), Adapters)
    file = "pytorch_lora_weights.safetensors" if adapters else "model_index.json"
    if not run.path(model, EXPORT, file).is_file():
        raise ConfigError(f"{run.path(model, EXPORT)}: no export; train {model} to its end first")
    if adapters and not (run.base(model) / "model_index.json").is_file():
        raise ConfigError(f"{run.base(model)}: no diffusers folder, on which {model} is drawn")
    if checkpoint == EXPORT:
        return
    folder = checkpoint_folder(run, model, checkpoint)
    if not (folder / COMPLETE).is_file():
        there = named_checkpoints(folder.parent)
        kept = sorted(int(p.name) for p in there if (p / COMPLETE).is_file())
        raise ConfigError(
            f"{folder}: no such checkpoint; {model} has those at "
            f"{', '.join(map(str, kept)) or 'no number of'} images"
        )


def check_ready(run: Run) -> None:
    """Raises ConfigError unless there are captions and a ruler for what is drawn for them."""
    if run.config.ruler is None:
        raise ConfigError(f"{run.folder}: this run has no generator")
    for path in (run.path("data", "manifest.csv"), run.first_stage("ruler") / "ruler.json"):
        if not path.is_file():
            raise ConfigError(f"{path}: missing; finish the run first")
