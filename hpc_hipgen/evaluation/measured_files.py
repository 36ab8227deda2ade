"""Files of what was measured: features as npz, tables as parquet, written whole and checked."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_hipgen.files import DamagedError, write_atomic

if TYPE_CHECKING:
    import pandas as pd


def store_features(path: Path, keys: list[str], features: np.ndarray, **more: Any) -> None:
    """Writes keys, features (n, d) and more arrays as npz, atomically; none needs pickle."""
    buffer = io.BytesIO()
    np.savez(buffer, keys=np.array(keys, dtype=str), features=features, **more)
    write_atomic(path, buffer.getvalue())


def read_features(path: Path) -> tuple[list[str], np.ndarray, str]:
    """Keys, features (n, d) float32 and the backbone's name of a stored feature file.

    Raises:
        DamagedError: where it is gone or damaged; says what to do.
    """
    with _measured_anew(path), np.load(path, allow_pickle=False) as stored:
        return [str(k) for k in stored["keys"]], stored["features"], str(stored["backbone"])


def read_array(path: Path, name: str) -> np.ndarray:
    """One of the other arrays of a feature file; raises as `read_features`."""
    with _measured_anew(path), np.load(path, allow_pickle=False) as stored:
        return stored[name]


def store_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a table as parquet, atomically, with a checksum of every page."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, write_page_checksum=True)
    write_atomic(path, buffer.getvalue())


def load_table(path: Path) -> pd.DataFrame:
    """What `store_table` wrote.

    Raises:
        DamagedError: where it is gone or damaged; says what to do.
    """
    import pandas as pd

    with _measured_anew(path):
        return pd.read_parquet(path, page_checksum_verification=True)


@contextmanager
def _measured_anew(path: Path) -> Iterator[None]:
    """A file of the evaluation, which the stage makes again once it is away."""
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        state = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise DamagedError(
            f"{path}: {state}; remove {path.parent / path.stem}.* and start again: it is measured "
            "anew"
        ) from error
