"""Processes of this machine, as tests wait for them."""

import time
from pathlib import Path


def ended(pid, seconds=20):
    """True when the process is gone within the time."""
    for _ in range(seconds * 10):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False
