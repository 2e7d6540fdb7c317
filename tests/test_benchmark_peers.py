"""`clipvid benchmark peers`: every loop trains, every tool returns the right frames, ratios are the right way up."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from clipvid import InputError
from clipvid.benchmarks import peer_training
from clipvid.benchmarks.numbered_videos import Encoding, number_of, write_numbered
from clipvid.benchmarks.peer_exactness import READERS_BY_TIME, measure_exactness
from clipvid.benchmarks.peer_reading import READERS, TOOLS, measure_rates
from clipvid.benchmarks.peer_training import CASES, OPEN_CLIP, VIDEO, ClipsInMemory
from clipvid.benchmarks.peers import OURS, PeerRow, PeersBenchmark, Sample, render_tables

pytest.importorskip("decord")


@pytest.fixture(scope="module")
def config(clip_folder, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("peers"))
    return PeersBenchmark(folder, backbone=f"local-dir:{clip_folder}", pretrained=None, num_frames=2, batch_size=2)


@pytest.mark.parametrize(("case", "tool"), [(case, tool) for case, tools in CASES.items() for tool in tools])
def test_every_loop_trains_on_all_steps(config, case, tool, tmp_path, monkeypatch) -> None:
    if tool == OPEN_CLIP:
        pytest.importorskip("open_clip_train")
    monkeypatch.setattr(peer_training, "RATE", 1e-3)
    torch.manual_seed(0)
    model = peer_training.build_model(config, case)
    clips = ClipsInMemory(config, case, model)
    own = model if case == VIDEO or tool == OURS else model.backbone.open_clip_model(with_text=True)
    before = {name: value.detach().clone() for name, value in own.named_parameters()}
    peer_training.LOOPS[tool](own, clips, tmp_path)
    assert len(clips.fetched) == config.steps * clips.batch_size
    assert clips.seconds_per_step() > 0
    still = [name for name, value in own.named_parameters() if torch.equal(value.cpu(), before[name])]
    assert not [name for name in still if name.endswith("mlp.c_fc.weight") and not (case == VIDEO and "text" in name)]


def test_all_tools_return_the_frames_asked_for(tmp_path) -> None:
    path = tmp_path / "numbered.mp4"
    write_numbered(path, [Fraction(number, 25) for number in range(40)], Encoding("libx264", options={"g": "10"}))
    for tool in TOOLS:
        if tool == "torchcodec":
            pytest.importorskip("torchcodec")
        assert [number_of(frame) for frame in READERS[tool](path, [0, 7, 39])] == [0, 7, 39], tool


def test_clipvid_shows_every_frame_at_its_time(config) -> None:
    rows = [row for row in measure_exactness(config) if row.tool == OURS]
    assert len(rows) == 3
    assert [row.value for row in rows] == [20.0] * 3
    assert len(READERS_BY_TIME) == 5


def test_numbers_are_read_back() -> None:
    assert number_of(np.zeros((8, 16, 3), np.uint8)) == 0
    assert number_of(np.full((8, 16, 3), 255, np.uint8)) == 255


def test_a_tool_that_fails_has_a_reason_and_no_figure() -> None:
    def broken() -> None:
        raise ImportError("no such package")

    rows = measure_rates("a file", {OURS: lambda: None, "other": broken}, repeats=2, count=1)
    assert [(len(row.samples), row.note) for row in rows] == [(2, ""), (0, "not installed")]


def test_ratios_say_how_many_times_as_fast_clipvid_is() -> None:
    rows = [
        PeerRow("training step", "video", OURS, [Sample(10.0, 5.0)], "ms"),
        PeerRow("training step", "video", "other", [Sample(20.0, 8.0)], "ms"),
        PeerRow("reading", "file", OURS, [Sample(30.0)], "videos/s"),
        PeerRow("reading", "file", "other", [Sample(60.0)], "videos/s"),
        PeerRow("frames at asked times", "file", OURS, [Sample(20.0)], "of 20", is_count=True),
        PeerRow("frames at asked times", "file", "other", [], "of 20", "cannot read it", True),
    ]
    tables = render_tables(rows, PeersBenchmark())
    assert "| video | other | 20 | 2.00 x | 8 |" in tables
    assert "| file | other | 60 | 0.50 x |" in tables
    assert "| file | other (cannot read it) | - |" in tables


@pytest.mark.parametrize("options", [{"parts": ["readin"]}, {"parts": []}, {"steps": 2}, {"repeats": 0}])
def test_wrong_options_are_refused(options) -> None:
    with pytest.raises(InputError):
        PeersBenchmark(**options)
