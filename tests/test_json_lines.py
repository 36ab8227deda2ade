"""Files of a JSON object a line, wherever they were cut off."""

import json

import pytest

from hpc_hipgen import json_lines
from hpc_hipgen.json_lines import add_line, last_line, read_lines

LINES = [{"images": 8, "loss": 0.5}, {"images": 16, "of": {"loss": 0.25}}, {"images": 24}]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_a_file_that_is_not_there_has_no_lines(path):
    assert read_lines(path) == [] and last_line(path) == {}


def test_wherever_a_file_is_cut_off_whole_lines_count_and_the_next_is_whole(path):
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    for end in range(len(text) + 1):
        path.write_text(text[:end])
        whole = [line for line in LINES if json.dumps(line) in text[:end]]
        assert read_lines(path) == whole
        assert last_line(path) == (whole[-1] if whole else {})
        add_line(path, {"images": 99})
        assert read_lines(path) == [*whole, {"images": 99}]


def test_what_is_no_object_or_no_text_is_passed_over(path):
    path.write_bytes(b'3\n{"images": 8}\n"a"\n\xff\x00\n\n[1]')
    assert read_lines(path) == [last_line(path)] == [{"images": 8}]


def test_a_number_can_be_asked_for(path):
    path.write_text('{"images": 8}\n{"loss": 2}\n{"images": null}\n{"images": "9"}\n')
    assert len(read_lines(path)) == 4
    assert read_lines(path, "images") == [last_line(path, "images")] == [{"images": 8}]


def test_the_last_line_is_found_in_the_end_of_a_file(path, monkeypatch):
    monkeypatch.setattr(json_lines, "_TAIL", 30)
    for number in range(50):
        add_line(path, {"images": number})
    assert last_line(path) == {"images": 49}
