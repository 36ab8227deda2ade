"""Settings as others may see them: in model cards, and at Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hpc_hipgen.weights import known

A_FOLDER = "a folder of the user"


def public_settings(value: Any) -> Any:
    """Settings as plain values in which no folder of this machine has its name."""
    if isinstance(value, BaseModel):
        return {name: public_settings(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {key: public_settings(v) for key, v in value.items()}
    if isinstance(value, tuple | list):
        return [public_settings(v) for v in value]
    if isinstance(value, Path):
        weights = known(value.name)
        return weights.source if weights else A_FOLDER
    return value
