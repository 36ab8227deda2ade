"""Fetching of weights, from a hub that is a local server: complete, checked, or not there."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from hpc_hipgen import weights
from hpc_hipgen.config import ConfigError
from hpc_hipgen.files import lock
from hpc_hipgen.weights import FetchError, Weights, fetch, verify
from jobs import prefetch

CONFIG, TENSORS = b'{"a": 1}', bytes(range(256)) * 400
COMMIT = "c0ffee" + "0" * 34
FILES = ("config.json", "unet/w.safetensors")


def sha(content):
    return hashlib.sha256(content).hexdigest()


MODEL = Weights(
    "model", "owner/name", "a model", COMMIT, FILES, {"unet/w.safetensors": sha(TENSORS)}
)


class Hub(BaseHTTPRequestHandler):
    """Lists what the hub has, and serves what comes: `coming` where it differs, None breaks off."""

    files = {}  # noqa: RUF012
    coming = {}  # noqa: RUF012
    asked = []  # noqa: RUF012

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        assert self.headers.get("Authorization") is None
        path = self.path.partition("?")[0]
        if path == f"/api/models/owner/name/revision/{COMMIT}":
            return self.answer(json.dumps({"id": "owner/name", "siblings": self.listed()}).encode())
        if path == f"/api/models/owner/name/tree/{COMMIT}":
            return self.answer(json.dumps(self.listed()).encode())
        name = path.removeprefix(f"/owner/name/resolve/{COMMIT}/").removeprefix("/release/")
        if self.command == "GET":
            self.asked.append(name)
        if name not in self.files:
            return self.answer(b"no", 404)
        content = self.files[name]
        self.answer(self.coming.get(name, content), size=len(content), etag=self.hashes(name)[1])

    def hashes(self, name):
        """Name of the hash that the hub states, and the hash."""
        content = self.files[name]
        if name.endswith("safetensors"):
            return "sha256", sha(content)
        return "blob", hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def listed(self):
        entries = []
        for name, content in self.files.items():
            kind, stated = self.hashes(name)
            size = {"size": len(content)}
            entry = {"type": "file", "path": name, "rfilename": name, "oid": stated, **size}
            if kind == "sha256":
                entry["lfs"] = {"oid": stated, "sha256": stated, "pointerSize": 1, **size}
            entries.append(entry)
        return entries

    def answer(self, content, status=200, size=None, etag=None):
        self.send_response(403 if content is None else status)
        self.send_header("Content-Length", str(0 if content is None else size or len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag" if etag else "X-Error-Code", etag or "EntryNotFound")
        self.end_headers()
        if self.command == "GET" and content is not None:
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    """The class of the running server: its attributes are what it serves."""
    import huggingface_hub.constants

    handler = type("Handler", (Hub,), {"asked": [], "coming": {}})
    handler.files = {"config.json": CONFIG, "unet/w.safetensors": TENSORS, "w.bin": b"never"}
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        handler.address = f"http://127.0.0.1:{server.server_address[1]}"
        constants = huggingface_hub.constants  # took HF_ENDPOINT when they were imported
        template = handler.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", handler.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield handler
        server.shutdown()


def names(folder):
    """Files, without what is hidden."""
    paths = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return sorted(str(p) for p in paths if not any(part.startswith(".") for part in p.parts))


def test_the_files_that_are_needed_and_no_other(hub, tmp_path):
    fetch(MODEL, tmp_path)
    assert names(tmp_path) == [f"model/{n}" for n in ("config.json", "prefetch.json", FILES[1])]
    assert [p.name for p in tmp_path.iterdir() if p.name != ".lock"] == ["model"]
    assert not (tmp_path / "model" / ".cache").exists()
    assert (tmp_path / "model" / FILES[1]).read_bytes() == TENSORS
    record = json.loads((tmp_path / "model" / "prefetch.json").read_text())
    assert record["revision"] == COMMIT
    assert record["sha256"] == {"config.json": sha(CONFIG), FILES[1]: sha(TENSORS)}
    verify(MODEL, tmp_path)
    (tmp_path / "model" / "config.json").write_bytes(b'{"a": 2}')
    with pytest.raises(FetchError, match=r"config.json: SHA-256 is .*, expected "):
        verify(MODEL, tmp_path)


def test_what_came_whole_before_an_interruption_is_kept(hub, tmp_path):
    hub.coming = {FILES[1]: None}
    with pytest.raises(FetchError, match="the same command goes on from here") as error:
        fetch(MODEL, tmp_path)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == []
    abandoned = tmp_path / ".model.partial" / ".cache" / "x.incomplete"
    abandoned.write_bytes(b"of a killed process")
    hub.coming = {}
    hub.asked.clear()
    fetch(MODEL, tmp_path)
    assert hub.asked == [FILES[1]]
    verify(MODEL, tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_hash_is_refused_and_nothing_of_it_kept(hub, tmp_path, name):
    hub.coming = {name: bytes(len(hub.files[name]))}  # same size, other content
    with pytest.raises(FetchError, match=rf"wrong hash of {name}; not kept"):
        fetch(MODEL, tmp_path)
    assert names(tmp_path) == [] and not (tmp_path / ".model.partial" / name).exists()
    hub.coming = {}
    fetch(MODEL, tmp_path)
    verify(MODEL, tmp_path)


def test_the_pinned_hash_counts_whatever_the_hub_states(hub, tmp_path):
    hub.files[FILES[1]] = b"forged"
    with pytest.raises(FetchError, match=rf"wrong hash of {FILES[1]}"):
        fetch(MODEL, tmp_path)
    assert names(tmp_path) == []


def test_a_hub_without_the_file_or_no_hub(hub, tmp_path, monkeypatch):
    del hub.files["config.json"]
    with pytest.raises(FetchError, match=r"404 .*config\.json"):
        fetch(MODEL, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match="a machine with internet") as error:
        fetch(MODEL, tmp_path)
    assert "\n" not in str(error.value)


def test_one_file_of_another_server(hub, tmp_path):
    one = Weights("w.pth", f"{hub.address}/release/w.pth", "one", sha256={"w.pth": sha(TENSORS)})
    with pytest.raises(FetchError, match="404"):
        fetch(one, tmp_path)
    hub.files["w.pth"] = TENSORS
    hub.coming = {"w.pth": bytes(len(TENSORS))}
    with pytest.raises(FetchError, match="invalid hash value"):
        fetch(one, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    hub.coming = {}
    fetch(one, tmp_path)
    assert names(tmp_path) == ["w.pth"] and (tmp_path / "w.pth").read_bytes() == TENSORS
    verify(one, tmp_path)
    (tmp_path / "w.pth").write_bytes(b"other")
    with pytest.raises(FetchError, match="SHA-256"):
        verify(one, tmp_path)


def test_a_disk_that_is_too_small_is_said_first(hub, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(FetchError, match="are needed"):
        fetch(MODEL, tmp_path)
    assert hub.asked == []


def test_a_second_fetch_waits_for_nobody(hub, tmp_path):
    with (tmp_path / ".lock").open("wb") as file:
        assert lock(file)
        with pytest.raises(FetchError, match="another process"):
            fetch(MODEL, tmp_path)
    fetch(MODEL, tmp_path)


def test_the_command_is_online_where_all_else_is_offline(hub, tmp_path):
    """As sbatch/prefetch.sh starts it: the variables of sbatch/common.sh are set."""
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests'); "
        "import test_weights as t; "
        "t.prefetch.CATALOGUE = (t.MODEL,); t.prefetch.ROOT = Path(sys.argv[1]); "
        "sys.exit(t.prefetch.main([]))"
    )
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_ENDPOINT": hub.address}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=weights.Path(__file__).parents[1],
        env=os.environ | offline,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    verify(MODEL, tmp_path / "weights")


@pytest.fixture
def command(hub, tmp_path, monkeypatch):
    """jobs.prefetch with a catalogue of one model, fetching beside a clone of its own."""
    for module in (weights, prefetch):
        monkeypatch.setattr(module, "CATALOGUE", (MODEL,))
    monkeypatch.setattr(prefetch, "ROOT", tmp_path / "clone")
    monkeypatch.delenv("HIPGEN_WEIGHTS", raising=False)
    (tmp_path / "clone").mkdir()
    return prefetch.main


def test_the_command_says_what_it_did(command, hub, tmp_path, capsys):
    model = tmp_path / "clone" / "weights" / "model"
    assert command(["--check"]) == 1 and f"{model}: not there" in capsys.readouterr().err
    assert command([]) == 0
    said = capsys.readouterr().out
    assert f"{model}: a model\n" in said and said.endswith(f"{model}: complete\n")
    hub.files.clear()  # no network is needed any more
    assert command(["model"]) == 0
    assert capsys.readouterr().out == f"{model}: there already\n"
    assert command(["--check"]) == 0
    assert capsys.readouterr().out == f"{model}: there already, hashes right\n"
    (model / "config.json").unlink()
    assert command(["--check"]) == 1
    assert "config.json is missing" in capsys.readouterr().err
    (model / weights.RECORD).write_text("{")
    assert command(["--check"]) == 2
    assert f"{weights.RECORD}: damaged; move {model} away and" in capsys.readouterr().err
    assert command(["modle"]) == 2
    assert "error: modle: not known here; known are model" in capsys.readouterr().err


def test_an_interruption_ends_all_downloads(command, monkeypatch, capsys):
    def interrupted(weights, folder):
        begun.append(weights)
        raise KeyboardInterrupt

    begun = []
    monkeypatch.setattr(prefetch, "CATALOGUE", (MODEL, dataclasses.replace(MODEL, name="other")))
    monkeypatch.setattr(prefetch, "fetch", interrupted)
    assert command([]) == 130
    assert begun == [MODEL] and "interrupted" in capsys.readouterr().err


def test_weights_elsewhere_are_linked(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HIPGEN_WEIGHTS", str(tmp_path / "scratch"))
    assert command([]) == 0
    link = tmp_path / "clone" / "weights"
    assert link.is_symlink() and (link / "model" / "config.json").is_file()
    assert command([]) == 0
    monkeypatch.delenv("HIPGEN_WEIGHTS")
    assert command([]) == 0  # the link holds
    assert capsys.readouterr().out.count("there already") == 2
    monkeypatch.setenv("HIPGEN_WEIGHTS", str(tmp_path / "other"))
    assert command([]) == 0
    now = f"{link}: a link to {tmp_path}/other now, no longer to {tmp_path}/scratch\n"
    assert now in capsys.readouterr().out
    link.unlink()
    with monkeypatch.context() as theirs:
        theirs.setattr(prefetch.Path, "symlink_to", lambda *_: of_another())
        assert command([]) == 2
    assert f"error: {link}: cannot become a link to HIPGEN_WEIGHTS" in capsys.readouterr().err
    link.mkdir()
    assert command([]) == 2
    assert "is a folder already" in capsys.readouterr().err


def of_another():
    raise PermissionError(13, "Permission denied", "/elsewhere")


@pytest.mark.parametrize("name", ["llcm_a100", "llcm_a100_sane"])
def test_what_an_experiment_names_is_in_the_catalogue(name, capsys):
    found = prefetch.wanted([str(weights.Path(__file__).parents[1] / "configs" / f"{name}.yaml")])
    assert [w.name for w in found] == [weights.CATALOGUE[0].name, weights.CATALOGUE[2].name]


def test_every_path_below_weights_is_seen(tmp_path, tiny_settings):
    tiny_settings["lora"] = {"training": tiny_settings["llcm"]["training"], "base": "weights/sd"}
    tiny_settings["autoencoder"] = {"pretrained": "weights/vae"}
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(tiny_settings))
    with pytest.raises(ConfigError, match="vae: not known here"):
        prefetch.wanted([str(path)])
    assert prefetch._named(str(path)) == ["vae", "sd"]


def test_an_experiment_without_weights_fetches_nothing(capsys):
    root = weights.Path(__file__).parents[1]
    assert prefetch.wanted([str(root / "configs" / "llcm.yaml")]) == []
    assert "trains from scratch" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no such file"):
        prefetch.wanted(["nowhere.yaml"])


def test_the_catalogue_agrees_with_who_reads_it():
    inception = weights.known("weights-inception-2015-12-05-6726825d.pth")
    assert inception.sha256 == {inception.name: weights.INCEPTION_SHA256}
    for entry in weights.CATALOGUE:
        large = [n for n in entry.files if n.endswith("safetensors")] or [entry.name]
        assert set(entry.sha256) == set(large)
        assert not [n for n in entry.files if n.endswith((".bin", ".ckpt"))]


def test_nothing_else_opens_a_connection_to_the_world():
    root = weights.Path(__file__).parents[1]
    words = (
        "urllib.request",
        "import requests",
        "from huggingface_hub",
        "torch.hub",
        "http.client",
        "hf_hub_",
    )
    # plain data classes of a model card
    offline = re.compile(r"from huggingface_hub import (ModelCardData|EvalResult)$", re.MULTILINE)
    found = {
        path.name
        for folder in ("hpc_hipgen", "jobs")
        for path in (root / folder).rglob("*.py")
        if any(word in offline.sub("", path.read_text()) for word in words)
    }
    assert found == {"weights.py"}


@pytest.mark.slow
def test_a_fetched_stable_diffusion_is_read_offline(hub, tiny_run, tmp_path, monkeypatch):
    """What the catalogue lists is all that training reads."""
    export = tiny_run.path("stable_diffusion", "export")
    hub.files = {
        str(p.relative_to(export)): p.read_bytes() for p in export.rglob("*") if p.is_file()
    }
    there = set(hub.files)
    wanted = weights.known("stable-diffusion-v1-5").files
    names = [n for n in wanted if n in there or not n.startswith("tokenizer/")]
    names += [n for n in there if n.startswith("tokenizer/")]  # transformers 5 writes one file
    fetch(Weights("sd", "owner/name", "tiny", COMMIT, tuple(names)), tmp_path)
    from hpc_hipgen.generators.stable_diffusion import load_parts

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    parts = load_parts(tmp_path / "sd")
    assert parts.prediction == tiny_run.config.stable_diffusion.prediction
