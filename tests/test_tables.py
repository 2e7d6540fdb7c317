"""Renderer of Markdown tables."""

import pytest

from clipvid.evaluation.tables import markdown_table


def test_first_columns_are_text_and_the_others_numbers() -> None:
    assert markdown_table(["", "setting", "top-1"], [["ila", "a", "0.9"], ["gta", "", "0.8"]], text_columns=2) == (
        "| | setting | top-1 |\n|---|---|---:|\n| ila | a | 0.9 |\n| gta | | 0.8 |\n"
    )


@pytest.mark.parametrize(("text", "cell"), [("a|b", "a\\|b"), ("two\nlines", "two lines"), ("|\n|", "\\| \\|")])
def test_no_text_breaks_out_of_its_cell(text: str, cell: str) -> None:
    assert markdown_table([text, "n"], [[text, text]]) == f"| {cell} | n |\n|---|---:|\n| {cell} | {cell} |\n"


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells, expected 2"):
        markdown_table(["a", "b"], [["only"]])
