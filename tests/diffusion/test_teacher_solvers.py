"""The solvers that `jobs.solvers` compares, on an exact score."""

import math

import pytest
import torch
from mixture import six_gaussians
from tiny import SD

from hpc_hipgen.diffusion.schedule import level_at, noise_to_signal, scaled_linear_alphas_cumprod
from hpc_hipgen.performance.solver_runs import solve
from hpc_hipgen.performance.solver_table import SOLVERS, SPACINGS, Cell

ALPHAS = scaled_linear_alphas_cumprod()
MIXTURE = six_gaussians()
NOISE = torch.randn(64, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def exact():
    s = noise_to_signal(ALPHAS)
    return MIXTURE.solution(NOISE / ALPHAS[-1].sqrt(), s[-1], s[0], 300) * ALPHAS[0].sqrt()


def error(exact, solver, spacing, steps):
    """Mean final error; the network is called as often as there are steps, from t = 999 on."""
    called = []

    def network(z, t):
        called.append(float(t))
        return MIXTURE.epsilon_at(z, level_at(t, ALPHAS))

    cell = Cell("stable_diffusion", solver, spacing, steps, 1.0)
    found = solve(network, NOISE, cell, SD | {"prediction_type": "epsilon"})
    assert len(called) == steps and called[0] == 999 and called[-1] > 0
    return float((found - exact).norm(dim=1).mean())


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("leapfrog", 2)])
def test_order_on_karras_levels(exact, solver, order):
    found = [error(exact, solver, "karras", steps) for steps in (32, 128)]
    assert math.log2(found[0] / found[1]) / 2 == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_other_solver_beats_ddim_and_ends_where_it_does(exact, spacing):
    euler = error(exact, "ddim", spacing, 32)
    for solver in SOLVERS[1:]:
        assert error(exact, solver, spacing, 32) < 0.8 * euler, solver
