"""Prose of the project: banned turns, first words of docstrings, and the length of sentences."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import REPOSITORY

PLACES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs", "clipvid", "scripts", "configs", "tests"]
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
    r"colours?\b",
    r"initialis\w*",
    r"neighbour\w*",
    r"behaviour\w*",
    r"greyscale\b",
    r"labell\w*",
    r"centres?\b",
    r"recognis\w*",
    r"licences?\b",
]
PATTERN = re.compile(
    rf"\b(?:{'|'.join([*BANNED, *BRITISH])})|normalis|optimis(?:e|er|ers|ed|ing|ation)\b", re.IGNORECASE
)
# Keys and captions of the synthetic world, whose change would change the data, and a deprecated method.
KEPT = re.compile(
    r'"colour"|depth, colour\]|\bcolour(?:_name)?: |"(?:in the )?centre"|\(centre\|'
    r"|\bnormalise(?: is deprecated|\()|`normalise`"
)
# Words that name nothing. torch has the name `found_inf`; checkpoints of pretraining contain the name `terms`.
VAGUE_NAMES = {"found", "given", "known", "labelled", "summarise", "terms", "told", "wanted"}
KEPT_NAMES = {"found_inf", "terms"}
QUESTIONS = {"What", "Whether", "Which", "Where", "How", "When", "Why", "That", "Who"}


def texts(place: str) -> Iterator[tuple[Path, int, str]]:
    """Yield file, line number and prose of each line in files with a hit; of Python, comments and strings."""
    path = REPOSITORY / place
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.suffix not in SUFFIXES or file.resolve() == THIS_FILE:
            continue
        text = file.read_text(encoding="utf-8")
        if not PATTERN.search(text):  # saves the tokenizer's time
            continue
        lines = python_prose(text) if file.suffix == ".py" else enumerate(without_code(text).split("\n"), 1)
        yield from ((file, number, line) for number, line in lines)


def without_code(text: str) -> str:
    """Return Markdown with code replaced by blanks, line by line."""
    text = re.sub(r"^( *)```.*?^\1```", lambda match: re.sub(r"[^\n]", " ", match[0]), text, flags=re.DOTALL | re.M)
    return re.sub(r"`[^`\n]*`", lambda match: "x" * len(match[0]), text)


def python_prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield line numbers and text of comments and strings, without the values of f-strings."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None)):
            is_f_string = token.string.lstrip("rR").startswith(("f", "F"))
            for offset, line in enumerate(token.string.split("\n")):
                yield token.start[0] + offset, re.sub(r"\{[^{}]*\}", "x", line) if is_f_string else line


@cache
def docstrings(folder: str) -> list[tuple[str, bool, str]]:
    """Return place, True for a class, and text of every docstring below a folder."""
    actual = []
    for file in sorted((REPOSITORY / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    place = f"{file.relative_to(REPOSITORY)}: {getattr(node, 'name', 'module')}"
                    actual.append((place, isinstance(node, ast.ClassDef), text))
    return actual


def defined_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line numbers and names of the functions, classes, arguments, variables and attributes of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


@pytest.mark.parametrize("place", PLACES)
def test_prose_has_no_banned_turns(place: str):
    actual = [
        f"{file.relative_to(REPOSITORY)}:{number}: {match[0]!r} in {line.strip()[:100]}"
        for file, number, line in texts(place)
        for match in PATTERN.finditer(KEPT.sub("", line))
    ]
    assert not actual, "\n".join(actual)


@pytest.mark.parametrize("folder", ["clipvid", "scripts", "tests", "docs"])
def test_docstrings_do_not_start_with_question_words(folder: str):
    actual = [f"{place}: {text[:80]!r}" for place, _, text in docstrings(folder) if text.split()[0] in QUESTIONS]
    assert not actual, "\n".join(actual)


@pytest.mark.parametrize("folder", ["clipvid", "scripts", "tests"])
def test_names_say_what_a_value_is(folder: str):
    actual = [
        f"{file.relative_to(REPOSITORY)}:{line}: {name}"
        for file in sorted((REPOSITORY / folder).rglob("*.py"))
        for line, name in defined_names(ast.parse(file.read_text(encoding="utf-8")))
        if not name.startswith("test_") and VAGUE_NAMES & set(name.lower().split("_")) and name not in KEPT_NAMES
    ]
    assert not actual, "\n".join(actual)


def test_vague_names_are_recognized():
    tree = ast.parse("def is_known(given):\n    self.found, (wanted_rows, x) = given")
    assert {name for _, name in defined_names(tree)} == {"is_known", "given", "found", "wanted_rows", "x"}


def test_docstrings_of_classes_do_not_start_with_verbs():
    verbs = {"Return", "Build", "Load", "Write", "Read", "Yield", "Makes", "Holds", "Keeps", "Gives", "Lives", "Raises"}
    actual = [
        f"{place}: {text[:80]!r}"
        for place, is_class, text in docstrings("clipvid")
        if is_class and text.split()[0] in verbs
    ]
    assert not actual, "\n".join(actual)


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
    assert bool(PATTERN.search(sentence)) == banned


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
    actual = [
        f"{file.relative_to(REPOSITORY)}: {len(words)} words: {sentence[:160]}"
        for file in files
        for sentence in sentences(file.read_text(encoding="utf-8"))
        if len(words := re.findall(r"[\w'-]*\w", sentence)) > MAX_WORDS
    ]
    assert not actual, "\n".join(actual)


@pytest.mark.parametrize("folder", ["clipvid", "scripts"])
def test_sentences_of_docstrings_are_short(folder: str):
    actual = [
        f"{place}: {len(words)} words: {sentence[:160]}"
        for place, _, text in docstrings(folder)
        for sentence in docstring_sentences(text)
        if len(words := re.findall(r"[\w'-]*\w", sentence)) > MAX_WORDS
    ]
    assert not actual, "\n".join(actual)


def docstring_sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a docstring. Items of lists and arguments are separate, and code counts as one word."""
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:- |\w[\w, ]*: ))", re.sub(r"`[^`]*`", "x", text)):
        yield from re.split(r"(?<=[.:;!?])\s+", " ".join(block.split()))


def test_readme_is_at_most_ten_kilobytes():
    assert (REPOSITORY / "README.md").stat().st_size <= 10_000
