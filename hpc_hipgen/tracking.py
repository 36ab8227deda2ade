"""Weights & Biases, where an experiment asks for it. TensorBoard is always written besides.

The package is no part of the environment, and is imported only when it was configured.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpc_hipgen.config import ConfigError, Experiment, WandB
from hpc_hipgen.config.public import public_settings
from hpc_hipgen.run import Run


def check_tracking(config: Experiment) -> None:
    """Sees that what `logging` asks for is installed; imports nothing.

    Raises:
        ConfigError: says how to install it.
    """
    if config.logging.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "logging.wandb: the package wandb is not installed. Install it with "
            f"{sys.executable} -m pip install 'wandb>=0.22,<1', or set logging.wandb=null"
        )


class Tracker:
    """One stage of a run as a run of Weights & Biases; does nothing when none is configured."""

    def __init__(self, api: Any, tracked: Any, settings: WandB | None) -> None:
        """`api`: the module wandb; `tracked`: what its `init` returned."""
        self._api = api
        self._tracked = tracked
        self._settings = settings

    def log(self, images: int | None, values: Mapping[str, float]) -> None:
        """Values at the moment when `images` were seen; None: after all that came before.

        What a service has already is not sent again. Offline each start is a folder of its own, of
        which the last one counts, so it has to hold all.
        """
        if self._tracked and (images is None or images >= self._tracked.step):
            self._tracked.log(dict(values), step=images)

    def pictures(self, files: Mapping[str, Path]) -> None:
        """Image files by name."""
        if self._tracked:
            self._tracked.log({name: self._api.Image(str(path)) for name, path in files.items()})

    def artefact(self, kind: str, folder: Path, **facts: Any) -> None:
        """A folder of results as an artefact, unless `artefacts` is off."""
        wanted = self._settings is not None and self._settings.artefacts
        if not self._tracked or not wanted or not folder.is_dir():
            return
        try:
            artefact = self._api.Artifact(f"{self._tracked.name}-{kind}", type=kind, metadata=facts)
            artefact.add_dir(str(folder))
            self._tracked.log_artifact(artefact)
        except Exception as error:  # it looks on: a quota that is full there fails no stage
            print(f"Weights & Biases did not take {folder}: {error}", file=sys.stderr, flush=True)


@contextmanager
def tracked(run: Run, stage: str, active: bool = True) -> Iterator[Tracker]:
    """The tracker of a stage; a stage that is started again goes on in the same one.

    Args:
        run: the run folder; files go to its `wandb` until they are sent.
        stage: name of the model, or "report".
        active: False on ranks that say nothing.
    """
    settings = run.config.logging.wandb
    if settings is None or not active:
        yield Tracker(None, None, None)
        return
    check_tracking(run.config)
    # artefacts are copied before they are sent, by default into the home
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        os.environ.setdefault(name, str(run.path("wandb").resolve()))
    import wandb

    name = f"{run.folder.name}-{stage}"
    place = hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:8]
    run.path("wandb").mkdir(exist_ok=True)
    started = wandb.init(
        project=settings.project,
        entity=settings.entity,
        mode=settings.mode,
        dir=str(run.folder),
        name=name,
        id=f"{name}-{place}",
        resume="allow",
        group=run.folder.name,
        job_type=stage,
        config=public_settings(run.config),
        # it would keep a patch of the clone as it is; provenance/ has one without secrets
        settings=wandb.Settings(disable_git=True, disable_code=True),
    )
    try:
        yield Tracker(wandb, started, settings)
    except BaseException:
        started.finish(exit_code=1)
        raise
    started.finish()
