"""pyproject.toml, environment.yml and requirements.lock describe one environment."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LISTED = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]


def conda() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def locked() -> dict[str, str]:
    """Package to version of requirements.lock, names canonical."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    rows = [line.split(";")[0].strip() for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+!-]+", row) for row in rows), "exact versions only"
    return {canonicalize_name(row.split("==")[0]): row.split("==")[1] for row in rows}


def test_conda_lists_what_pyproject_lists():
    pip = next(item["pip"] for item in conda()["dependencies"] if isinstance(item, dict))
    assert pip == LISTED


def test_conda_asks_for_the_same_python():
    assert f"python{PROJECT['requires-python']}" in conda()["dependencies"]
    assert conda()["name"] == PROJECT["name"]


def test_lock_holds_every_listed_package_in_its_range():
    versions = locked()
    for requirement in map(Requirement, LISTED):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}"


def test_lock_names_no_index_host():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and "--index" not in text and "--find-links" not in text
