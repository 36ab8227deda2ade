"""Text-to-image generation of canine hip radiographs whose Norberg angles are asked for."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The clone: where `configs/`, `sbatch/` and `results/` lie."""
