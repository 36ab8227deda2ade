"""The probe: a small network that reads landmarks, and so both Norberg angles, off latents.

A denoising loss hardly feels an angle: a degree moves a rim by a fifth of a pixel. With a probe a
generator is also told how far the latents that it predicts are from the angles that were asked
for. The idea is that of perceptual losses (Johnson et al. 2016, arXiv 1603.08155), with a network
that knows hips. It learns from the latents of training films alone, is another network than the
ruler, and never measures what is reported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_hipgen.config import Denoising, Distillation, Experiment, Probe
from hpc_hipgen.files import reading_export, save_network
from hpc_hipgen.generators.autoencoder import cached_latents, encode
from hpc_hipgen.radiograph.geometry import swap_sides
from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.rulers.ruler import norberg_angles, points_of
from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.clock import ImageRandom
from hpc_hipgen.training.engine import device
from hpc_hipgen.training.task import FilmTask

SETTINGS = "probe.json"
"""Shape and figures of a stored probe, beside its weights."""

HUBER_BETA = 2.0
"""Degrees of error from which on `angle_losses` grow linearly."""

HIDDEN = 128
"""Width of the layer that sees all places of the latents at once."""


class ProbeNetwork(nn.Module):
    """Latents (b, c, n, n) to head centres and rim points; knows where hips usually lie."""

    def __init__(self, channels: int, size: int, width: int) -> None:
        """`size`: n; `width`: channels of the first layer, a multiple of 8."""
        super().__init__()
        self.shape = {"channels": channels, "size": size, "width": width}

        def layer(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
            return [convolution, nn.GroupNorm(8, outputs), nn.SiLU()]

        wide = 2 * width
        self.places = nn.Sequential(
            *layer(channels, width), *layer(width, wide, 2), *layer(wide, wide), *layer(wide, wide)
        )
        flat = wide * ((size + 1) // 2) ** 2
        self.points = nn.Sequential(nn.Linear(flat, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 8))
        self.register_buffer("usual", torch.zeros(4, 2))

    def forward(self, latents: Tensor) -> Tensor:
        """Points (b, 4, 2) in pixels of the view, float32, in the order of `ruler.POINTS`."""
        moves = self.points(self.places(latents).flatten(1)).float()
        return self.usual + moves.view(-1, 4, 2)

    def angles(self, latents: Tensor) -> Tensor:
        """Norberg angles (b, 2) in degrees, of the patient's left and right hip."""
        with torch.autocast(latents.device.type, enabled=False):  # in bf16 it reads less exactly
            return swap_sides(norberg_angles(self(latents)))


class ProbeLoss(nn.Module):
    """The probe with its loss."""

    def __init__(self, network: ProbeNetwork) -> None:
        """`network` is trained."""
        super().__init__()
        self.network = network

    def forward(self, latents: Tensor, points: Tensor) -> tuple[Tensor, dict]:
        """Per-image losses of latents (b, c, n, n) with points (b, 4, 2) in pixels."""
        found = self.network(latents)
        off = (norberg_angles(found) - norberg_angles(points)).abs()
        distance = (found - points).norm(dim=-1)
        losses = distance.mean(1) + 0.1 * off.mean(1)
        return losses, {"pixels": distance.mean(), "degrees": off.mean()}


class ProbeTask(FilmTask):
    """The probe for the training loop."""

    def __init__(
        self, config: Experiment, films: Films, held_out: Films, autoencoder: nn.Module, cache: Path
    ) -> None:
        """`films`, `held_out`: training and validation split; `cache`: folder of the latents."""
        super().__init__(films)
        self.held_out, self.autoencoder = held_out, autoencoder
        self.section = config.section("probe", Probe)
        self.latents = cached_latents(autoencoder, films, cache)
        self.landmarks = torch.from_numpy(films.landmarks).float()
        torch.manual_seed(config.seed)
        channels, size = self.latents.shape[1:3]
        network = ProbeNetwork(channels, size, self.section.width)
        network.usual.copy_(points_of(self.landmarks).mean(0))
        self.module = ProbeLoss(network)
        self.averages = {"export": WeightAverage.for_export(network, self.section.training)}

    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """Latents with noise of a random strength, for predicted latents are never clean."""
        latents = self.latents[indices]
        strength = self.section.noise * random.uniform("strength")[:, None, None, None]
        noise = strength * random.normal("noise", *latents.shape[1:])
        return {"latents": latents + noise, "points": points_of(self.landmarks[indices])}

    @torch.no_grad()
    def export(self, folder: Path) -> Mapping[str, float | None]:
        """Writes the averaged network, and its error on the validation split."""
        network = self.averages["export"].module.float().cpu()
        latents = encode(self.autoencoder.to(device()).eval(), self.held_out.images)
        asked = asked_angles(self.held_out)
        error = (network.angles(latents) - asked).abs().mean(0).tolist()
        figures = dict(zip(("validation_mae_left", "validation_mae_right"), error, strict=True))
        save_network(network, folder, SETTINGS, network.shape | figures)
        return figures


def load_probe(folder: Path) -> ProbeNetwork:
    """Reads what `ProbeTask.export` wrote.

    Raises:
        DamagedError: when the folder holds no probe, or a damaged one.
    """
    with reading_export(folder, RuntimeError):
        shape = json.loads((folder / SETTINGS).read_text())
        network = ProbeNetwork(shape["channels"], shape["size"], shape["width"])
        load_model(network, folder / "model.safetensors")
    return network


def asked_angles(films: Films) -> Tensor:
    """Angles (n, 2) in degrees, of the patient's left and right hip."""
    return torch.from_numpy(np.stack([films.patient_left, films.patient_right], 1)).float()


def move_to_angles(probe: ProbeNetwork, latents: Tensor, asked: Tensor) -> Tensor:
    """The nearest latents that are read as `asked`, to first order.

    One step of Gauss-Newton: J^T (J J^T)^-1 r, where r is by how much other angles than the probe
    reads are asked for, and J the derivative of what it reads. A ruler on the decoded views finds
    the angles moved by 1.08 times as much (docs/log.md, 2026-11-27).

    Args:
        probe: reads the latents.
        latents: (b, c, n, n) float32.
        asked: (b, 2) degrees, patient's left and right; NaN where latents are to stay.
    """
    # Without autocast: in bf16 nothing can be solved.
    with torch.enable_grad(), torch.autocast(latents.device.type, enabled=False):
        latents = latents.detach().requires_grad_(True)
        # a view, for the hooks of torch's FLOP counter fail where a leaf enters a module
        angles = probe.angles(latents.view_as(latents))
        rows = [
            torch.autograd.grad(a.sum(), latents, retain_graph=True)[0] for a in angles.unbind(1)
        ]
        slopes = torch.stack([row.flatten(1) for row in rows], 1).double()
        squared = slopes @ slopes.mT + 1e-6 * torch.eye(2, dtype=slopes.dtype, device=slopes.device)
        off = (asked - angles.detach()).nan_to_num(0.0).to(slopes)
        # never singular; the check that `solve` makes would have the host wait for a GPU
        along, _ = torch.linalg.solve_ex(squared, off[..., None])
        step = (slopes.mT @ along)[..., 0].view_as(latents)
    return latents.detach() + step.to(latents.dtype)


def angle_losses(off: Tensor) -> Tensor:
    """The loss of every error in degrees, in its shape: half its square over `HUBER_BETA`, and
    from there on its size less half of that."""
    return F.smooth_l1_loss(off, torch.zeros_like(off), reduction="none", beta=HUBER_BETA)


class MeasurementLoss:
    """How far predicted latents are from the angles that were asked for."""

    def __init__(self, probe: ProbeNetwork, weight: float) -> None:
        """`weight` multiplies the loss; the probe is not trained."""
        self.probe = probe.requires_grad_(False).eval().to(device())
        self.weight = weight

    def __call__(self, x0: Tensor, asked: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Per-image losses, and the mean error in degrees.

        Args:
            x0: (b, c, n, n) predicted latents, float32.
            asked: (b, 2) degrees, patient's left and right; NaN where nothing was asked for.
            weights: (b,); a denoiser's fall with noise, of which it predicts a blurred mean.

        Returns:
            (b,) float32, zero where nothing was asked for, and a scalar.
        """
        nothing = asked.isnan()
        off = self.probe.angles(x0) - asked.nan_to_num()
        off = off.masked_fill(nothing, 0.0)
        losses = angle_losses(off)
        weights = weights.to(off)
        said = (~nothing).all(1) * weights
        degrees = (off.abs().mean(1) * said).sum() / said.sum().clamp_min(1e-6)
        return self.weight * weights * losses.mean(1), degrees.detach()


class MeasuredTask(FilmTask):
    """A task whose loss can hold what a probe reads off the predicted latents."""

    section: Denoising | Distillation

    def measure_with(self, probe: ProbeNetwork) -> None:
        """From now on the loss holds it."""
        self.asked = asked_angles(self.films)
        self.module.measured = MeasurementLoss(probe, self.section.measurement_weight)
