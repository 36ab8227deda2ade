"""Tables as text."""

import pytest

from hpc_hipgen.tables import csv_text, markdown_table, number


def test_a_table_as_markdown():
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert markdown_table(["a"], []) == "| a |\n| --- |"


def test_a_table_as_csv_has_no_other_columns():
    assert csv_text([{"a": 1}], ["a", "b"]) == "a,b\n1,\n"
    with pytest.raises(ValueError):
        csv_text([{"c": 1}], ["a"])


def test_numbers_have_a_true_minus_and_no_minus_zero():
    assert number(-0.001, 1) == "0.0" and number(-1.5, 1) == "−1.5" and number(None) == "–"
