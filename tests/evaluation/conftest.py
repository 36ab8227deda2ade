import sys
from pathlib import Path

import pytest

# pytest's importlib mode puts no test folder on the path; `report_run` and `chromium` are shared.
sys.path.insert(0, str(Path(__file__).parent))

from report_run import StubBackbone, StubRuler, stub_films


@pytest.fixture
def stubs(monkeypatch):
    """No network is loaded, and no data folder is read."""
    from hpc_hipgen.evaluation import audit, distances, measurements

    monkeypatch.setattr("hpc_hipgen.rulers.ruler.ruler_of", lambda run, device: StubRuler())
    monkeypatch.setattr(distances, "load_backbone", lambda inception: StubBackbone())
    monkeypatch.setattr(audit, "read_manifest", stub_films)
    monkeypatch.setattr(measurements, "read_manifest", stub_films)
    monkeypatch.setattr(audit, "read_view", lambda data, split, view, films: None)
