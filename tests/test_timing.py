"""What a benchmark says about an action."""

import pytest
import torch

from hpc_hipgen.performance.hardware import peak_tflops
from hpc_hipgen.performance.timing import profile_of, ratio, turn_by_turn


def test_the_operation_that_takes_longest_comes_first():
    small, large = torch.randn(2, 2), torch.randn(700, 700)
    table = profile_of(lambda: (small + small, large @ large), rows=3)
    first = next(line for line in table.splitlines() if "aten::" in line)
    assert "aten::mm" in first


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A40", 150),
        ("NVIDIA RTX A4000", None),
    ],
)
def test_the_peak_is_that_of_the_very_gpu(name, peak):
    assert peak_tflops(name) == peak


def test_turns_alternate_and_their_ratio_is_of_neighbours():
    order = []
    turns = turn_by_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert {name: len(seconds) for name, seconds in turns.items()} == {"a": 3, "b": 3}
    assert order == ["a", "b"] * 4, "one turn to warm up"
    assert ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]) == 2.0
