"""Class names and prompt templates: what text a class is known by."""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter

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
}


def resolve_templates(templates: str | Sequence[str] | None) -> tuple[str, ...]:
    """A set of `TEMPLATES` by name, or templates of one's own with one `{}` each; None is `none`.

    Raises:
        ValueError: an unknown set, an empty list, or a template without its one `{}`.
    """
    if templates is None:
        return TEMPLATES["none"]
    if isinstance(templates, str):
        if templates not in TEMPLATES:
            raise ValueError(f"templates={templates!r}: expected one of {', '.join(TEMPLATES)} or a list of templates")
        return TEMPLATES[templates]
    wrong = [t for t in templates if [f for _, f, _, _ in Formatter().parse(t) if f is not None] != [""]]
    if wrong or not templates:
        raise ValueError(f"each template holds the class name's place {{}} once; given {wrong or 'no template'}")
    return tuple(templates)


def class_prompts(names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Prompts [K][number of templates]; underscores in names become spaces."""
    return [[template.format(name.replace("_", " ").strip()) for template in templates] for name in names]
