"""Functions that are named and not imported, so that whoever lists them stays light."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def resolve(function: str) -> Callable[..., Any]:
    """The function that "module:function" names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)
