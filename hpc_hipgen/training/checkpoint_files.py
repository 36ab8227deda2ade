"""What checkpoints and their files are called. Nothing heavy is imported here."""

from pathlib import Path

STATE, AVERAGES = "state.pt", "averages.pt"
COMPLETE = "complete.json"
"""Written last: the other files, their sizes and hashes."""


def checkpoint_path(folder: Path, images: int) -> Path:
    """The checkpoint in `folder` of the moment at which so many `images` were seen."""
    return folder / f"{images:010d}"


def named_checkpoints(folder: Path) -> list[Path]:
    """What is called a checkpoint, newest first."""
    found = (path for path in folder.glob("[0-9]*") if path.name.isdecimal() and path.is_dir())
    return sorted(found, reverse=True)
