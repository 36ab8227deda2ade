"""Published weights: where they come from, their hashes, and fetching them whole or not at all.

huggingface_hub and torch.hub download, into a hidden place beside the weights' own; what came is
hashed, and renamed last. So what has its name is complete. No token is ever sent.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpc_hipgen.files import disk_full, fsync, lock, read_json, sha256_of, write_atomic

RECORD = "prefetch.json"
_TIMEOUT = 30.0  # seconds for the hub to list the files


class FetchError(RuntimeError):
    """The network, the server or the content is at fault; one line."""


@dataclass(frozen=True)
class Weights:
    """Something that can be fetched: a folder of files of the hub, or one file of any server."""

    name: str  # of the folder or file in weights/
    source: str  # owner/name on the hub, or a URL
    what: str
    revision: str = ""  # commit of the hub
    files: tuple[str, ...] = ()  # of the folder; none: `name` is the one file at the URL
    sha256: Mapping[str, str] = field(default_factory=dict)  # pinned, by file


_TENSORS = "diffusion_pytorch_model.safetensors"
_INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
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
            f"unet/{_TENSORS}",
            "vae/config.json",
            f"vae/{_TENSORS}",
        ),
        sha256={
            "text_encoder/model.safetensors": (
                "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334"
            ),
            f"unet/{_TENSORS}": "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1",
            f"vae/{_TENSORS}": "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c",
        },
    ),
    Weights(
        "clip-vit-large-patch14",
        "openai/clip-vit-large-patch14",
        "CLIP ViT-L/14, text and image: `clip.pretrained` of configs/unclip.yaml takes it",
        revision="32bd64288804d66eefd0ccbe215aa642df71cc41",
        files=("config.json", "model.safetensors", "preprocessor_config.json", *_TOKENIZER),
        sha256={
            "model.safetensors": "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"
        },
    ),
    Weights(
        _INCEPTION,
        f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{_INCEPTION}",
        "torch-fidelity's Inception, for FID (evaluation.inception)",
        sha256={_INCEPTION: INCEPTION_SHA256},
    ),
)


def known(name: str) -> Weights | None:
    """The entry of the catalogue that has this name."""
    return next((w for w in CATALOGUE if w.name == name), None)


def check_hash(path: Path, expected: str) -> None:
    """Raises ValueError unless the file has the SHA-256 `expected` (hexadecimal)."""
    if not path.is_file():
        raise ValueError(
            f"{path}: no such weight file; `bash sbatch/prefetch.sh` fetches those known"
        )
    if other := _other_hash(path, expected):
        raise ValueError(f"{other}; not the known weights")


def _other_hash(path: Path, expected: str) -> str:
    """What a file's SHA-256 is instead of the expected one, in words; empty where it is that."""
    found = sha256_of(path)
    return "" if found == expected else f"{path}: SHA-256 is {found}, expected {expected}"


def verify(weights: Weights, folder: Path) -> None:
    """Hashes what is there, against the record of its fetching, else against the pinned hashes.

    Raises:
        FetchError: naming the first file that is missing or wrong.
    """
    place = folder / weights.name
    record = place / RECORD
    advice = f"move {place} away and fetch it again"
    hashes = read_json(record, advice)["sha256"] if record.is_file() else weights.sha256
    for name, expected in hashes.items():
        path = place / name if weights.files else place
        if not path.is_file():
            raise FetchError(f"{path} is missing; {advice}")
        if other := _other_hash(path, expected):
            raise FetchError(f"{other}; {advice}")


def fetch(weights: Weights, folder: Path) -> None:
    """Fetches into `folder`; the files that an earlier call brought whole are not fetched again.

    Raises:
        FetchError: one line; what was fetched and is right stays for the next call.
    """
    partial = folder / f".{weights.name}.partial"
    with (folder / ".lock").open("wb") as file:
        if lock(file) is False:
            raise FetchError(f"{folder}: another process is fetching into it")
        try:
            (_fetch_folder if weights.files else _fetch_file)(weights, partial)
        except FetchError:
            raise
        except Exception as error:  # of httpx, urllib, torch.hub, hf_xet: they share no class
            line = " ".join(str(error).split()) or type(error).__name__
            hint = "the disk is full" if disk_full(error) else "is this a machine with internet?"
            raise FetchError(
                f"{weights.source}: {line}; {hint} (the same command goes on from here)"
            ) from error
        os.replace(partial, folder / weights.name)
        fsync(folder)


def _fetch_file(weights: Weights, partial: Path) -> None:
    from torch.hub import download_url_to_file

    # removes what has another hash
    download_url_to_file(weights.source, str(partial), hash_prefix=weights.sha256[weights.name])
    fsync(partial)


def _fetch_folder(weights: Weights, partial: Path) -> None:
    from huggingface_hub import HfApi

    hub = HfApi(token=False)
    commit = {"repo_id": weights.source, "revision": weights.revision}
    listed = hub.model_info(**commit, files_metadata=True, timeout=_TIMEOUT).siblings or []
    _make_room({file.rfilename: file.size or 0 for file in listed}, weights, partial)
    # not snapshot_download: after Ctrl-C its threads finish their files first
    for name in weights.files:
        hub.hf_hub_download(**commit, filename=name, local_dir=partial)
    checked = hub.verify_repo_checksums(**commit, local_dir=partial)
    hashes = {name: sha256_of(partial / name) for name in weights.files}
    wrong = {file["path"] for file in checked.mismatches}
    wrong |= {name for name, pinned in weights.sha256.items() if hashes[name] != pinned}
    if wrong:
        for name in wrong:
            (partial / name).unlink()  # the next call fetches it again
        raise FetchError(f"{weights.source}: wrong hash of {', '.join(sorted(wrong))}; not kept")
    shutil.rmtree(partial / ".cache")  # the library's notes
    for name in hashes:
        fsync(partial / name)
    write_atomic(partial / RECORD, json.dumps({**commit, "sha256": hashes}, indent=1))


def _make_room(sizes: Mapping[str, int], weights: Weights, partial: Path) -> None:
    partial.mkdir(exist_ok=True)
    for abandoned in partial.rglob("*.incomplete"):  # of a killed process; nothing reads it again
        abandoned.unlink()
    need = sum(sizes.get(name, 0) for name in weights.files if not (partial / name).is_file())
    free = shutil.disk_usage(partial).free
    if need > free:
        raise FetchError(f"{partial}: {need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
