"""Command line `clipvid <verb>`, one module per verb with `main(args)`."""

from __future__ import annotations

import itertools
import os
import select
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from clipvid import ClipvidError, InputError
from clipvid.files import failed_write, printable_lines
from clipvid.registry import import_plugin, suggest
from clipvid.runs.preemption import EXIT_CODE, Preempted

VERBS = {
    "finetune": "train a model on labeled video",
    "pretrain": "train adapters on video without labels",
    "pretrain-clip": "train a small CLIP from scratch",
    "evaluate": "measure a model, zero-shot or fine-tuned",
    "predict": "classify videos",
    "explain": "show where, when and how a model found its answer",
    "index": "encode the videos of a folder for search",
    "search": "find moments in videos by text and by example",
    "app": "serve a page to try a model in the browser",
    "export": "write a model as one file for onnxruntime or torch.export",
    "push": "upload a model folder to the Hugging Face Hub",
    "convert": "convert a checkpoint of a paper's authors",
    "prepare": "turn a download of a public data set into manifests",
    "check-videos": "read every video of a list or folder, and report unreadable ones",
    "inspect": "find copies, wrong labels and odd clips in video data, and whether it needs motion",
    "benchmark": "measure accuracy and cost of adapters, and reading of videos",
    "completion": "print a script that completes verbs and options in the shell",
    "configs": "list the configs of the package, or copy them",
    "demo": "run training and evaluation on a synthetic world, with a report",
}


INTERRUPTED, READER_LEFT = 130, 141  # 128 + the number of SIGINT and of SIGPIPE, as shells report them


def main(args: list[str] | None = None) -> None:
    """Run the verb in the first word."""
    words = sys.argv[1:] if args is None else args
    rest, plugins = split_plugins(words)
    if rest and rest[0] in VERBS:
        run(rest[0], rest[1:], plugins)
        return
    with exit_cleanly("clipvid"):
        problem = f"unknown verb {rest[0]!r}{suggest(rest[0], VERBS)}\n" if rest and not rest[0].startswith("-") else ""
        lines = "\n".join(f"  {verb:12} {purpose}" for verb, purpose in VERBS.items())
        print(f"{problem}usage: clipvid [--plugin MODULE] <verb> [options]\n\n{lines}\n")
        print("--plugin MODULE   import a module or Python file that adds adapters, heads or sources; may be repeated")
        print("clipvid <verb> --help shows the options")
        sys.exit(0 if rest and rest[0] in ("-h", "--help") else 2)


def run(verb: str, args: list[str] | None = None, plugins: Sequence[str] = ()) -> None:
    """Run one verb.

    Args:
        verb: Name of the verb.
        args: Options of the verb, or None for those of this process. May include plugins.
        plugins: Modules and Python files to import first.
    """
    with exit_cleanly(f"clipvid {verb}"):
        rest, others = split_plugins(sys.argv[1:] if args is None else args)
        _check_dashes(verb, rest)
        for plugin in (*plugins, *others):
            import_plugin(plugin)
        import_module(f"clipvid.commands.{verb.replace('-', '_')}").main(rest)


def split_plugins(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without `--plugin MODULE`, and the modules."""
    rest, plugins = [], []
    words = iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        if option == "--plugin":
            plugins.append(value if equals else next(words, ""))
        elif word == "--":
            rest += [word, *words]
        else:
            rest.append(word)
    return rest, plugins


def _check_dashes(verb: str, args: Sequence[str]) -> None:
    """Raise InputError for a file that would be read as an option, since its name starts with `-`."""
    for word in itertools.takewhile(lambda word: word != "--", args):
        if len(word) > 1 and word.startswith("-") and os.path.lexists(word):
            raise InputError(
                f"{word} is a file, but words that start with - are options. Put -- before such names: clipvid {verb} "
                f"... -- {word}; or write ./{word}"
            )


@contextmanager
def exit_cleanly(prog: str) -> Iterator[None]:
    """Report expected failures, including a full disk, in one line without a traceback.

    Exit codes: 1 for errors meant for users, 75 for a run interrupted by a signal, 130 for Ctrl-C. 141 means that the
    reader of standard output has exited (`clipvid ... | head`), which is not reported.
    """
    try:
        try:
            with _printable_warnings():
                yield
        except Preempted:
            print(f"{prog}: interrupted by a signal; the same command resumes", file=sys.stderr)
            sys.exit(EXIT_CODE)
        except KeyboardInterrupt:
            print(f"\n{prog}: interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _reader_left():
                raise
            failure = failed_write(error)
            if failure is None and not isinstance(error, ClipvidError | ValueError | OSError):
                raise
            print(f"{prog}: {printable_lines(failure or error)}", file=sys.stderr)
            sys.exit(1)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again on exit
        sys.exit(READER_LEFT)


@contextmanager
def _printable_warnings() -> Iterator[None]:
    """Show warnings without control characters, since they name files and classes of strangers."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda *args, **options: printable_lines(usual(*args, **options))
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _reader_left() -> bool:
    """Return True if standard output has no reader. A broken pipe may be another one, such as a worker's."""
    if sys.platform == "win32":  # without poll
        return True
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
