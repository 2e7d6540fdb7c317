"""Completion of verbs and options in the shell."""

import shutil
import subprocess
from pathlib import Path

import pytest

from clipvid.commands import VERBS
from clipvid.commands.completion import main, script, words_after

BASH = shutil.which("bash")
ZSH = shutil.which("zsh")
NO_PROGRAMS = {"PATH": "/nonexistent"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh"):
        (folder / shell).write_text(script(shell))
    return folder


def complete(folder: Path, *words: str) -> list[str]:
    """Return the words that bash offers for the last one, in a shell without programs."""
    place = len(words) - 1
    lines = 'source "$0"; COMP_CWORD=$1; shift; COMP_WORDS=("$@"); _clipvid; printf "%s\\n" "${COMPREPLY[@]}"'
    command = [str(BASH), "--norc", "-c", lines, str(folder / "bash"), str(place), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=NO_PROGRAMS, check=False)
    assert done.stderr == ""
    return done.stdout.split()


needs_bash = pytest.mark.skipif(BASH is None, reason="no bash on this machine")


@needs_bash
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["fine"], ["finetune"]),
        (["pretrain-"], ["pretrain-clip"]),
        (["finetune", "--training.ep"], ["--training.epochs"]),
        (["finetune", "--seed", "3", "--output_dir", "x", "--data.val"], ["--data.val", "--data.val_share"]),
        (["evaluate", "--sui"], ["--suite"]),
        (["predict", "clip.mp4", "--rev"], ["--revision"]),
        (["push", "--repo"], ["--repo_id"]),
        (["convert", "i"], ["ila"]),
        (["completion", "z"], ["zsh"]),
        (["benchmark", "lad"], ["ladder"]),
        (["benchmark", "data", "--vid"], ["--videos"]),
        (["--plugin", "finetune", "pus"], ["push"]),
        (["--plugin", "=", "finetune", "pus"], ["push"]),
        (["--plugin", "mine.py", "push", "--mod"], ["--model"]),
        (["push", "--plu"], ["--plugin"]),
        (["finetune", "--config", "fine"], []),
        (["finetune", "--config", "=", "fine"], []),
        (["unknown", "--mod"], []),
    ],
    ids=" ".join,
)
def test_bash_completes_verbs_and_options(folder: Path, words: list[str], offered: list[str]) -> None:
    assert complete(folder, "clipvid", *words) == offered


@needs_bash
def test_bash_offers_every_verb_and_every_option(folder: Path) -> None:
    assert complete(folder, "clipvid", "") == [*sorted(VERBS), "--plugin"]
    for verb in ("finetune", "predict", "check-videos"):
        options = [word for word in words_after(verb) if word.startswith("--")]
        assert len(options) > 5
        assert complete(folder, "clipvid", verb, "--") == [*options, "--plugin"]


@pytest.mark.skipif(ZSH is None, reason="no zsh on this machine")
def test_zsh_completes_verbs_and_options(folder: Path) -> None:
    lines = """
    compdef() { : }; compadd() { shift; print -l -- "$@" }; _files() { print files }
    source "$0"; words=("$@"); CURRENT=$#; _clipvid
    """
    for words, offered in (
        (["clipvid", ""], "finetune"),
        (["clipvid", "finetune", "--tr"], "--training.epochs"),
        (["clipvid", "--plugin", "finetune", "benchmark", "data", "--v"], "--videos"),
        (["clipvid", "finetune", "--config", ""], "files"),
    ):
        done = subprocess.run(
            [str(ZSH), "-f", "-c", lines, str(folder / "zsh"), *words], capture_output=True, text=True
        )
        assert done.stderr == ""
        assert offered in done.stdout.split()


def test_unknown_shells_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tcsh"])
    assert "bash" in capsys.readouterr().err
