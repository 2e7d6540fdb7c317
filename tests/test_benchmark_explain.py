"""`clipvid benchmark explain`: measures on constructed cases, and a whole run on a small world."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from conftest import random_frames, shake_adapters

from clipvid import InputError
from clipvid.adapters.marks import Points, Tracks
from clipvid.benchmarks.explain import Expectation, ExplainBenchmark, judge, summarize
from clipvid.benchmarks.explain_clips import FilmedClips, KnownClip, WorldClips
from clipvid.benchmarks.explain_measures import (
    adapter_measures,
    map_correlation,
    pointing,
    randomized,
    removal_curves,
)
from clipvid.commands.benchmark import main
from clipvid.data.config import DataConfig
from clipvid.data.synthetic.encoding import write_video
from clipvid.data.synthetic.world import WorldConfig, object_track, render_clip, world_classes
from clipvid.inference.explain.explanation import AdapterMarks, explain_clip
from clipvid.inference.explain.target import Target

WORLD = WorldConfig(objects=("ball", "star"), motions=("horizontal", "vertical"), num_frames=8, image_size=64)
NAMES = [label.name for label in world_classes(WORLD)]
TARGET = Target(1)


@pytest.mark.parametrize("class_id", range(8))
def test_track_is_where_the_object_is_drawn(class_id):
    """The object differs from the background, which is the median over a clip in which it moves."""
    frames = render_clip(WORLD, class_id, "test", 1).astype(float)
    track = object_track(WORLD, class_id, "test", 1)
    changed = np.abs(frames - np.median(frames, axis=0)).sum(axis=-1) > 90
    rows, columns = (np.arange(64) + 0.5) / 64, (np.arange(64) + 0.5) / 64
    for image, (x, y, radius) in zip(changed, track, strict=True):
        if image.sum() < 30:  # the median shows the object itself
            continue
        distance = np.hypot(columns[None] - x, rows[:, None] - y)[image]
        assert (distance < 1.2 * radius).mean() > 0.5
    first, last = track[0], track[-1]
    axis = 0 if "left" in NAMES[class_id] or "right" in NAMES[class_id] else 1
    sign = 1 if NAMES[class_id].split()[-1] in ("right", "down") else -1
    assert sign * (last[axis] - first[axis]) > 0.3


def test_clip_has_the_track_of_its_frames(make_model):
    model = make_model("none", NAMES, num_frames=4)
    clip = WorldClips(WORLD).read(model, 0, 0)
    track = object_track(WORLD, 0, "test", 0)
    assert clip.frames.shape == (4, 3, 64, 64)
    assert all(any(np.allclose(row, every) for every in track) for row in clip.track.numpy())
    assert (clip.track[1:, 0] < clip.track[:-1, 0]).all()  # it moves left


def test_patches_on_the_object():
    clip = KnownClip(torch.zeros(2, 3, 8, 8), torch.tensor([[0.5, 0.5, 0.2], [0.1, 0.9, 0.01]]))
    expected = torch.zeros(2, 4, 4, dtype=torch.bool)
    expected[0, 1:3, 1:3] = True
    expected[1, 3, 0] = True
    assert torch.equal(clip.on_object((4, 4)), expected)
    relevance = torch.rand(2, 4, 4)
    relevance[1, 3, 0] = 2.0
    assert pointing(relevance, expected) == 1.0
    relevance[0, 0, 0] = 3.0
    assert pointing(relevance, expected) == 0.0


def test_what_moves_is_the_object_of_a_filmed_clip(make_model, tmp_path):
    """A white square moves over a still, colored background. The place of its middle is known in every frame."""
    background = np.random.default_rng(0).integers(0, 100, (64, 64, 3), dtype=np.uint8)
    frames = np.stack([background] * 8)
    for step in range(8):
        frames[step, 8:24, 8 * step : 8 * step + 8] = 255
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "walk.mp4", frames, fps=8)
    (tmp_path / "videos" / "val.txt").write_text("walk.mp4 0\n")
    (tmp_path / "videos" / "classes.txt").write_text("walking\n")
    source = FilmedClips(DataConfig(root=str(tmp_path / "videos"), val="val.txt", classes="classes.txt"))
    assert source.names == ["walking"]
    clip = source.read(make_model("none", ["walking"], num_frames=4), 0, 0)
    assert clip.frames.shape == (4, 3, 64, 64)
    assert clip.track[:, 1].tolist() == pytest.approx([0.25] * 4, abs=0.03)
    assert clip.track[:, 0].diff().tolist() == pytest.approx([0.25] * 3, abs=0.03)
    on_object = clip.on_object((4, 4))
    assert on_object.flatten(1).any(dim=1).all()
    assert not on_object[:, 2:].any()
    for frame, (x, _, _) in zip(on_object, clip.track, strict=True):
        assert frame[:, int(x * 4)].any()
    with pytest.raises(InputError, match=r"'walking' has 1 videos in data\.val; choose clips_per_class up to that"):
        source.read(make_model("none", ["walking"]), 0, 1)


def test_curves_equal_clips_made_by_hand(make_model):
    model, clip = shake_adapters(make_model("ila", ["a", "b", "c"], num_frames=2)), random_frames(1, 2)
    relevance = torch.randperm(32, generator=torch.Generator().manual_seed(1)).view(2, 4, 4).float()
    blank = clip.mean(dim=(-2, -1), keepdim=True).expand_as(clip)
    probabilities = []
    for start, end in ((clip, blank), (blank, clip)):
        shown, own = start.clone(), []
        for step in range(5):
            if step:
                for rank in range(31 - 8 * (step - 1), 31 - 8 * step, -1):
                    frame, row, column = (relevance == rank).nonzero()[0].tolist()
                    place = (
                        0,
                        frame,
                        slice(None),
                        slice(16 * row, 16 * row + 16),
                        slice(16 * column, 16 * column + 16),
                    )
                    shown[place] = end[place]
            with torch.no_grad():
                own.append(float(model(shown, normalized=True).logits.softmax(-1)[0, 1]))
        probabilities.append(sum(own) / 5)
    result = removal_curves(model, clip, TARGET, relevance, steps=4)
    assert result == pytest.approx(probabilities, abs=1e-5)


def test_randomized_copy_has_the_same_values_in_another_order(make_model):
    model = make_model("ila", NAMES)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = randomized(model, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for (name, value), changed in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value.flatten().sort()[0], changed.flatten().sort()[0])
        if value.unique().numel() > 4:  # values of others are all the same
            assert torch.equal(value, changed) != name.startswith("encoder."), name
    assert torch.equal(randomized(model, 0)(random_frames()).logits, other(random_frames()).logits)


def test_correlation_of_maps():
    one = torch.rand(2, 3, 3)
    assert map_correlation(one, one**3) == pytest.approx(1)
    assert map_correlation(one, -one) == pytest.approx(-1)
    assert map_correlation(one, torch.ones(2, 3, 3)) == 0


def test_points_and_tubes_on_a_known_path(make_model):
    model = make_model("none", NAMES, num_frames=2)
    explanation = explain_clip(model, torch.zeros(2, 3, 64, 64, dtype=torch.uint8), time=False)
    clip = KnownClip(explanation.frames, torch.tensor([[0.125, 0.125, 0.01], [0.875, 0.125, 0.01]]))
    points = Points(
        "p", "n.", torch.tensor([0, 1]), clip.track[:, :2] + torch.tensor([0.3, 0.4]), torch.zeros(2).long(), ("",)
    )
    follows = torch.tensor([[[0.125, 0.125], [0.875, 0.125]], [[0.875, 0.125], [0.125, 0.125]]])
    marks = AdapterMarks("x", 0, [points, Tracks("t", "n.", follows)])
    result = adapter_measures(type(explanation)(**vars(explanation) | {"adapters": [marks]}), clip)
    assert result["points"] == pytest.approx(0.5, abs=1e-5)
    assert 0.4 < result["random points"] < 0.9
    assert result["still points"] == pytest.approx(0.5958, abs=1e-4)  # from (0.8, 0.525)
    assert (result["tubes"], result["still tubes"]) == (1.0, 0.0)


def test_predictions_are_judged():
    values = [{("pointing", "a"): [1.0, 1.0, 0.0, 1.0], ("pointing", "random"): [0.0, 0.0, 0.0, 1.0]}] * 2
    assert summarize(values, "pointing", "a").mean == 0.75
    figure = judge(values, Expectation("pointing", "a", "why", at_least=0.7))
    assert (figure.held, figure.expected) == (True, "≥ 0.7")
    assert judge(values, Expectation("pointing", "a", "why", at_least=0.8)).held is False
    difference = judge(values, Expectation("pointing", "a", "why", over="random", at_least=0.1, apart=True))
    assert difference.mean == 0.5
    assert difference.held == (difference.low > 0)
    with pytest.raises(
        InputError, match=r"predictions: \('pointing', 'b'\) is not measured; measured are pointing of a"
    ):
        judge(values, Expectation("pointing", "b", "why"))
    with pytest.raises(InputError, match="measure='pointng' is not one of"):
        Expectation("pointng", "a", "why")


def test_run_writes_figures_and_judged_predictions(make_model, tmp_path):
    model = shake_adapters(make_model("ila", NAMES, num_frames=3))
    model.save_pretrained(tmp_path / "model")
    config = {
        "models": [str(tmp_path / "model")],
        "world": {"objects": ["ball", "star"], "motions": ["horizontal", "vertical"], "num_frames": 8},
        "clips_per_class": 1,
        "steps": 2,
        "slow_clips": 2,
        "methods": ["attention", "grad_cam"],
        "predictions": [{"measure": "pointing", "method": "attention", "at_least": 0.0, "why": "any"}],
    }
    (tmp_path / "in.yaml").write_text(json.dumps(config))
    main(["explain", "--config", str(tmp_path / "in.yaml"), f"--output_dir={tmp_path / 'run'}"])
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    measured = {(row["measure"], row["method"]): row for row in rows if row["expected"] is None}
    assert measured.keys() == {
        ("pointing", "chance"),
        *itertools.product(("pointing", "deletion", "insertion"), ("attention", "grad_cam", "random")),
        ("frames", "frames"), ("randomized", "attention"), ("randomized", "grad_cam"),
        ("points", "points"), ("points", "still points"), ("points", "random points"),
    }  # fmt: skip
    assert measured["pointing", "attention"]["clips"] == 8
    assert measured["frames", "frames"]["clips"] == 2
    assert all(math.isfinite(row["mean"]) for row in rows)
    assert rows[-1]["held"] is True
    table = (tmp_path / "run" / "table.md").read_text()
    assert "| pointing, attention | ≥ 0 |" in table


def test_model_of_other_classes_is_refused(make_model, tmp_path):
    make_model("none", ["a", "b"]).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="the model has 2 classes that are not the 40 of the world"):
        main(["explain", "--models", f"[{tmp_path / 'model'}]", "--output_dir", str(tmp_path / "run")])


def test_config_without_models_is_refused():
    with pytest.raises(InputError, match="models: expected at least one model folder"):
        ExplainBenchmark(models=[])
