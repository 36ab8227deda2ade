"""What the documents name is there: files, headings, scripts and experiments."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(path):
    """Of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    links = [link for link in LINK.findall(path.read_text()) if "://" not in link]
    assert links or path.name == "log.md"
    for link in links:
        name, _, anchor = link.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


@pytest.mark.parametrize(
    "document, folder, pattern",
    [("README.md", "sbatch", "*.sh"), ("docs/generators.md", "configs", "*.yaml")],
)
def test_every_script_and_experiment_has_its_line(document, folder, pattern):
    helpers = {"common.sh", "environment.sh"}
    names = {path.name for path in (ROOT / folder).glob(pattern)} - helpers
    text = (ROOT / document).read_text()
    assert names and not [
        name for name in names if not re.search(rf"^\| `\S*{re.escape(name)}\b", text, re.MULTILINE)
    ]
