"""Classes that a mirror exchanges, and clips that must not be mirrored."""

import os
from pathlib import Path

import pytest

from clipvid.data.lists.classes import mirror_map, read_classes
from clipvid.data.synthetic.world import WorldConfig, world_classes

SHARED_LABELS = Path(os.environ.get("CLIPVID_SHARED_DATA", Path(__file__).parents[1] / "../shared/data")) / "labels"


def exchanged(names: list[str]) -> dict[str, str | None]:
    """Return the names that a mirror changes."""
    mirrored = mirror_map(names)
    assert all(other is None or mirrored[other] == i for i, other in enumerate(mirrored))
    return {names[i]: None if j is None else names[j] for i, j in enumerate(mirrored) if i != j}


def test_opposites_are_exchanged():
    names = ["Turn Left", "turn right", "wave", "Spin counterclockwise", "Spin clockwise", "hit with the left hand"]
    assert mirror_map(names) == [1, 0, 2, 4, 3, None]
    assert mirror_map(["leftovers", "bright light", "anti-clockwise", "clockwise"]) == [0, 1, 3, 2]
    assert mirror_map(["from left to right", "from right to left"]) == [1, 0]
    for pair in (["left-to-right", "right-to-left"], ["SwipeLeft", "SwipeRight"], ["Leftward pan", "Rightward pan"]):
        assert mirror_map(pair) == [1, 0]
    assert mirror_map(["left-hand wave", "wave"]) == [None, 1]


def test_explicit_map_overrides_names():
    names = ["nach links", "nach rechts", "turn left"]
    assert mirror_map(names, {"nach links": "nach rechts"}) == [1, 0, 2]
    with pytest.raises(ValueError, match=r"'nach unten'.*which are not class names"):
        mirror_map(names, {"nach links": "nach unten"})


def test_the_synthetic_world():
    names = [info.name for info in world_classes(WorldConfig(objects=("ball",)))]
    assert exchanged(names) == {
        "ball moving left": "ball moving right",
        "ball moving right": "ball moving left",
        "ball turning clockwise": "ball turning anticlockwise",
        "ball turning anticlockwise": "ball turning clockwise",
    }


@pytest.mark.skipif(not SHARED_LABELS.is_dir(), reason="no label files at CLIPVID_SHARED_DATA")
def test_published_names():
    def actual(file: str) -> dict[str, str | None]:
        return exchanged([info.name for info in read_classes(SHARED_LABELS / file).classes])

    assert actual("ssv2/ila_something-something-v2-labels.csv") == {
        "Plugging something into something but pulling it right out as you remove your hand": None,
        "Pulling something from left to right": "Pulling something from right to left",
        "Pulling something from right to left": "Pulling something from left to right",
        "Pushing something from left to right": "Pushing something from right to left",
        "Pushing something from right to left": "Pushing something from left to right",
        "Turning the camera left while filming something": "Turning the camera right while filming something",
        "Turning the camera right while filming something": "Turning the camera left while filming something",
    }
    assert actual("mmaction2/jester_label_map.txt") == {
        "Swiping Left": "Swiping Right",
        "Swiping Right": "Swiping Left",
        "Sliding Two Fingers Left": "Sliding Two Fingers Right",
        "Sliding Two Fingers Right": "Sliding Two Fingers Left",
        "Turning Hand Clockwise": "Turning Hand Counterclockwise",
        "Turning Hand Counterclockwise": "Turning Hand Clockwise",
    }
    assert actual("ucf101/xclip_ucf_101_labels.csv") == {}
