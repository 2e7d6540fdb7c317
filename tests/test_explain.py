"""`clipvid.explain` and its verb: effects of frames and order, sentences, files, pages and hostile names."""

import itertools
import json
import re
import subprocess
import sys

import av
import pytest
import torch
from conftest import random_frames, shake_adapters
from PIL import Image

import clipvid
from clipvid.adapters import ADAPTERS, Adapter, AdapterOutput
from clipvid.adapters.marks import HeatMap, Tracks
from clipvid.commands import run
from clipvid.data.synthetic.encoding import write_video
from clipvid.data.synthetic.world import WorldConfig, render_clip
from clipvid.inference.explain import page, time
from clipvid.inference.explain.drawing import draw_heat, draw_mark, relevant_tracks
from clipvid.inference.explain.explanation import Explanation, explain_clip
from clipvid.inference.explain.sentence import center_of, describe, frame_ranges, place_of
from clipvid.inference.explain.target import Target
from clipvid.inference.explain.time import (
    OrderEffect,
    TimeEffects,
    exact_shapley,
    frame_importance,
    frame_runs,
    kept_frames,
    mixed_logits,
    shuffled_order,
    time_effects,
)

LABELS = ["walking", "running", "jumping"]
HOSTILE = '<script>alert("x")</script> & \'"><img src=x onerror=alert(1)>'
TARGET = Target(1)
ALL = [name for name in ADAPTERS if name != "none"]


def pixels(num_frames: int = 3, size: int = 64) -> torch.Tensor:
    return torch.randint(
        0, 256, (num_frames, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


# Frames and order


def keep_frames(clip, kept):
    """Return a clip of all frames, with the mean of the nearest kept ones for others."""
    return torch.stack([clip[:, mixture].mean(dim=1) for mixture in kept_frames(clip.shape[1], kept)], dim=1)


def test_removed_frames_are_the_mean_of_their_kept_neighbors():
    clip = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]).view(1, 5, 1, 1, 1)
    cases = {(0, 1, 2, 3, 4): [1, 2, 4, 8, 16], (0, 1, 3, 4): [1, 2, 5, 8, 16], (1, 2, 3, 4): [2, 2, 4, 8, 16],
             (1, 4): [2, 2, 9, 9, 16], (3,): [8] * 5, (): [6.2] * 5}  # fmt: skip
    for kept, expected in cases.items():
        assert keep_frames(clip, list(kept)).flatten().tolist() == pytest.approx(expected), kept


@pytest.mark.parametrize("name", ["none", *ALL])
def test_mixed_frames_have_the_logits_of_a_clip_made_of_them(make_model, name):
    options = {"layers": [-1]} if name != "none" else {}
    model, clip = shake_adapters(make_model({"name": name} | options, LABELS, num_frames=4)), random_frames(1, 4)
    kept = [[], [0, 1, 2, 3], [1], [0, 3], [1, 2, 3]]
    logits = mixed_logits(model, clip, [kept_frames(4, each) for each in kept])
    with torch.no_grad():
        expected = torch.cat([model(keep_frames(clip, each), normalized=True).logits for each in kept])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def slow_shapley(model, clip, target):
    """Return the mean gain of each frame over all orders in which frames can join."""
    count = clip.shape[1]
    values = torch.zeros(count)
    orders = list(itertools.permutations(range(count)))
    for order in orders:
        kept, before = [], None
        for frame in [None, *order]:
            kept = sorted([*kept, frame]) if frame is not None else kept
            with torch.no_grad():
                score = target.score(model(keep_frames(clip, kept), normalized=True).logits)[0]
            if frame is not None:
                values[frame] += (score - before) / len(orders)
            before = score
    return values


def test_exact_shapley_values_equal_the_mean_over_all_orders(make_model):
    model, clip = shake_adapters(make_model("ila", LABELS, num_frames=4)), random_frames(1, 4)
    result = exact_shapley(model, clip, TARGET)
    torch.testing.assert_close(result, slow_shapley(model, clip, TARGET), atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        whole, none = (
            TARGET.score(model(keep_frames(clip, kept), normalized=True).logits) for kept in ([0, 1, 2, 3], [])
        )
    assert result.sum() == pytest.approx(float(whole - none), abs=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_importance_of_up_to_three_frames_is_exact(make_model, count):
    model, clip = shake_adapters(make_model("ila", LABELS)), random_frames(1, count)
    expected = exact_shapley(model, clip, TARGET)
    torch.testing.assert_close(frame_importance(model, clip, TARGET), expected, atol=1e-4, rtol=1e-3)


def test_runs_of_frames_go_around():
    assert frame_runs(4) == [[0], [1], [2], [3], [0, 1], [1, 2], [2, 3], [0, 3],
                             [0, 1, 2], [1, 2, 3], [0, 2, 3], [0, 1, 3]]  # fmt: skip
    assert len(frame_runs(8)) == 40
    assert frame_runs(1) == []


@pytest.mark.parametrize("count", [4, 8])
def test_importance_solves_the_weighted_regression(make_model, count, monkeypatch):
    """The estimate has the least error of all values with its sum, and is exact for a score that is a sum."""
    gains = torch.rand(count, generator=torch.Generator().manual_seed(0))
    pairs = torch.rand(count, count, generator=torch.Generator().manual_seed(1))

    def scores(interaction):
        def score(model, clip, target, subsets):
            return [float(3 + gains[kept].sum() + interaction * pairs[kept][:, kept].sum()) for kept in subsets]

        return score

    monkeypatch.setattr(time, "subset_scores", scores(0))
    torch.testing.assert_close(frame_importance(None, torch.zeros(1, count, 1, 1, 1), TARGET), gains)
    monkeypatch.setattr(time, "subset_scores", scores(1))
    result = frame_importance(None, torch.zeros(1, count, 1, 1, 1), TARGET)
    assert float(result.sum()) == pytest.approx(float(gains.sum() + pairs.sum()), rel=1e-5)

    runs = frame_runs(count)
    expected = [score - 3 for score in scores(1)(None, None, None, runs)]

    def error(values):
        misses = [(gain - float(values[kept].sum())) ** 2 for kept, gain in zip(runs, expected, strict=True)]
        return sum(miss / (len(kept) * (count - len(kept))) for kept, miss in zip(runs, misses, strict=True))

    for place in range(count - 1):
        for step in (-0.01, 0.01):
            moved = result.clone()
            moved[place] += step
            moved[-1] -= step
            assert error(result) < error(moved)


def test_no_frame_of_a_still_clip_is_important(make_model):
    model, clip = shake_adapters(make_model("ila", LABELS)), random_frames(1, 1).expand(1, 4, -1, -1, -1)
    for exact in (False, True):
        effects = time_effects(model, clip, TARGET, exact)
        torch.testing.assert_close(effects.frames, torch.zeros(4), atol=1e-3, rtol=0)
        torch.testing.assert_close(effects.swaps, torch.zeros(3), atol=1e-3, rtol=0)


def test_frame_that_differs_is_the_most_important(make_model):
    """Frames are averaged, and all but the last are equal. Removing one of those changes little or nothing."""
    model, frames = make_model(labels=LABELS), random_frames(1, 2)
    clip = frames[:, [0, 0, 0, 1]]
    importance = frame_importance(model, clip, TARGET)
    assert importance.abs().argmax() == 3
    assert importance[0].abs() < 0.2 * importance[3].abs()


def test_too_many_frames_for_exact_values_are_refused(make_model):
    with pytest.raises(ValueError, match=r"exact=True for 9 frames would need 512 passes; expected up to 8 frames"):
        explain_clip(make_model(labels=LABELS), pixels(9), exact=True)


def test_order_has_no_effect_on_frames_that_are_averaged(make_model):
    clip = random_frames(1, 4)
    effects = time_effects(make_model(labels=LABELS), clip, TARGET)
    assert effects.swaps.shape == (3,)
    assert [order.name for order in effects.orders] == ["reversed", "shuffled"]
    drops = [*effects.swaps.tolist(), *(order.drop for order in effects.orders)]
    assert drops == pytest.approx([0] * 5, abs=1e-3)


def test_order_effects_are_losses_of_score(make_model):
    model, clip = shake_adapters(make_model("temporal_conv", LABELS)), random_frames(1, 4)
    effects = time_effects(model, clip, TARGET)
    with torch.no_grad():
        logits = model(torch.cat([clip, clip.flip(1), clip[:, [0, 2, 1, 3]]]), normalized=True).logits
    scores = TARGET.score(logits)
    assert effects.orders[0].drop == pytest.approx(float(scores[0] - scores[1]), abs=1e-3)
    assert effects.orders[0].label == int(logits[1].argmax())
    assert effects.swaps[1] == pytest.approx(float(scores[0] - scores[2]), abs=1e-3)
    assert abs(effects.orders[0].drop) > 0.01


def test_shuffled_order_is_neither_forward_nor_reversed():
    for count in range(3, 40):
        order = shuffled_order(count)
        assert sorted(order) == list(range(count))
        assert order not in (list(range(count)), list(reversed(range(count))))


def test_single_frame_has_no_order(make_model):
    effects = time_effects(make_model("ila", LABELS), random_frames(1, 1), TARGET)
    assert effects.frames.shape == (1,)
    assert (len(effects.swaps), effects.orders) == (0, ())


def test_norms_that_read_the_batch_get_one_clip_at_a_time(make_model):
    model = shake_adapters(make_model({"name": "ila", "hidden": 16, "eval_batch_stats": True}, LABELS))
    clip = random_frames(1, 3)
    with torch.no_grad():
        alone = TARGET.score(model(clip, normalized=True).logits) - TARGET.score(
            model(clip.flip(1), normalized=True).logits
        )
    assert time_effects(model, clip, TARGET).orders[0].drop == pytest.approx(float(alone), abs=1e-4)


# Explanation


def test_explanation_of_frames_in_memory(make_model):
    model = shake_adapters(make_model("ila", LABELS))
    result = clipvid.explain(model, pixels(9).permute(0, 2, 3, 1).numpy())
    assert isinstance(result, clipvid.Explanation)
    assert result.frames.shape == (3, 3, 64, 64)
    assert result.relevance.shape == (3, 4, 4)
    assert float(result.relevance.sum()) == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        probabilities = model(result.frames[None]).logits.softmax(-1)[0]
    torch.testing.assert_close(result.probabilities, probabilities, atol=1e-5, rtol=1e-4)
    assert result.label == LABELS[int(probabilities.argmax())]
    assert result.times is None
    assert [(own.name, own.block) for own in result.adapters] == [("ila", 0), ("ila", 1)]
    assert result.method == {"name": "attention", "adapters": "gradient"}


def test_class_and_contrast_are_chosen_by_name(make_model):
    model = make_model(labels=LABELS)
    result = explain_clip(model, pixels(), "jumping", "walking", time=False)
    assert (result.target, result.label, result.against) == (Target(2, 0), "jumping", "walking")
    assert "rather than “walking”" in result.sentence
    with pytest.raises(ValueError, match="against='running' is the explained class itself"):
        explain_clip(model, pixels(), "running", "running")
    with pytest.raises(ValueError, match="training mode"):
        clipvid.explain(model.train(), pixels())
    with pytest.raises(ValueError, match="the model has no labels"):
        clipvid.explain(make_model(), pixels())


def test_default_costs_two_forward_passes_and_one_backward_pass(make_model, monkeypatch):
    model, calls = make_model("ila", LABELS), []
    model.encoder.register_forward_hook(lambda *args: calls.append("forward"))
    real = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *args, **options: (calls.append("backward"), real(*args, **options))[1]
    )
    explain_clip(model, pixels(), time=False)
    assert calls == ["forward", "forward", "backward"]


def test_explanations_are_bitwise_equal_when_repeated(make_model):
    model = shake_adapters(make_model(["ila", "sifa"], LABELS))
    one, other = (explain_clip(model, pixels()) for _ in range(2))
    assert torch.equal(one.relevance, other.relevance)
    assert torch.equal(one.time.frames, other.time.frames)


class Silent(Adapter):
    """Adapter of a plugin, without a trace."""

    place = "after_attention"

    def forward(self, tokens, grid, trace=False):
        return AdapterOutput(torch.full_like(tokens, 0.5))


def test_adapter_without_a_trace_shows_the_size_of_its_update(make_model, monkeypatch):
    monkeypatch.setitem(ADAPTERS, "silent", Silent)
    result = explain_clip(make_model("silent", LABELS), pixels(), time=False)
    mark = result.adapters[0].marks[0]
    assert isinstance(mark, HeatMap)
    torch.testing.assert_close(mark.values, torch.full((3, 4, 4), 0.5 * 64**0.5))


# Sentences


def reasons(
    relevance, frames=None, orders=(), probabilities=(0.1, 0.8, 0.1), target=TARGET, name="clip.mp4", labels=LABELS
):
    time = None if frames is None else TimeEffects(torch.tensor(frames), torch.zeros(len(frames) - 1), tuple(orders))
    count = len(relevance)
    return Explanation(
        name, pixels(count), [0.5 * step for step in range(count)], list(labels), torch.tensor(probabilities), target,
        {"name": "attention"}, relevance / relevance.sum(), time, [],
    )  # fmt: skip


def spot(*places):
    relevance = torch.full((len(places), 3, 3), 0.01)
    for frame, (row, column) in enumerate(places):
        relevance[frame, row, column] = 1.0
    return relevance


def test_sentence_names_frames_places_and_the_reversed_answer():
    orders = [OrderEffect("reversed", 3.0, 2, 0.7), OrderEffect("shuffled", 1.0, 1, 0.5)]
    relevance = spot((1, 2), (1, 2), (1, 1), (1, 0))
    result = describe(reasons(relevance, [0.1, 2.0, 1.5, 1.2], orders))
    assert result == (
        "The answer “running” (80%) rests most on frames 2-4, moving from the right to the left of the picture. Played "
        "backwards, the clip gets the answer “jumping” (70%)."
    )
    orders[0] = OrderEffect("reversed", 0.1, 1, 0.75)
    result = describe(reasons(relevance, [2.0, 0.1, 0.0, -1.0], orders))
    assert result == (
        "The answer “running” (80%) rests most on frame 1, at the right of the picture. Played backwards, the clip "
        "gets the same answer (75%)."
    )


def test_sentence_of_another_class_than_the_answer():
    result = describe(reasons(spot((0, 0), (0, 0)), target=Target(0)))
    assert result == "The class “walking” (10%) rests on all frames, at the top left of the picture."


def test_frames_and_places_in_words():
    assert frame_ranges([0]) == "frame 1"
    assert frame_ranges([0, 1, 4]) == "frames 1-2 and 5"
    assert frame_ranges([0, 2, 4, 5]) == "frames 1, 3 and 5-6"
    assert place_of(center_of(spot((1, 1))[0])) == "middle"
    assert place_of(center_of(spot((2, 0))[0])) == "bottom left"
    assert center_of(torch.tensor([[0.1, 1.0, 0.6], [0.4, 0.1, 0.0]])).tolist() == pytest.approx([2 / 3, 0.25])


def test_small_steps_are_not_called_a_move():
    cases = {(5, 3, 5, 5): "at the middle of the picture", (5, 2, 5, 4): "at the top of the picture",
             (5, 3, 5, 7): "moving from the top to the middle of the picture",
             (4, 5, 7, 5): "moving right at the middle of the picture",
             (7, 5, 4, 5): "moving left at the middle of the picture",
             (5, 4, 5, 7): "moving down at the middle of the picture",
             (0, 3, 0, 0): "moving up at the top left of the picture"}  # fmt: skip
    for (*first, column, row), expected in cases.items():
        relevance = torch.zeros(2, 12, 12)
        relevance[0, first[1], first[0]] = relevance[1, row, column] = 1
        assert expected in describe(reasons(relevance)), expected


# Files


def decode(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("adapter", ["none", *ALL])
def test_files_of_every_adapter(make_model, tmp_path, adapter):
    model = shake_adapters(make_model(adapter, LABELS))
    result = clipvid.explain(model, pixels())
    result.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "frames in memory.json", "frames in memory.mp4", "frames in memory.png", "report.html",
    ]  # fmt: skip
    assert Image.open(tmp_path / "frames in memory.png").size == (3 * 224, 2 * 224)
    video = decode(tmp_path / "frames in memory.mp4")
    assert (len(video), video[0].shape) == (3, (224, 448, 3))
    record = json.loads((tmp_path / "frames in memory.json").read_text())
    assert torch.tensor(record["relevance"]).shape == (3, 4, 4)
    assert record["sentence"] == result.sentence
    html = (tmp_path / "report.html").read_text()
    assert result.sentence.split(" (")[0] in html.replace("&#34;", '"')
    assert html.count("<img") >= 6
    assert ("How" in re.findall(r"<h2>(.*?)</h2>", html)) == (adapter != "none")
    assert html.count("<li><img") == html.count('alt="') - len(re.findall(r"<figure", html))


def test_page_needs_no_network_and_no_script(make_model, tmp_path):
    clipvid.explain(make_model("ila", LABELS), pixels()).save(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "default-src 'none'" in html
    assert not re.search(r"<script|https?://|<link (?!rel=\"icon\" href=\"data:)", html)
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', html))
    assert html.count("<details") == html.count("<summary>") >= 2  # opened with the keyboard


def test_hostile_names_are_escaped_everywhere(make_model, tmp_path):
    model = make_model("ila", [HOSTILE, "\x1b[31mred", "a\u202eb"])
    result = explain_clip(model, pixels(), HOSTILE, "\x1b[31mred", name=f"../../{HOSTILE}\n.mp4")
    result.save(tmp_path / "out")
    assert [path.parent for path in tmp_path.rglob("*.*") if path.is_file()] == [tmp_path / "out"] * 4
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<script>" not in html
    assert "<img src=x" not in html
    assert "&lt;script&gt;" in html
    assert "\x1b" not in html
    assert "\u202e" not in html


def test_several_videos_share_a_page(make_model, tmp_path):
    model = make_model("ila", LABELS)
    result = [explain_clip(model, pixels(), name=name, time=False) for name in ("one.mp4", "two.mp4")]
    written = page.save_explanations(tmp_path, result)
    assert [path.name for path in written] == [
        "report.html", "one.mp4.png", "one.mp4.mp4", "one.mp4.json", "two.mp4.png", "two.mp4.mp4", "two.mp4.json",
    ]  # fmt: skip
    headings = re.findall(r"<h2>(.*?)</h2>", (tmp_path / "report.html").read_text())
    assert headings[:3] == ["The answer · one.mp4", "Where · one.mp4", "How · one.mp4"]


def test_heat_is_strongest_where_values_are():
    values = torch.zeros(2, 4, 4)
    values[1, 0, 3] = 2.0
    first, second = draw_heat(torch.full((2, 3, 64, 64), 90, dtype=torch.uint8), values)
    assert second.getpixel((210, 10))[0] > 200
    assert second.getpixel((10, 210)) == first.getpixel((210, 10)) == (72, 72, 72)


def test_tracks_through_the_relevant_patch_are_drawn():
    relevance = spot((0, 0), (1, 1))
    positions = torch.tensor([[[0.5, 0.5], [0.9, 0.1]], [[0.1, 0.1], [0.5, 0.5]], [[0.1, 0.1], [0.9, 0.9]]])
    assert relevant_tracks(positions, relevance).tolist()[:2] == [1, 2]
    plain = pixels(2)
    drawn = draw_mark(plain, Tracks("t", "n.", positions), relevance)
    assert len(drawn) == 2
    assert drawn[0].size == (224, 224)


# Command line


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    config = WorldConfig(image_size=32, num_frames=8)
    for index in range(2):
        write_video(folder / f"{index}.mp4", render_clip(config, index, "test", 0), 8)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def test_verb_writes_a_page_and_continues_after_broken_videos(make_model, videos, tmp_path, capsys):
    model = shake_adapters(make_model("ila", LABELS, num_frames=4))
    model.save_pretrained(tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--label", "running", "--against", "walking"]
    with pytest.raises(SystemExit) as end:
        run("explain", [*options, "--output_dir", str(tmp_path / "out"), str(videos)])
    assert end.value.code == 1
    printed = capsys.readouterr()
    assert printed.out.count("The ") == 2
    assert "“running”" in printed.out
    assert "broken.mp4" in printed.err
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count("<h2>Where") == 2
    assert "0.44 s" in html or "0.38 s" in html  # times of frames
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label", "runing"], r"label='runing' is not a class .*did you mean 'running'"),
        (["--method", "gradcam"], r"unknown explanation method 'gradcam' \(did you mean 'grad_cam'"),
        (["--method", "{name: occlusion, size: 0}"], r"size=0 must be at least 1"),
    ],
)
def test_verb_refuses_wrong_options(make_model, videos, tmp_path, capsys, words, message):
    make_model("none", LABELS).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit) as end:
        run("explain", ["--model", str(tmp_path / "model"), *words, str(videos / "0.mp4")])
    assert end.value.code == 1
    assert re.search(message, capsys.readouterr().err)


def test_help_starts_without_torch():
    code = "import sys; from clipvid.commands import run\ntry: run('explain', ['--help'])\nexcept SystemExit: pass\n"
    code += "print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
    assert "--against" in done.stdout
