"""Work that takes a minute, importable in processes of its own."""

import os
import time
from pathlib import Path


def linger(folder: Path, fails: bool) -> None:
    """Says which process this is, and fails when there are two."""
    (folder / str(os.getpid())).touch()
    if fails:
        while len(list(folder.iterdir())) < 2:
            time.sleep(0.1)
        raise ValueError("not this one")
    time.sleep(60)
