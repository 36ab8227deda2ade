"""The machine that figures belong to, and what GPUs can do at best."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

GPUS = {
    # name in torch's device name: dense bf16 TFLOP/s, from NVIDIA's data sheets
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100-SXM4-80GB": 312.0,
    "A100-SXM4-40GB": 312.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A40": 150.0,
    "V100": 125.0,  # fp16: it has no bf16
}


def peak_tflops(name: str) -> float | None:
    """Dense bf16 TFLOP/s of a GPU by its device name; None for one that is not listed."""
    named = (peak for known, peak in GPUS.items() if re.search(rf"\b{known}\b", name))
    return next(named, None)


def describe() -> dict[str, str]:
    """This machine in words, without its name."""
    import torch

    about = {
        "processor": _processor(),
        "cores": f"{len(os.sched_getaffinity(0))}, of which torch uses {torch.get_num_threads()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        about["GPU"] = f"{torch.cuda.get_device_name()} ({torch.cuda.device_count()})"
    return about


def short_name() -> str:
    """What a file of figures is named after, e.g. amd-epyc-9b14-2 or nvidia-a100-sxm4-80gb."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
    cores = [] if torch.cuda.is_available() else [str(len(os.sched_getaffinity(0)))]
    return "-".join([*(w for w in words if w not in ("r", "tm", "cpu", "processor")), *cores])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
