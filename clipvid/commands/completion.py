"""Shell completion of verbs and options: `source <(clipvid completion bash)`.

The script contains all words. It starts no program, so completing a word imports nothing.
"""

from __future__ import annotations

import argparse
from importlib import import_module

from jsonargparse import ArgumentParser, capture_parser

from clipvid.commands import VERBS
from clipvid.commands.benchmark import SUBJECTS

_DRIVERS = {
    "bash": r"""# Completion of clipvid in bash. Load it in ~/.bashrc: source <(clipvid completion bash)
@WORDS@
_clipvid() {
  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" command="" place
  COMPREPLY=()
  if [[ "$before" == --* || "$before" == "=" || "$word" == "=" ]] && [[ "$word" != --* ]]; then
    return  # a value: bash completes file names
  fi
  for ((place = 1; place < COMP_CWORD; place++)); do
    case "${COMP_WORDS[place]}" in
      --plugin) ((place++)); [[ "${COMP_WORDS[place]}" == "=" ]] && ((place++)) ;;
      -*) ;;
      benchmark) command="benchmark"; ((place + 1 < COMP_CWORD)) && command="benchmark ${COMP_WORDS[place+1]}"; break ;;
      *) command="${COMP_WORDS[place]}"; break ;;
    esac
  done
  COMPREPLY=($(compgen -W "$(_clipvid_words "$command")" -- "$word"))
}
complete -o default -F _clipvid clipvid
""",
    "zsh": r"""#compdef clipvid
# Completion of clipvid in zsh. Load it in ~/.zshrc after compinit: source <(clipvid completion zsh)
@WORDS@
_clipvid() {
  local command="" place
  if [[ "${words[CURRENT-1]}" == --* && "${words[CURRENT]}" != --* ]]; then
    _files
    return
  fi
  for ((place = 2; place < CURRENT; place++)); do
    case "${words[place]}" in
      --plugin) ((place++)) ;;
      -*) ;;
      benchmark) command="benchmark"; ((place + 1 < CURRENT)) && command="benchmark ${words[place+1]}"; break ;;
      *) command="${words[place]}"; break ;;
    esac
  done
  compadd -- ${=$(_clipvid_words "$command")} || _files
}
compdef _clipvid clipvid
""",
}


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    parser = ArgumentParser(prog="clipvid completion", description="Print a script that completes words in the shell.")
    parser.add_argument("shell", choices=tuple(_DRIVERS), help="shell to print the script for")
    print(script(parser.parse_args(args).shell), end="")


def script(shell: str) -> str:
    """Return the completion script for `bash` or `zsh`."""
    cases = {"": sorted(VERBS)}
    for verb in VERBS:
        if verb == "benchmark":
            cases[verb] = sorted(SUBJECTS)
            cases |= {f"{verb} {subject}": words_after(verb, subject) for subject in SUBJECTS}
        else:
            cases[verb] = words_after(verb)
    lines = [f'    "{command}") printf "%s\\n" {" ".join([*words, "--plugin"])} ;;' for command, words in cases.items()]
    words = "\n".join(["_clipvid_words() {", '  case "$1" in', *lines, "  esac", "}"])
    return _DRIVERS[shell].replace("@WORDS@", words)


def words_after(verb: str, *args: str) -> list[str]:
    """Return the options that a verb takes after `args`, and the choices of its positional arguments."""
    module = import_module(f"clipvid.commands.{verb.replace('-', '_')}")
    parser = capture_parser(lambda: module.main(list(args)))
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    options = [option for action in actions for option in action.option_strings if option.startswith("--")]
    choices = [str(choice) for action in actions if not action.option_strings for choice in action.choices or ()]
    return sorted(options) + choices + (["--suite"] if verb == "evaluate" else [])
