"""The two-step leapfrog as a diffusers scheduler, for stock Stable Diffusion pipelines.

pipeline.scheduler = LeapfrogScheduler.from_config(pipeline.scheduler.config)
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import (
    KarrasDiffusionSchedulers,
    SchedulerMixin,
    SchedulerOutput,
)
from torch import Tensor

from hpc_hipgen.diffusion import schedule
from hpc_hipgen.diffusion.solvers import History, leapfrog

TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")


class LeapfrogScheduler(SchedulerMixin, ConfigMixin):
    """Second-order sampling for one network evaluation a step; see `solvers.leapfrog`.

    The settings have the names, meanings and (where Stable Diffusion sets them) the values of
    diffusers' DDIMScheduler; use_karras_sigmas, the default, spaces the steps evenly in s^(1/rho)
    (Karras et al. 2022, eq. 5), at fractional timesteps, and then timestep_spacing is not used:
    on even timesteps the method can be worse than DDIM (`solvers.leapfrog` says why). Settings
    that the method has no place for raise ValueError rather than being dropped.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]  # noqa: RUF012 (diffusers' name)
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 1,
        set_alpha_to_one: bool = False,
        use_karras_sigmas: bool = True,
        rho: float = 7.0,
        clip_sample: bool = False,
        thresholding: bool = False,
        rescale_betas_zero_snr: bool = False,
    ):
        schedule.check_prediction(prediction_type)
        if timestep_spacing not in TIMESTEP_SPACINGS:
            raise ValueError(f"timestep_spacing must be one of {TIMESTEP_SPACINGS}")
        unsupported = {
            "clip_sample": clip_sample,
            "thresholding": thresholding,
            "rescale_betas_zero_snr": rescale_betas_zero_snr,
        }
        for name, value in unsupported.items():
            if value:
                raise ValueError(f"LeapfrogScheduler does not support {name}={value}")
        self.alphas_cumprod = _alphas_cumprod(
            num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas
        )
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._reset(None)

    def _reset(self, levels: Tensor | None) -> None:
        """Start over on a grid of levels abar (steps + 1,), the last being where it ends."""
        self._levels = levels
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._history: History | None = None

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Choose the grid and forget the previous run; ValueError where it does not fit."""
        config, n = self.config, self.config.num_train_timesteps
        if not 1 <= num_inference_steps <= n:
            raise ValueError(f"num_inference_steps must be within 1..{n}")
        if config.use_karras_sigmas:
            timesteps, levels = schedule.karras_timesteps(
                num_inference_steps, self.alphas_cumprod, config.rho, config.set_alpha_to_one
            )
        else:
            timesteps = self._spaced_timesteps(num_inference_steps)
            final = 1.0 if config.set_alpha_to_one else float(self.alphas_cumprod[0])
            levels = self.alphas_cumprod[timesteps]
            levels = torch.cat([levels, levels.new_tensor([final])])
        self.num_inference_steps = num_inference_steps
        self.timesteps = timesteps.to(device)
        self._reset(levels)

    def _spaced_timesteps(self, steps: int) -> Tensor:
        """Falling int64 timesteps as diffusers' DDIMScheduler spaces them."""
        n = self.config.num_train_timesteps
        if self.config.timestep_spacing == "leading":
            return schedule.uniform_timesteps(steps, n, self.config.steps_offset)
        if self.config.timestep_spacing == "trailing":
            return schedule.trailing_timesteps(steps, n)
        return torch.linspace(n - 1, 0, steps, dtype=torch.float64).round().long()

    @property
    def step_index(self) -> int | None:
        """Index of the step to be made next; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index at which a run starts, as set by image-to-image pipelines; else None."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this index of `timesteps` (image-to-image)."""
        self._begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """Return the sample unchanged: the network takes z itself."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step from `timestep` to the next; steps are made in order, after set_timesteps."""
        if self._levels is None:
            raise ValueError("call set_timesteps before step")
        if self._step_index is None:
            self._step_index = self._index_of(timestep)
        i = self._step_index
        if i >= len(self.timesteps):
            raise ValueError("all steps are made; call set_timesteps before the next run")
        # The grid itself serves as the table of levels, indexed by step.
        index = torch.tensor(i)
        epsilon = schedule.to_epsilon(
            model_output, sample, index, self._levels, self.config.prediction_type
        )
        sample, self._history = leapfrog(
            sample, epsilon, self._levels[i], self._levels[i + 1], self._history
        )
        self._step_index = i + 1
        return SchedulerOutput(prev_sample=sample) if return_dict else (sample,)

    def _index_of(self, timestep: Tensor | float) -> int:
        """The index of the first step: the begin index if one is set, else that of timestep."""
        if self._begin_index is not None:
            return self._begin_index
        found = (self.timesteps == torch.as_tensor(timestep).to(self.timesteps.device)).nonzero()
        if not len(found):
            raise ValueError(f"timestep {timestep} is not one of scheduler.timesteps")
        return int(found[0])

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noised samples at timesteps (b,), whole or fractional (log s is interpolated)."""
        abar = schedule.level_at(timesteps.to(self.alphas_cumprod.device), self.alphas_cumprod)
        alpha, sigma = schedule.signal_and_noise(abar, original_samples)
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _alphas_cumprod(
    n: int, beta_start: float, beta_end: float, kind: str, betas: list[float] | None
) -> Tensor:
    """Levels abar (n,) float64 of a diffusers configuration; ValueError if not supported."""
    if betas is not None:
        return torch.cumprod(1.0 - torch.tensor(betas, dtype=torch.float64), dim=0)
    if kind == "scaled_linear":
        return schedule.scaled_linear_alphas_cumprod(n, beta_start, beta_end)
    if kind == "linear":
        linear = torch.linspace(beta_start, beta_end, n, dtype=torch.float64)
        return torch.cumprod(1.0 - linear, dim=0)
    raise ValueError(f"beta_schedule must be scaled_linear or linear, not {kind!r}")
