"""Source of weights that others trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """Release that the weights of a model come from. It is saved with the model and shown on its card.

    Attributes:
        kind: Name of the converter, such as `xclip`.
        title: Name of the release.
        license: License of the weights as far as it is known: an SPDX identifier, or `unknown`.
        paper: Citation with link.
    """

    kind: str
    title: str
    license: str
    paper: str

    def __str__(self) -> str:
        license_note = "license unknown: ask its authors" if self.license == "unknown" else f"license {self.license}"
        return f"{self.title} ({license_note})"
