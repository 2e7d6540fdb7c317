"""Class names, prompt templates and class descriptions."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from string import Formatter

from clipvid import InputError

_MEDIA = ("a photo of", "a video of", "a example of", "a demonstration of")  # "a example" is CLIP's spelling
_DOING = ("", "using ", "doing ", "during ", "performing ", "practicing ")

_ACTION = (
    *("a photo of action {}", "a picture of action {}", "Human action of {}", "{}, an action", "{} this is an action"),
    *("{}, a video of action", "Playing action of {}", "{}", "Playing a kind of action, {}"),
    *("Doing a kind of action, {}", "Look, the human is {}", "Can you recognize the action of {}?"),
    *("Video classification of {}", "A video of {}", "The man is {}", "The woman is {}"),
)

# `kinetics` and `ucf101` are the templates of CLIP's evaluation on these data sets, see
# https://github.com/openai/CLIP/blob/main/data/prompts.md. `action_clip` has those of ActionCLIP
# (https://arxiv.org/abs/2109.08472).
TEMPLATES: dict[str, tuple[str, ...]] = {
    "none": ("{}",),
    "single": ("a video of {}.",),
    "ensemble": (
        "a video of {}.",
        "a photo of {}.",
        "a video showing {}.",
        "footage of {}.",
        "an example of {}.",
        "a clip of someone doing {}.",
    ),
    "kinetics": tuple(
        f"{medium} {subject}{{}}."
        for medium, subject in product(_MEDIA, ("", *(f"a person {doing}" for doing in _DOING)))
    ),
    "ucf101": tuple(
        f"{medium} {article} person {doing}{{}}." for medium, article, doing in product(_MEDIA, ("a", "the"), _DOING)
    ),
    "action_clip": _ACTION,
}


def resolve_templates(templates: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return templates with one `{}` each.

    Args:
        templates: A name of `TEMPLATES`, a text file with one template per line, or a list. None means `none`.

    Raises:
        InputError: The name is unknown, there are no templates, or a template does not contain exactly one `{}`.
    """
    if templates is None:
        return TEMPLATES["none"]
    if isinstance(templates, str):
        if templates in TEMPLATES:
            return TEMPLATES[templates]
        if not Path(templates).is_file():
            names = ", ".join(TEMPLATES)
            raise InputError(f"templates={templates!r}: expected one of {names}, a text file, or a list of templates")
        templates = [line.strip() for line in Path(templates).read_text(encoding="utf-8").splitlines() if line.strip()]
    wrong = [t for t in templates if _places(t) != [""]]
    if wrong or not templates:
        raise InputError(f"each template must contain {{}}, the class name, exactly once; got {wrong or 'no template'}")
    return tuple(templates)


def _places(template: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(template) if name is not None]


def class_prompts(names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Return prompts [K][number of templates]. Underscores become spaces, CamelCase (UCF101) becomes words."""
    return [[template.format(_in_words(name)) for template in templates] for name in names]


def _in_words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("_", " ")).strip()


def read_descriptions(file: str | Path, names: Sequence[str]) -> list[list[str]]:
    """Read the texts of K classes from a JSON object, name -> description or list of descriptions.

    Raises:
        InputError: The file is not such JSON, or a class has no description. Additional names are allowed.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object, class name -> description or list of descriptions")
    texts = {name: [value] if isinstance(value, str) else value for name, value in content.items()}
    lacking = [name for name in names if not _is_texts(texts.get(name))]
    if lacking:
        raise InputError(
            f"{file}: no description (a text, or a list of texts) for {len(lacking)} classes: {lacking[:5]}"
        )
    return [texts[name] for name in names]


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text.strip() for text in value)
