"""Renderer of Markdown tables."""

import pytest

from clipvid.evaluation.tables import Figure, Strong, Table


def test_first_columns_are_text_and_the_others_numbers() -> None:
    assert Table(["", "setting", "top-1"], [["ila", "a", "0.9"], ["gta", "", "0.8"]], 2).markdown() == (
        "| | setting | top-1 |\n|---|---|---:|\n| ila | a | 0.9 |\n| gta | | 0.8 |\n"
    )


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a|b", "a\\|b"),
        ("two\nlines", "two lines"),
        ("|\n|", "\\| \\|"),
        ("[a](javascript:alert(1))", "\\[a\\](javascript:alert(1))"),
        ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>"),
        ("$x$ `code` *a* __b__ snake_case", "\\$x\\$ \\`code\\` \\*a\\* \\_\\_b\\_\\_ snake_case"),
        ("\x1b[31mred\x1b[0m", "\\[31mred \\[0m"),
    ],
)
def test_no_text_breaks_out_of_its_cell(text: str, cell: str) -> None:
    assert Table([text, "n"], [[text, text]]).markdown() == f"| {cell} | n |\n|---|---:|\n| {cell} | {cell} |\n"


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells, expected 2"):
        Table(["a", "b"], [["only"]])


def test_figures_show_their_intervals_and_missing_ones_a_dash() -> None:
    row = ["a", Figure(0.9312, (0.9, 0.95), 2), Figure(0.5), Strong("n|o"), None]
    table = Table(["", "b", "c", "d", "e"], [row])
    assert table.markdown().splitlines()[2] == "| a | 0.93 (0.90-0.95) | 0.500 | **n\\|o** | - |"
