"""Published weights: where they come from, their hashes, and fetching them whole or not at all.

Everything is fetched into a hidden folder beside its place, file by file, each going on where an
interrupted download ended; each file is checked, and the whole is renamed last. So what has its
name is complete. Only the standard library is used: proxies are taken from the environment, and
no token is ever sent.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from hpc_hipgen.progress import LINE_SECONDS
from hpc_hipgen.run import fsync, write_atomic

HUB = "https://huggingface.co"
RECORD = "prefetch.json"
_CHUNK = 1 << 20
_TIMEOUT = 60.0  # seconds without a byte


class FetchError(RuntimeError):
    """The network, the server or the content is at fault; one line."""


@dataclass(frozen=True)
class Weights:
    """Something that can be fetched: a folder of files of the hub, or one file of any server."""

    name: str  # of the folder or file in weights/
    source: str  # owner/name on the hub, or a URL
    what: str
    revision: str = "main"
    files: tuple[str, ...] = ()  # of the folder; none: `name` is the one file at the URL
    sha256: Mapping[str, str] = field(default_factory=dict)  # pinned, by file


@dataclass(frozen=True)
class File:
    """One file to fetch; `git` is git's SHA-1 of a small file that has no SHA-256 on the hub."""

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
    git: str | None = None


_TOKENIZER = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")

CATALOGUE = (
    Weights(
        "stable-diffusion-v1-5",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "Stable Diffusion 1.5 with its VAE and its CLIP text encoder",
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        # the parts in single precision; no safety checker, no .bin, no .ckpt
        files=(
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            *(f"tokenizer/{name}" for name in _TOKENIZER),
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ),
        sha256={
            "text_encoder/model.safetensors": (
                "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334"
            ),
            "unet/diffusion_pytorch_model.safetensors": (
                "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1"
            ),
            "vae/diffusion_pytorch_model.safetensors": (
                "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c"
            ),
        },
    ),
    Weights(
        "clip-vit-large-patch14",
        "openai/clip-vit-large-patch14",
        "CLIP ViT-L/14 alone, text and image; no experiment here reads it yet",
        revision="32bd64288804d66eefd0ccbe215aa642df71cc41",
        files=("config.json", "model.safetensors", "preprocessor_config.json", *_TOKENIZER),
        sha256={
            "model.safetensors": "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"
        },
    ),
    Weights(
        "weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        "torch-fidelity's Inception, for FID (evaluation.inception)",
        sha256={
            "weights-inception-2015-12-05-6726825d.pth": (
                "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
            )
        },
    ),
)


def known(name: str) -> Weights | None:
    """The entry of the catalogue that has this name."""
    return next((w for w in CATALOGUE if w.name == name), None)


def listing(weights: Weights) -> list[File]:
    """The files to fetch, with the sizes and hashes that the hub states; pinned hashes win.

    Raises:
        FetchError: when the hub does not answer, or lacks a file or its hash.
    """
    if not weights.files:
        return [File(weights.name, weights.source, sha256=weights.sha256[weights.name])]
    hub = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    place = f"{hub}/api/models/{weights.source}/revision/{weights.revision}?blobs=true"
    answer = _json(place)
    there = {entry["rfilename"]: entry for entry in answer.get("siblings", [])}
    revision = answer.get("sha", weights.revision)  # one commit, should `main` move meanwhile
    files = []
    for name in weights.files:
        entry = there.get(name)
        if entry is None:
            raise FetchError(f"{place}: lists no {name}")
        stated = (entry.get("lfs") or {}).get("sha256")
        pinned = weights.sha256.get(name)
        if pinned and stated and pinned != stated:
            raise FetchError(f"{place}: {name} has SHA-256 {stated} there, expected {pinned}")
        if not (pinned or stated or entry.get("blobId")):
            raise FetchError(f"{place}: states no hash of {name}")
        url = f"{hub}/{weights.source}/resolve/{revision}/{name}"
        files.append(File(name, url, entry.get("size"), pinned or stated, entry.get("blobId")))
    return files


def is_there(weights: Weights, folder: Path) -> bool:
    """True when the place is taken: by what was fetched earlier, or by a person."""
    return (folder / weights.name).exists()


def verify(weights: Weights, folder: Path) -> None:
    """Hashes what is there, against the record of its fetching, else against the pinned hashes.

    Raises:
        FetchError: naming the first file that is missing or wrong.
    """
    place = folder / weights.name
    record = place / RECORD
    if weights.files and record.is_file():
        hashes = json.loads(record.read_text())["sha256"]
    else:
        hashes = weights.sha256
    for name, expected in hashes.items():
        path = place / name if weights.files else place
        if not path.is_file():
            raise FetchError(f"{path} is missing; move {place} away and fetch it again")
        if (found := sha256(path)) != expected:
            raise FetchError(
                f"{path}: SHA-256 is {found}, expected {expected}; move {place} away and fetch "
                "it again"
            )


def fetch(weights: Weights, folder: Path, say: Callable[[str], None] = print) -> None:
    """Fetches into `folder`, going on where an earlier call was interrupted.

    Raises:
        FetchError: one line; what was fetched and is right stays for the next call.
    """
    with _alone(folder / f".{weights.name}.lock"):
        files = listing(weights)
        partial = folder / f".{weights.name}.partial"
        partial.mkdir(parents=True, exist_ok=True)
        _check_space(files, partial)
        for file in files:
            target = partial / file.name
            if target.is_file():  # complete and checked before an interruption
                say(f"  {file.name}: there already")
            else:
                _fetch_file(file, target, say)
        if weights.files:
            hashes = {file.name: file.sha256 or sha256(partial / file.name) for file in files}
            record = {"source": weights.source, "revision": weights.revision, "sha256": hashes}
            write_atomic(partial / RECORD, json.dumps(record, indent=1))
            os.replace(partial, folder / weights.name)
        else:
            os.replace(partial / weights.name, folder / weights.name)
            shutil.rmtree(partial)
        fsync(folder)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keeps a second fetch of the same weights away while this one is at work."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchError(f"{path}: is being fetched by another process already") from None
        except OSError:  # a file system without locks
            pass
        yield
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_space(files: list[File], folder: Path) -> None:
    need = sum(f.size or 0 for f in files if not (folder / f.name).is_file())
    need -= sum(path.stat().st_size for path in folder.rglob("*.download"))
    free = shutil.disk_usage(folder).free
    if need > free:
        raise FetchError(f"{folder}: {need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def _fetch_file(file: File, target: Path, say: Callable[[str], None]) -> None:
    """Downloads one file through NAME.download, checks it and gives it its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    download = target.with_name(f"{target.name}.download")
    _download(file, download, say)
    problem = _problem(file, download)
    if problem:
        download.unlink()  # whatever went wrong, the next call starts this file afresh
        raise FetchError(f"{file.url}: {problem}; nothing of it was kept")
    fsync(download)
    os.replace(download, target)
    say(f"  {file.name}: {target.stat().st_size / 1e6:,.1f} MB, hash right")


def _problem(file: File, path: Path) -> str | None:
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"{size} bytes came, {file.size} were announced"
    if file.sha256:
        found, expected, kind = sha256(path), file.sha256, "SHA-256"
    else:
        blob = b"blob %d\0" % size + path.read_bytes()
        found, expected, kind = hashlib.sha1(blob).hexdigest(), file.git, "git's SHA-1"
    return None if found == expected else f"{kind} is {found}, expected {expected}"


def _download(file: File, path: Path, say: Callable[[str], None]) -> None:
    """Appends what is missing of a file."""
    begun = path.stat().st_size if path.exists() else 0
    if file.size is not None and begun >= file.size:
        return  # whole, or wrong: its hash decides
    with _open(file.url, {"Range": f"bytes={begun}-"} if begun else {}) as answer:
        if answer.status == 416:  # nothing after what is there
            return
        resumed = begun > 0 and answer.status == 206
        length = int(answer.headers.get("Content-Length") or 0)
        total = file.size or (length + begun * resumed if length else 0)
        if resumed:
            say(f"  {file.name}: goes on at {begun / 1e6:,.1f} MB")
        with path.open("ab" if resumed else "wb") as out:
            _copy(answer, out, file, total)


def _copy(answer: Any, out: BinaryIO, file: File, total: int) -> None:
    """The body of an answer, to the end; `total` bytes are the whole file, 0: not announced."""
    last = time.monotonic()
    of = f" of {total / 1e6:,.0f}" if total else ""
    try:
        while chunk := answer.read(_CHUNK):
            out.write(chunk)
            if time.monotonic() - last > LINE_SECONDS:
                last = time.monotonic()
                print(f"  {file.name}: {out.tell() / 1e6:,.0f}{of} MB", file=sys.stderr, flush=True)
        problem = "" if out.tell() >= total else f"{out.tell()} of {total} bytes came"
    except (OSError, http.client.HTTPException) as error:
        problem = _line(error)
    if problem:
        raise FetchError(f"{file.url}: broke off ({problem}); the same command goes on from there")


def _open(url: str, headers: Mapping[str, str]) -> Any:
    request = urllib.request.Request(url, headers={"User-Agent": "hpc_hipgen", **headers})
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and "Range" in headers:
            return error  # an answer like any other
        raise FetchError(f"{url}: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"{url}: {_line(error)}; is this a machine with internet?") from error


def _json(url: str) -> dict[str, Any]:
    with _open(url, {}) as answer:
        try:
            return json.load(answer)
        except (ValueError, OSError) as error:
            raise FetchError(f"{url}: no JSON came ({_line(error)})") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
