"""Prose of the project: banned turns, and the length of sentences in the documentation."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

PLACES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs"]  # files and folders that are held to the rules
SUFFIXES = {".md", ".json", ".py", ".yaml", ".yml", ".sbatch"}
THIS_FILE = Path(__file__).resolve()
MAX_WORDS = 25

BANNED = [
    r"is no\b",
    r"but for\b",
    r"of (?:its|their|his|her|our|your) own\b",
    r"to be had\b",
    r"told\b",
    r"(?:is|are|was|were) said\b",
    r"asked for\b",
    r"anew\b",
    r"thereof\b",
    r"a word about it\b",
    r"what it takes\b",
    r"it took\b",
    r"be it\b",
    r"in mid-",
    r"go(?:es)? on (?:from|with|where|to|on)\b",
    r"stands (?:for|beside|between|in|at|on|where|alone)\b",
    r"(?:lies|lie) (?:in|beside|below|at|under|on|there)\b",
]
BRITISH = [
    r"\w*normalis\w*",
    r"colours?\b",
    r"\w*optimis(?:e|er|ers|ed|ing|ation)\b",
    r"initialis\w*",
    r"neighbour\w*",
    r"behaviour\w*",
    r"greyscale\b",
    r"labell\w*",
    r"centres?\b",
    r"recognis\w*",
    r"licences?\b",
]


def texts(place: str) -> Iterator[tuple[Path, int, str]]:
    """Yield file, line number and prose of each line; of Python files, comments and docstrings."""
    path = REPOSITORY / place
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.suffix not in SUFFIXES or file.resolve() == THIS_FILE:
            continue
        text = file.read_text(encoding="utf-8")
        lines = python_prose(text) if file.suffix == ".py" else enumerate(without_code(text).split("\n"), 1)
        yield from ((file, number, line) for number, line in lines)


def without_code(text: str) -> str:
    """Return Markdown with code replaced by blanks, line by line."""
    text = re.sub(r"^( *)```.*?^\1```", lambda match: re.sub(r"[^\n]", " ", match[0]), text, flags=re.DOTALL | re.M)
    return re.sub(r"`[^`\n]*`", lambda match: "x" * len(match[0]), text)


def python_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield line numbers and text of comments and strings."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            for offset, line in enumerate(token.string.split("\n")):
                yield token.start[0] + offset, line


@pytest.mark.parametrize("place", PLACES)
def test_prose_has_no_banned_turns(place: str):
    pattern = re.compile(rf"\b(?:{'|'.join([*BANNED, *BRITISH])})", re.IGNORECASE)
    found = [
        f"{file.relative_to(REPOSITORY)}:{number}: {match[0]!r} in {line.strip()[:100]}"
        for file, number, line in texts(place)
        for match in pattern.finditer(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("sentence", "banned"),
    [
        ("There is no GPU", True),
        ("a fresh file of its own", True),
        ("The run goes on from there", True),
        ("What it was told", True),
        ("The optimiser and its colours", True),
        ("Each file has its own hash", False),
        ("The run resumes", False),
    ],
)
def test_banned_turns_are_recognized(sentence: str, banned: bool):
    pattern = re.compile(rf"\b(?:{'|'.join([*BANNED, *BRITISH])})", re.IGNORECASE)
    assert bool(pattern.search(sentence)) == banned


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of running text in Markdown: no headings, tables, lists of papers or links' addresses."""
    text = without_code(text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"\\\[.*?\\\]|\\\(.*?\\\)", "x", text, flags=re.DOTALL)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*#|!]|\d+\.) ?)", text):
        if block.lstrip().startswith(("#", "|", "!", "<")):
            continue
        yield from re.split(r"(?<=[.:;!?])\s+", " ".join(block.split()))


@pytest.mark.parametrize("place", ["README.md", "CONTRIBUTING.md", "docs"])
def test_sentences_are_short(place: str):
    path = REPOSITORY / place
    files = sorted(path.rglob("*.md")) if path.is_dir() else [path]
    found = [
        f"{file.relative_to(REPOSITORY)}: {len(words)} words: {sentence[:160]}"
        for file in files
        for sentence in sentences(file.read_text(encoding="utf-8"))
        if len(words := re.findall(r"[\w'-]*\w", sentence)) > MAX_WORDS
    ]
    assert not found, "\n".join(found)


def test_readme_is_at_most_ten_kilobytes():
    assert (REPOSITORY / "README.md").stat().st_size <= 10_000
