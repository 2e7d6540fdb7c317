"""Several labels of a video: the column `labels` of a list, as Arrow lists of texts, and as ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipvid.data.lists.samples import ManifestError
from clipvid.data.lists.text import clipped

LABELS = "labels"
SEPARATOR = ";"
ADVICE = (
    "write a list in CSV, JSON or Parquet with the columns path and labels, and the labels of a video with "
    f"{SEPARATOR!r} between them"
)


def label_texts(column: pa.Array, where: str) -> pa.Array:
    """Return a column `labels` as lists of texts: `run;jump` as [run, jump], nothing as an empty list.

    Args:
        column: Texts, or lists of texts or numbers.
        where: Name of the file for messages.

    Raises:
        ManifestError: The column has values of another type.
    """
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        rows = column.to_pylist()
        if not all(isinstance(value, str | int) for row in rows if row for value in row):
            raise ManifestError(f"{where}: column 'labels' has lists of other values; expected names or ids of classes")
        return pa.array([[str(value) for value in row or ()] for row in rows], pa.list_(pa.string()))
    encoded = pc.dictionary_encode(pc.fill_null(column, ""))
    parts = [[part.strip() for part in text.split(SEPARATOR)] for text in encoded.dictionary.to_pylist()]
    lists = pa.array([[part for part in row if part] for row in parts], pa.list_(pa.string()))
    return lists.take(encoded.indices)


def json_labels(value: object, where: str) -> list[str]:
    """Return the labels of one row of a JSON list, a list or a text.

    Raises:
        ManifestError: The value has another type.
    """
    if isinstance(value, str):
        return [part.strip() for part in value.split(SEPARATOR) if part.strip()]
    if not isinstance(value, list) or not all(type(label) in (str, int) for label in value):
        raise ManifestError(
            f"{where}: labels is {clipped(value)}; expected a list of names or ids of classes, empty for none"
        )
    return [str(label) for label in value]


def label_ids(lists: pa.Array, ids_of: Callable[[pa.Array], pa.Array], num_classes: int) -> pa.Array:
    """Return the ids of each row in ascending order, each once.

    Args:
        lists: Lists of texts.
        ids_of: Returns the ids int32 of texts.
        num_classes: Number of classes K.
    """
    count = max(num_classes, 1)
    ids = ids_of(lists.flatten()).to_numpy(zero_copy_only=False).astype(np.int64)
    parents = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    rows, chosen = np.divmod(np.unique(parents * count + ids), count)
    offsets = np.concatenate([[0], np.bincount(rows, minlength=len(lists)).cumsum()])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(chosen, pa.int32()))


def check_names(names: Sequence[str], title: str) -> None:
    """Raise ManifestError for a class name that cannot be written between separators."""
    wrong = [name for name in names if SEPARATOR in name]
    if wrong:
        raise ManifestError(
            f"{title} has several labels per video, which {SEPARATOR!r} separates, but the class "
            f"{clipped(wrong[0])} has one in its name; rename it"
        )
