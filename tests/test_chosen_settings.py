"""Settings chosen for a folder of videos: rules, precedence of the user, resume, and what is printed and kept."""

import html
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from test_drawn_split import videos  # noqa: F401

from clipvid import InputError
from clipvid.commands import finetune
from clipvid.experiments.chosen_settings import (
    EPOCHS,
    EVAL_BATCH,
    EVAL_EPOCHS,
    OPTIONS,
    PRECISION,
    THREADS,
    TRAIN_BATCH,
    WORKERS,
    Facts,
    Setting,
    choose_settings,
    settings_table,
    usable_cores,
    with_chosen_settings,
)
from clipvid.runs.config_files import parse_config, set_options
from clipvid.training.config import FinetuneConfig

LAPTOP = Facts(videos=28, cores=8)
ALL = frozenset(OPTIONS)


def parse(*words: str) -> FinetuneConfig:
    return parse_config(FinetuneConfig, list(words), "test")


def choose(facts: Facts, *words: str, unset: frozenset[str] = ALL) -> dict[str, Setting]:
    return {setting.name: setting for setting in choose_settings(facts, parse(*words), unset)}


def values(facts: Facts, *words: str, unset: frozenset[str] = ALL) -> dict[str, object]:
    return {name: setting.value for name, setting in choose(facts, *words, unset=unset).items()}


@pytest.mark.parametrize(
    ("videos", "batch", "epochs"),
    [(28, 4, 58), (90, 8, 37), (1000, 8, 5), (100_000, 8, 5), (3, 3, 100), (1, 1, 100)],
)
def test_small_sets_get_small_batches_and_many_epochs(videos: int, batch: int, epochs: int) -> None:  # noqa: F811
    chosen = values(replace(LAPTOP, videos=videos))
    assert (chosen[TRAIN_BATCH], chosen[EPOCHS]) == (batch, epochs)
    assert batch <= videos


def test_a_head_with_random_weights_gets_more_steps() -> None:
    at_once = ("--model.head=linear", "--training.head_epochs=0")
    text, linear, first = (choose(LAPTOP, *words)[EPOCHS] for words in ((), at_once, at_once[:1]))
    assert first == text  # the head is trained alone before
    assert text.value == 58
    assert text.why == "406 optimizer steps, 7 in an epoch; about 400 are needed to learn"
    assert linear.value == 100
    assert "about 800 are needed for a head with random weights" in linear.why


@pytest.mark.parametrize(
    ("memory", "has_bf16", "batch", "precision"),
    [(80, True, 32, "bf16"), (16, True, 16, "bf16"), (6, False, 8, "fp16")],
)
def test_a_gpu_decides_batch_and_precision(memory: float, has_bf16: bool, batch: int, precision: str) -> None:
    facts = Facts(videos=5000, cores=16, device="gpu", memory_gib=memory, has_bf16=has_bf16)
    chosen = values(facts)
    assert (chosen[TRAIN_BATCH], chosen[EVAL_BATCH], chosen[PRECISION], chosen[WORKERS]) == (batch, batch, precision, 8)
    assert values(LAPTOP)[PRECISION] == "no"


def test_processes_share_clips_and_cores() -> None:
    alone, four = (values(Facts(videos=400, cores=8, processes=count)) for count in (1, 4))
    assert (alone[TRAIN_BATCH], alone[WORKERS], alone[THREADS]) == (8, 4, 8)
    assert (four[TRAIN_BATCH], four[WORKERS], four[THREADS]) == (8, 1, 2)
    assert four[EPOCHS] == 34  # 12 steps of 32 clips
    assert values(Facts(videos=6, cores=1, processes=4))[TRAIN_BATCH] == 1


def test_accumulation_and_repeats_count() -> None:
    assert values(LAPTOP, "--training.gradient_accumulation_steps=7")[TRAIN_BATCH] == 4
    assert values(LAPTOP, "--data.repeats=2")[TRAIN_BATCH] == 4
    assert values(LAPTOP, "--data.repeats=4")[TRAIN_BATCH] == 8


def test_values_of_the_user_are_taken_into_account() -> None:
    chosen = choose(LAPTOP, "--training.per_device_train_batch_size=14", unset=ALL - {TRAIN_BATCH})
    assert TRAIN_BATCH not in chosen
    assert chosen[EPOCHS].value == 100
    assert chosen[EPOCHS].why.startswith("200 optimizer steps, 2 in an epoch; ")
    chosen = choose(LAPTOP, "--training.epochs=200", unset=ALL - {EPOCHS})
    assert EPOCHS not in chosen
    assert (chosen[EVAL_EPOCHS].value, chosen[EVAL_EPOCHS].why) == (10, "20 evaluations in 200 epochs")
    assert choose(replace(LAPTOP, fixed_threads=1))[THREADS] == Setting(THREADS, 1, "OMP_NUM_THREADS is set")


def test_every_chosen_setting_is_valid_and_has_a_reason() -> None:
    config = parse()
    for count in (1, 2, 5, 17, 300, 20_000):
        for processes in (1, 2, 8):
            for setting in choose_settings(Facts(count, 2, processes), config, ALL):
                assert setting.why
                assert setting.value == "no" or setting.value >= 1


def test_options_of_the_command_line_and_of_files_are_known(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("training: {mixed_precision: bf16}\ndata: {num_workers: 1}\n")
    words = ["--config", str(tmp_path / "c.yaml"), "--data.train", "videos/", "--training.epochs=4"]
    chosen = set_options(FinetuneConfig, words, "test")
    assert {PRECISION, WORKERS, "data.train", EPOCHS} <= chosen
    assert not {TRAIN_BATCH, EVAL_EPOCHS, "seed"} & chosen


def test_a_folder_and_a_list_without_config_get_settings(videos: Path) -> None:  # noqa: F811
    config = parse("--data.train=videos", "--training.epochs=3")
    chosen, settings = with_chosen_settings(config, frozenset({EPOCHS}))
    assert (chosen.training.epochs, chosen.training.per_device_train_batch_size) == (3, 4)
    assert {setting.name for setting in settings} == {*OPTIONS, THREADS} - {EPOCHS}
    assert with_chosen_settings(config, ALL) == (config, [])
    listed = parse("--data.root=world", "--data.train=train.csv", "--data.val=train.csv")
    chosen, settings = with_chosen_settings(listed, frozenset({"data.train"}))
    assert {setting.name for setting in settings} == {*OPTIONS, THREADS}
    assert chosen.training.epochs == 80  # 400 steps for 20 clips in batches of 4
    assert with_chosen_settings(listed, frozenset({"config"})) == (listed, [])
    drawn = parse("--data.train=train.csv", "--data.world={}")
    assert with_chosen_settings(drawn, frozenset()) == (drawn, [])
    missing = parse("--data.train=nowhere")
    assert with_chosen_settings(missing, frozenset()) == (missing, [])


def test_a_run_keeps_its_values_when_it_is_started_again(videos: Path) -> None:  # noqa: F811
    config = parse("--data.train=videos", "--output_dir=out")
    Path("out").mkdir()
    Path("out/run.yaml").write_text(yaml.safe_dump({"training": {"epochs": 7}, "data": {"num_workers": 3}}))
    chosen, settings = with_chosen_settings(config, frozenset())
    assert (chosen.training.epochs, chosen.data.num_workers) == (7, 3)
    why = {setting.name: setting.why for setting in settings}
    assert why[EPOCHS] == why[WORKERS] == "as in the first start of this run"
    assert with_chosen_settings(config, frozenset({EPOCHS}))[0].training.epochs == config.training.epochs


def test_a_run_keeps_its_values_if_it_was_interrupted_in_its_cross_validation(videos: Path) -> None:  # noqa: F811
    fold = Path("out/selection/fold_0_adapters")
    fold.mkdir(parents=True)
    recorded = {"epochs": 90, "eval_epochs": 90, "per_device_train_batch_size": 2}
    (fold / "run.yaml").write_text(yaml.safe_dump({"training": recorded}))
    training = with_chosen_settings(parse("--data.train=videos", "--output_dir=out"), frozenset())[0].training
    assert (training.epochs, training.eval_epochs, training.per_device_train_batch_size) == (90, 5, 4)


def test_the_quota_of_a_container_counts(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text("50000 100000\n")
    assert usable_cores(quota) == 1
    quota.write_text("max 100000\n")
    assert usable_cores(quota) == usable_cores(tmp_path / "missing") >= 1


def test_a_table_has_a_line_for_each_setting() -> None:
    table = settings_table([Setting(EPOCHS, 58, "few videos")])
    assert table.splitlines()[0] == "| setting | value | why |"
    assert "58 | few videos |" in table


def test_one_folder_without_settings_trains_prints_and_keeps_them(videos: Path, capsys) -> None:  # noqa: F811
    """The number of epochs is set, since 100 would take long."""
    words = ["--data.train=videos", "--output_dir=out", "--training.epochs=1", "--training.report_to=none"]
    words += ["--selection.folds=0", "--model.num_frames=2", "--data.num_workers=0"]
    finetune.main(words)
    printed = capsys.readouterr().out
    assert "settings chosen for the data and this machine:\n| setting | value | why |" in printed
    recorded = yaml.safe_load(Path("out/run.yaml").read_text())
    assert recorded["training"]["per_device_train_batch_size"] == 4
    assert recorded["data"]["num_workers"] == 0
    page = html.unescape(Path("out/report.html").read_text())
    assert "4 (chosen: 16 training clips in an epoch, at most 8 on a CPU)" in page
    finetune.main(words)
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"training\.per_device_train_batch_size differ"):
        finetune.main([*words, "--training.per_device_train_batch_size=2"])
