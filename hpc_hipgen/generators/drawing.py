"""Draws with the trained generators of a run, whichever they are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Protocol

from hpc_hipgen.config import DreamBooth
from hpc_hipgen.models import MODELS

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from hpc_hipgen.run import Run


class Drawer(Protocol):
    """A trained generator, loaded."""

    @property
    def network(self) -> nn.Module:
        """What works at each step or token: by its evaluations the cost of drawing is counted."""
        ...

    def draw(
        self, prompts: list[str], seeds: list[int], *, resolution: int, **settings: Any
    ) -> np.ndarray:
        """Grey images (b, n, n) uint8, one seed an image; settings as of `rows.row_settings`."""
        ...


def drawer_of(run: Run, model: str) -> Drawer:
    """The drawer of a generator of the run, from its export."""
    named = MODELS[model].drawer
    assert named, f"{model} draws nothing"
    return resolve_name(named)(run, model)


class OneDrawer:
    """The drawer that was asked for last, and no other: the memory of a GPU holds one.

    Keep no other reference to what `of` returns.
    """

    def __init__(self, load: Callable[..., Drawer]) -> None:
        """`load` makes the drawer of the names that `of` is given."""
        self._load = load
        self._names: tuple[str, ...] = ()
        self._drawer: Drawer | None = None

    def of(self, *names: str) -> Drawer:
        """The drawer of these names, loaded unless it is the one that is held."""
        from hpc_hipgen.generators.frozen import let_go

        if self._drawer is None or self._names != names:
            self._drawer = None  # before the next
            let_go()
            self._drawer, self._names = self._load(*names), names
        return self._drawer


def with_subjects(run: Run, model: str, specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The specs with the tokens of its subjects in the prompts, where the model is DreamBooth."""
    if model != "dreambooth":
        return specs
    prompt = run.config.section("dreambooth", DreamBooth).prompt
    return [spec | {"prompt": prompt(spec["prompt"], spec["prompt_class"])} for spec in specs]


def drawn(run: Run, drawer: Drawer, specs: list[dict[str, Any]]) -> Iterator[np.ndarray]:
    """Images (n, n) uint8 in the order of the specs, which are all of the same settings."""
    from hpc_hipgen.evaluation.samples import settings_of

    size, resolution = run.config.sampling.batch, run.config.data.resolution
    for start in range(0, len(specs), size):
        part = specs[start : start + size]
        prompts, seeds = [s["prompt"] for s in part], [s["seed"] for s in part]
        yield from drawer.draw(prompts, seeds, resolution=resolution, **settings_of(part[0]))
        done = f"{start + len(part)}/{len(specs)}"
        print(f"  {part[0]['row']}: {done}", file=sys.stderr, flush=True)


def round_trip(run: Run, row: str, images: np.ndarray) -> np.ndarray:
    """Views (n, r, r) uint8 after the autoencoder of the row."""
    from hpc_hipgen.generators import autoencoder, discrete_vae
    from hpc_hipgen.tasks import load_autoencoder, load_discrete_vae
    from hpc_hipgen.training.engine import device

    if row == "round_trip_discrete":
        return discrete_vae.round_trip(load_discrete_vae(run).to(device()).eval(), images)
    return autoencoder.round_trip(load_autoencoder(run).to(device()).eval(), images)
