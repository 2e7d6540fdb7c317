"""`clipvid benchmark adapters`: counts equal hand-written formulas, and the report is complete."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fresh_backbone, random_frames
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from clipvid import InputError
from clipvid.adapters import ADAPTERS
from clipvid.benchmarks.adapters import (
    BARS,
    NUM_CLASSES,
    AdapterBenchmark,
    AdapterCost,
    Bar,
    Key,
    compare,
    measure_adapters,
    render_table,
)
from clipvid.benchmarks.cost import Pass, count_macs, peak_memory, time_passes
from clipvid.commands import VERBS, run
from clipvid.commands.benchmark import main
from clipvid.runs.config_files import parse_config, read_config

FRAMES, WIDTH, PATCHES, EMBED = 3, 64, 16, 32  # of the tiny CLIP of conftest, on clips of three frames
TOKENS = PATCHES + 1
UNTRAINED = ["none", "encode_image", "shift"]


@pytest.fixture(scope="module")
def report(clip_folder, tmp_path_factory) -> tuple[dict[str, Any], str]:
    """Return metrics and table of a run over the whole registry."""
    output = tmp_path_factory.mktemp("benchmark")
    config = output / "run.in.yaml"
    config.write_text(f"backbone: local-dir:{clip_folder}\npretrained: null\nnum_frames: {FRAMES}\nrepeats: 3\n")
    main(["adapters", "--config", str(config), "--repeats=1", "--batch_size=2", f"--output_dir={output / 'run'}"])
    return json.loads((output / "run" / "metrics.json").read_text()), (output / "run" / "table.md").read_text()


@pytest.fixture(scope="module")
def rows(report) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in report[0]["rows"]}


# The report


def test_every_adapter_has_a_row_in_metrics_and_table(report, rows):
    metrics, table = report
    expected = ["none", "encode_image", *(name for name in ADAPTERS if name != "none"), *ADAPTERS.presets]
    assert list(rows) == expected
    lines = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert lines[2:] == expected
    assert metrics["config"]["repeats"] == 1
    assert metrics["config"]["num_frames"] == FRAMES
    assert metrics["config"]["bars"] == BARS
    assert metrics["machine"]["device"]


def test_nothing_to_train_means_no_training_figures(rows):
    assert [name for name, row in rows.items() if row["training"] is None] == UNTRAINED
    assert [name for name, row in rows.items() if row["peak_memory"] is None] == UNTRAINED
    assert [name for name, row in rows.items() if row["trained_parameters"] == 0] == UNTRAINED


def test_ratios_match_raw_figures(rows):
    base = rows["none"]["forward"]
    for row in rows.values():
        for cost in filter(None, (row["forward"], row["training"])):
            assert len(cost["seconds"]) == 1
            for figure in ("time_ratio", "mac_ratio", "time_per_mac"):
                assert math.isfinite(cost[figure])
                assert cost[figure] > 0
            assert cost["time_ratio"] == pytest.approx(cost["seconds"][0] / base["seconds"][0])
            assert cost["mac_ratio"] == pytest.approx(cost["macs"] / base["macs"])
            assert cost["time_per_mac"] == pytest.approx(cost["time_ratio"] / cost["mac_ratio"])
            assert cost["missed"] == (cost["bar"] is not None and cost["time_ratio"] > cost["bar"])
    assert base["time_ratio"] == base["mac_ratio"] == 1


def test_training_memory_includes_gradients(rows):
    for row in rows.values():
        if row["training"]:
            assert row["peak_memory"] > 4 * row["trained_parameters"]


def test_python_gives_the_rows_that_the_command_writes(clip_folder):
    choices = [{"name": "st_adapter", "channels": 8}, "st_adapter"]
    config = AdapterBenchmark(
        backbone=f"local-dir:{clip_folder}", pretrained=None, adapters=choices, num_frames=2, repeats=2, threads=1
    )
    actual = measure_adapters(config)
    assert [row.name for row in actual] == ["none", "encode_image", "st_adapter channels=8", "st_adapter"]
    assert actual[2].trained_parameters < actual[3].trained_parameters
    assert [len(row.forward.seconds) for row in actual] == [2] * 4
    assert "st_adapter channels=8" in render_table(actual, config)


# Multiply-adds, by hand


def tower_macs() -> dict[str, int]:
    """Return multiply-adds per clip: patch embedding, linears and attention products of the blocks, projection."""
    return {
        "embed": FRAMES * PATCHES * (3 * 16 * 16) * WIDTH,
        "linears": FRAMES * TOKENS * (4 * WIDTH * WIDTH + 2 * WIDTH * 4 * WIDTH),
        "attention": FRAMES * 2 * TOKENS * TOKENS * WIDTH,
        "head": FRAMES * WIDTH * EMBED,
    }


def st_adapter_macs() -> dict[str, int]:
    channels = WIDTH // 2
    place = FRAMES * PATCHES
    return {"down": place * WIDTH * channels, "conv": place * channels * 3, "up": place * channels * WIDTH}


def test_forward_macs_are_those_of_the_architecture(rows):
    tower, adapter = tower_macs(), st_adapter_macs()
    plain = tower["embed"] + 2 * (tower["linears"] + tower["attention"]) + tower["head"]
    assert rows["none"]["forward"]["macs"] == plain
    assert rows["encode_image"]["forward"]["macs"] == plain
    assert rows["shift"]["forward"]["macs"] == plain
    assert rows["st_adapter"]["forward"]["macs"] == plain + 2 * sum(adapter.values())


def test_training_macs_are_those_of_the_chain_rule(rows):
    tower, adapter = tower_macs(), st_adapter_macs()
    classifier = EMBED * NUM_CLASSES
    forward = rows["st_adapter"]["forward"]["macs"] + classifier
    attention_linears = FRAMES * TOKENS * 4 * WIDTH * WIDTH  # those of the first block precede the first adapter
    frozen = 2 * tower["linears"] - attention_linears + tower["head"] + classifier  # a gradient of the input alone
    products = 2 * tower["attention"]  # of both factors, in the second block
    trained = 2 * 2 * sum(adapter.values()) - adapter["down"]  # of input and weight; the first block's input has none
    skipped = 2 * FRAMES * (TOKENS - 1) * 8 * WIDTH * WIDTH  # MLP of patches in the last block, forward and backward
    assert rows["st_adapter"]["training"]["macs"] == forward + frozen + products + trained - skipped


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_convolution_gradient_macs(groups, transposed):
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    conv = kind(8, 16, 3, padding=1, stride=2, groups=groups)
    x = torch.randn(2, 8, 5, 5)
    places = 25 if transposed else 9
    forward = 2 * places * 9 * 8 * 16 // groups
    assert count_macs(Pass(conv, conv), x) == forward
    assert count_macs(Pass(conv, lambda x: conv(x).sum(), training=True), x) == 2 * forward
    assert count_macs(Pass(conv, lambda x: conv(x).sum(), training=True), x.requires_grad_()) == 3 * forward
    if groups == 1 and not transposed:
        with FlopCounterMode(display=False) as own:
            conv(x).sum().backward()
        assert own.get_total_flops() == 2 * 3 * forward


def test_attention_is_counted_whatever_kernel_would_run_it():
    def attend(x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)

    x = torch.randn(2, 3, 5, 7)
    assert count_macs(Pass(nn.Identity(), attend), x) == 2 * 2 * 3 * 5 * 5 * 7


# Memory, time


def test_peak_memory_counts_simultaneous_tensors():
    x = torch.randn(1000, 1000)
    size, module = x.nbytes, nn.Identity()
    assert peak_memory(Pass(module, lambda x: x), x) == 0
    assert peak_memory(Pass(module, torch.exp), x) == size
    assert peak_memory(Pass(module, lambda x: x.exp().exp().exp()), x) == 2 * size
    assert peak_memory(Pass(module, lambda x: x.exp() + x.exp()), x) == 3 * size


def test_training_peak_memory_counts_activations_and_gradients():
    layer = nn.Linear(500, 500, bias=False)
    x = torch.randn(500, 500)
    once = peak_memory(Pass(layer, lambda x: layer(x).exp().sum(), training=True), x)
    twice = peak_memory(Pass(layer, lambda x: layer(x).exp().exp().sum(), training=True), x)
    assert once >= 2 * x.nbytes  # saved output of exp, and the weight's gradient
    assert twice - once == x.nbytes
    assert layer.weight.grad is None


def test_timing_interleaves_rounds_and_sets_mode():
    calls = []

    def make(name: str, training: bool) -> Pass:
        layer = nn.Linear(2, 1)

        def call(frames: Tensor) -> Tensor:
            assert layer.training == torch.is_grad_enabled() == training
            assert layer.weight.grad is None
            calls.append(name)
            return layer(frames).sum()

        return Pass(layer, call, training)

    passes = {"a": make("a", False), "b": make("b", True), "c": make("c", False)}
    seconds = time_passes(passes, torch.ones(3, 2), repeats=2)
    assert calls == ["a", "b", "c"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}
    assert all(one.model.weight.grad is None for one in passes.values())


def test_reference_model_is_open_clip_with_same_weights(make_model, clip_folder):
    model, frames = make_model(), random_frames(2, FRAMES)
    reference = fresh_backbone(f"local-dir:{clip_folder}").open_clip_model()
    assert any(isinstance(module, nn.MultiheadAttention) for module in reference.modules())
    with torch.no_grad():
        features = reference.encode_image(frames.flatten(0, 1)).view(2, FRAMES, EMBED).mean(dim=1)
        torch.testing.assert_close(features, model.encode_video(frames), rtol=1e-5, atol=1e-5)


# Bars


def made_up(seconds: dict[Key, float], bars: dict[str, Bar]) -> dict[str, AdapterCost]:
    """Return rows of passes with the given median and another mean."""
    repeated = {key: [value, 100.0, 0.0] for key, value in seconds.items()}
    macs = dict.fromkeys(seconds, 1000)
    return {row.name: row for row in compare(repeated, macs, {}, {}, bars)}


def test_bars_are_absolute_or_above_another_row():
    seconds = {("none", False): 2.0, ("encode_image", False): 1.9, ("near", False): 2.4, ("near", True): 8.0}
    seconds |= {("far", False): 2.6, ("far", True): 8.2}
    bars = {
        "none": Bar(0.0, above="encode_image"),
        "near": Bar(1.25, 3.9),
        "far": Bar(0.2, 0.05, above="near"),
        "absent": Bar(1.0),
    }
    rows = made_up(seconds, bars)
    assert (rows["none"].forward.bar, rows["none"].forward.missed) == (pytest.approx(0.95), True)
    assert (rows["near"].forward.bar, rows["near"].forward.missed) == (1.25, False)
    assert (rows["near"].training.bar, rows["near"].training.missed) == (3.9, True)
    assert (rows["far"].forward.bar, rows["far"].forward.missed) == (pytest.approx(1.4), False)
    assert (rows["far"].training.bar, rows["far"].training.missed) == (pytest.approx(4.05), True)
    assert rows["encode_image"].forward.bar is None
    table = render_table(list(rows.values()), AdapterBenchmark())
    marks = {line.split("|")[1].strip(): line.count("✗") for line in table.splitlines() if line.startswith("|")}
    assert {name: count for name, count in marks.items() if count} == {"none": 1, "near": 1, "far": 1}
    assert "| 4.00 > 3.9 ✗ |" in table
    assert "| 1.20 ≤ 1.25 |" in table


def test_bar_above_unmeasured_row_is_none():
    rows = made_up({("none", False): 1.0, ("far", False): 1.1}, {"far": Bar(0.1, above="near")})
    assert rows["far"].forward.bar is None
    assert not rows["far"].forward.missed


def test_the_bars_given_are_those_of_registered_adapters():
    assert set(BARS) <= {*ADAPTERS, *ADAPTERS.presets}
    assert BARS["ila"] == {"forward": 1.5, "training": 3.6}


# Errors


@pytest.mark.parametrize("args", [["adaptors"], [], ["--config", "x.yaml"]])
def test_unknown_subject_error_lists_known_subjects(args, capsys):
    with pytest.raises(SystemExit) as end:
        run("benchmark", args)
    assert end.value.code == 1
    assert "expected one of adapters" in capsys.readouterr().err


def test_help_names_the_subjects(capsys):
    assert "benchmark" in VERBS
    main(["--help"])
    assert "adapters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repeats": 0}, "repeats=0 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"threads": 0}, "threads=0 must be at least 1"),
        ({"adapters": ["ilaa"]}, r"unknown adapter 'ilaa' \(did you mean 'ila'\?\); known: none, ila"),
        ({"adapters": [{"name": "gta", "group": 4}]}, "adapter 'gta' has no option 'group'"),
        ({"adapters": ["gta", "gta"]}, "each name may be listed once"),
        ({"bars": {"ila": {"forwards": 1.5}}}, "the bar of 'ila' has no option 'forwards'"),
    ],
)
def test_invalid_benchmark_options_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        AdapterBenchmark(**fields)


@pytest.mark.parametrize("value", ["'1.5'", '"1.5"', "'true'"])
def test_quoted_numbers_in_bars_are_refused(value, tmp_path: Path):
    (tmp_path / "in.yaml").write_text(f"bars: {{ila: {{forward: {value}}}}}\n")
    with pytest.raises(InputError, match=r"the bar of 'ila': forward='.*': expected a valid number"):
        read_config(AdapterBenchmark, tmp_path / "in.yaml")


def test_the_whole_config_prints_and_parses_back(tmp_path: Path, capsys):
    with pytest.raises(SystemExit):
        main(["adapters", "--print_config"])
    path = tmp_path / "run.yaml"
    path.write_text(capsys.readouterr().out)
    assert parse_config(AdapterBenchmark, ["--config", str(path)], "test") == AdapterBenchmark()
