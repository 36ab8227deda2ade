"""Fetching of weights, from a hub that is a local server: complete, checked, or not there."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hpc_hipgen import weights
from hpc_hipgen.config import ConfigError
from hpc_hipgen.weights import FetchError, Weights, fetch, verify
from jobs import prefetch

CONFIG, TENSORS = b'{"a": 1}', bytes(range(256)) * 400
MODEL = Weights("model", "owner/name", "a model", "main", ("config.json", "unet/w.safetensors"))


def sha(content):
    return hashlib.sha256(content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """Lists and serves `files`, with ranges; `cut` ends answers of large files after so much."""

    files = {}  # noqa: RUF012
    cut = None
    asked = []  # noqa: RUF012

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Range")))
        if self.path.startswith("/api/models/owner/name/revision/"):
            return self.answer(
                200, json.dumps({"sha": "c0ffee", "siblings": self.listed()}).encode()
            )
        name = self.path.removeprefix("/owner/name/resolve/c0ffee/").removeprefix("/release/")
        if name not in self.files:
            return self.answer(404, b"no")
        content, begin = self.files[name], 0
        if given := self.headers.get("Range"):
            begin = int(given.removeprefix("bytes=").rstrip("-"))
            if begin >= len(content):
                return self.answer(416, b"")
        self.answer(206 if begin else 200, content[begin:])

    def listed(self):
        entries = []
        for name, content in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"rfilename": name, "size": len(content), "blobId": blob}
            if name.endswith("safetensors"):
                entry["lfs"] = {"sha256": sha(content)}
            entries.append(entry)
        return entries

    def answer(self, status, content):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.cut] if len(content) > 1000 else content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    """The class of the running server: its attributes are what it serves."""
    handler = type("Handler", (Hub,), {"asked": []})
    handler.files = {"config.json": CONFIG, "unet/w.safetensors": TENSORS, "w.bin": b"never"}
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        handler.address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("HF_ENDPOINT", handler.address + "/")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield handler
        server.shutdown()


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_the_files_that_are_needed_and_no_other(hub, tmp_path):
    fetch(MODEL, tmp_path)
    assert names(tmp_path) == [
        "model/config.json",
        "model/prefetch.json",
        "model/unet/w.safetensors",
    ]
    assert (tmp_path / "model" / "unet" / "w.safetensors").read_bytes() == TENSORS
    record = json.loads((tmp_path / "model" / "prefetch.json").read_text())
    assert record["sha256"] == {"config.json": sha(CONFIG), "unet/w.safetensors": sha(TENSORS)}
    verify(MODEL, tmp_path)
    (tmp_path / "model" / "config.json").write_bytes(b'{"a": 2}')
    with pytest.raises(FetchError, match=r"config.json: SHA-256 is .*, expected "):
        verify(MODEL, tmp_path)


def test_a_download_that_breaks_off_goes_on_where_it_ended(hub, tmp_path):
    hub.cut = 3000
    with pytest.raises(FetchError, match=r"broke off .*3000 of 102400 bytes"):
        fetch(MODEL, tmp_path)
    assert not (tmp_path / "model").exists()
    hub.cut = None
    hub.asked.clear()
    said = []
    fetch(MODEL, tmp_path, said.append)
    assert "  config.json: there already" in said
    asked = [(path.rpartition("/")[2], begin) for path, begin in hub.asked[1:]]
    assert asked == [("w.safetensors", "bytes=3000-")]
    assert (tmp_path / "model" / "unet" / "w.safetensors").read_bytes() == TENSORS
    assert not any(name.startswith(".") for name in names(tmp_path))


@pytest.mark.parametrize("name", ["unet/w.safetensors", "config.json"])
def test_a_wrong_hash_is_refused_and_nothing_of_it_kept(hub, tmp_path, monkeypatch, name):
    right = hub.files[name]
    listing = weights.listing(MODEL)
    hub.files[name] = bytes(len(right))  # same size, other content
    monkeypatch.setattr(weights, "listing", lambda _: listing)
    with pytest.raises(
        FetchError, match=rf"{name}: .*SHA-.* is .*expected .*nothing of it was kept"
    ):
        fetch(MODEL, tmp_path)
    assert not (tmp_path / "model").exists()
    assert not [n for n in names(tmp_path) if n.endswith(name) or n.endswith("download")]
    hub.files[name] = right
    fetch(MODEL, tmp_path)
    verify(MODEL, tmp_path)


def test_a_hub_that_states_another_hash_than_is_pinned_is_not_asked_for_it(hub, tmp_path):
    pinned = Weights(**{**vars(MODEL), "sha256": {"unet/w.safetensors": sha(b"genuine")}})
    with pytest.raises(FetchError, match=r"w\.safetensors has SHA-256 .* there, expected"):
        fetch(pinned, tmp_path)
    assert names(tmp_path) == [".model.lock"] and len(hub.asked) == 1


def test_a_hub_without_the_file_or_no_hub(hub, tmp_path, monkeypatch):
    del hub.files["config.json"]
    with pytest.raises(FetchError, match=r"lists no config\.json"):
        fetch(MODEL, tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match="a machine with internet") as error:
        fetch(MODEL, tmp_path)
    assert "\n" not in str(error.value)


def one_file(hub, content=TENSORS):
    return Weights("w.pth", f"{hub.address}/release/w.pth", "one", sha256={"w.pth": sha(content)})


def test_one_file_of_another_server(hub, tmp_path):
    hub.files["w.pth"], hub.cut = TENSORS, 5000
    with pytest.raises(FetchError, match="broke off"):
        fetch(one_file(hub), tmp_path)
    hub.cut = None
    fetch(one_file(hub), tmp_path)
    assert hub.asked[-1] == ("/release/w.pth", "bytes=5000-")
    assert names(tmp_path) == ["w.pth"] and (tmp_path / "w.pth").read_bytes() == TENSORS
    verify(one_file(hub), tmp_path)
    with pytest.raises(FetchError, match="SHA-256"):
        verify(one_file(hub, b"other"), tmp_path)


def test_a_whole_download_that_got_no_name_yet(hub, tmp_path):
    hub.files["w.pth"] = TENSORS
    (tmp_path / ".w.pth.partial").mkdir()
    (tmp_path / ".w.pth.partial" / "w.pth.download").write_bytes(TENSORS)
    fetch(one_file(hub), tmp_path)
    assert (tmp_path / "w.pth").read_bytes() == TENSORS


def test_a_disk_that_is_too_small_is_said_first(hub, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(FetchError, match="are needed"):
        fetch(MODEL, tmp_path)
    assert len(hub.asked) == 1


def test_a_second_fetch_of_the_same_waits_for_nobody(hub, tmp_path):
    with (
        weights._alone(tmp_path / ".model.lock"),
        pytest.raises(FetchError, match="another process"),
    ):
        fetch(MODEL, tmp_path)
    fetch(MODEL, tmp_path)


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
    assert command(["modle"]) == 2
    assert "error: modle: not known here; known are model" in capsys.readouterr().err


def test_weights_elsewhere_are_linked(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HIPGEN_WEIGHTS", str(tmp_path / "scratch"))
    assert command([]) == 0
    link = tmp_path / "clone" / "weights"
    assert link.is_symlink() and (link / "model" / "config.json").is_file()
    assert command([]) == 0
    monkeypatch.delenv("HIPGEN_WEIGHTS")
    assert command([]) == 0  # the link holds
    assert capsys.readouterr().out.count("there already") == 2
    link.unlink()
    link.mkdir()
    monkeypatch.setenv("HIPGEN_WEIGHTS", str(tmp_path / "scratch"))
    assert command([]) == 2
    assert "is a folder already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["llcm_a100", "llcm_a100_sane"])
def test_what_an_experiment_names_is_in_the_catalogue(name, capsys):
    found = prefetch.wanted([str(weights.Path(__file__).parents[1] / "configs" / f"{name}.yaml")])
    assert [w.name for w in found] == [weights.CATALOGUE[0].name, weights.CATALOGUE[2].name]


def test_an_experiment_without_weights_fetches_nothing(capsys):
    root = weights.Path(__file__).parents[1]
    assert prefetch.wanted([str(root / "configs" / "llcm.yaml")]) == []
    assert "trains from scratch" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no such file"):
        prefetch.wanted(["nowhere.yaml"])


def test_the_catalogue_agrees_with_who_reads_it():
    from hpc_hipgen.evaluation.distances import INCEPTION_SHA256

    inception = weights.known("weights-inception-2015-12-05-6726825d.pth")
    assert inception.sha256 == {inception.name: INCEPTION_SHA256}
    for entry in weights.CATALOGUE:
        large = [n for n in entry.files if n.endswith("safetensors")] or [entry.name]
        assert set(entry.sha256) == set(large)
        assert not [n for n in entry.files if n.endswith((".bin", ".ckpt"))]


def test_nothing_else_opens_a_connection_to_the_world():
    root = weights.Path(__file__).parents[1]
    words = ("urllib.request", "import requests", "huggingface_hub", "http.client", "hf_hub_")
    found = {
        path.name
        for folder in ("hpc_hipgen", "jobs")
        for path in (root / folder).rglob("*.py")
        if any(word in path.read_text() for word in words)
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
    fetch(Weights("sd", "owner/name", "tiny", "main", tuple(names)), tmp_path)
    from hpc_hipgen.generators.stable_diffusion import load_parts

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    parts = load_parts(tmp_path / "sd")
    assert parts.prediction == tiny_run.config.stable_diffusion.prediction
