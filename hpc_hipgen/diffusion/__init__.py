"""Noise schedule, ODE solvers, consistency function, samplers, and a scheduler for diffusers.

Notation, in all modules: z_t = alpha_t x0 + sigma_t noise with alpha_t = sqrt(abar_t),
sigma_t = sqrt(1 - abar_t); abar is the cumulative product of 1 - beta ("alphas_cumprod").
A timestep t is an integer in 0..n-1; t = 0 is the cleanest level, not the clean image.
"""
