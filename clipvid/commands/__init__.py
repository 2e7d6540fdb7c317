"""`clipvid <verb>`: one module per verb, each with `main(args)`."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from clipvid import ClipvidError
from clipvid.files import failed_write
from clipvid.registry import import_plugin, suggest
from clipvid.runs.preemption import EXIT_CODE, Preempted

VERBS = {
    "finetune": "train a model on labelled video",
    "pretrain": "train adapters on video without labels",
    "pretrain-clip": "train a small CLIP from scratch",
    "evaluate": "measure a model, zero-shot or fine-tuned",
    "predict": "say what videos show",
    "push": "upload a model folder to the Hugging Face Hub",
    "convert": "bring in a checkpoint of a paper's authors",
    "prepare": "turn a download of a public data set into manifests",
    "check-videos": "read every video of a list or folder, and say which cannot be",
    "benchmark": "what adapters reach and cost, and reading videos",
    "completion": "print a script that completes verbs and options in the shell",
    "configs": "list the configs of the package, or copy them",
    "demo": "the whole way on a synthetic world, with a report",
}


INTERRUPTED, READER_LEFT = 130, 141  # 128 + the number of SIGINT and of SIGPIPE, as shells report them


def main(args: list[str] | None = None) -> None:
    """Run the verb that the first word names."""
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
        args: options of the verb; None for those of this process. They may name plugins too.
        plugins: modules and Python files to import first.
    """
    with exit_cleanly(f"clipvid {verb}"):
        rest, others = split_plugins(sys.argv[1:] if args is None else args)
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


@contextmanager
def exit_cleanly(prog: str) -> Iterator[None]:
    """End expected failures, a full disk among them, in one line without a traceback.

    Exit codes: 1 for errors meant for users, 75 for a run that a signal asked to end, 130 for Ctrl-C, 141 if the
    reader of standard output has left (`clipvid ... | head`), which is not reported.
    """
    try:
        try:
            yield
        except Preempted:
            print(f"{prog}: asked to end; the same command goes on from here", file=sys.stderr)
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
            print(f"{prog}: {failure or error}", file=sys.stderr)
            sys.exit(1)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        sys.exit(READER_LEFT)


def _reader_left() -> bool:
    """Return whether nobody reads standard output any more. A broken pipe may be another one, such as a worker's."""
    if sys.platform == "win32":  # it has no poll
        return True
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
