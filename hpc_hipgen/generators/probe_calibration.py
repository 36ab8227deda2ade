"""What the probe reads too much in drawings, so that a student is asked for that much more.

The probe has learnt from latents of films. In those that a model draws it reads a degree or so too
much or too little on average, and a student, which is told at every noise level how far the probe
finds it off, takes this over (docs/log.md, 2026-11-29). The run's reward model has learnt from
films, too, but reads pixels, and the teacher has been tuned by it: where there is one, the
difference is measured on drawings of the teacher. An error of its own the student then shares with
its teacher.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpc_hipgen.config import Feedback
from hpc_hipgen.files import read_json, write_atomic
from hpc_hipgen.generators.feedback import Reward
from hpc_hipgen.generators.frozen import let_go
from hpc_hipgen.generators.probe import ProbeNetwork
from hpc_hipgen.generators.sampling import draw_as, load_pipeline
from hpc_hipgen.progress import progress
from hpc_hipgen.rulers.ruler import load_ruler
from hpc_hipgen.run import Run
from hpc_hipgen.training.engine import device
from hpc_hipgen.training.rank_zero import only_rank_0

DRAWINGS = 64
"""The difference scatters by 1.5 degrees about its median, which is so known to a quarter."""


def probe_error(run: Run, model: str, probe: ProbeNetwork, captions: Sequence[str]) -> Tensor:
    """By how many degrees the probe reads too much in drawings of a student's teacher.

    Measured once, by rank 0, and kept in the student's folder. All ranks have to ask.

    Args:
        run: has feedback, so a reward model; the teacher draws as it does there.
        model: the student.
        probe: of the run.
        captions: of the training views; the teacher draws for some of them.

    Returns:
        (2,) float32, of the patient's left and right hip.

    Raises:
        ValueError: where in most drawings no angle can be read.
    """
    path = _file(run, model)

    def measure(say_busy: Callable[[], None]) -> None:
        if path.is_file():
            return
        if any(run.path(model, "checkpoints").glob("*")):  # of before there was this file
            print(f"{model}: began without {path.name}, and goes on so")
            keep_error(run, model, 0.0, 0.0)
            return
        left, right = _measured(run, model, probe, captions, say_busy)
        let_go()
        keep_error(run, model, left, right)
        print(f"{model}: the probe reads {left:+.1f} / {right:+.1f} degrees too much in drawings")

    only_rank_0(measure)
    found = read_json(path)
    return torch.tensor([found["left"], found["right"]])


def keep_error(run: Run, model: str, left: float, right: float) -> None:
    """Writes what `probe_error` finds from then on."""
    path = _file(run, model)
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, json.dumps({"left": left, "right": right}, allow_nan=False))


def _file(run: Run, model: str) -> Path:
    return run.path(model, "probe_error.json")


def _measured(
    run: Run, model: str, probe: ProbeNetwork, captions: Sequence[str], say_busy: Callable[[], None]
) -> list[float]:
    feedback = run.config.section("feedback", Feedback)
    reward_model = load_ruler(run.first_stage("reward_model")).network
    sampling = run.config.sampling
    pipeline = load_pipeline(run.base(model), sampling.precision)
    reward = Reward(pipeline.vae, reward_model, bf16=False)
    probe = probe.to(device()).eval()
    order = chosen(run, len(captions))
    starts = range(0, len(order), sampling.batch)
    parts = [order[start : start + sampling.batch] for start in starts]
    off = []
    for part in progress(parts, len(parts), f"{model}: probe on drawings"):
        say_busy()
        latents = draw_as(
            "latent", pipeline, [captions[i] for i in part], part,
            steps=feedback.steps, eta=feedback.eta, guidance=1.0,
            resolution=run.config.data.resolution,
        )  # fmt: skip
        with torch.no_grad():
            off.append(probe.angles(latents) - reward.angles(latents))
    median = torch.cat(off).nan_to_num(torch.inf).median(0).values
    if not median.isfinite().all():
        raise ValueError(f"{run.base(model)}: what it draws for captions is no picture with angles")
    found: list[float] = median.tolist()
    return found


def chosen(run: Run, count: int) -> list[int]:
    """Which of so many views a drawing is made for, by whose caption and number as its seed."""
    order: list[int] = np.random.default_rng(run.config.seed).permutation(count)[:DRAWINGS].tolist()
    return order
