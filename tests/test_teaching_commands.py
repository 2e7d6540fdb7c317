"""Commands that the tab *Teach* prints after a model was kept, and the options of the verb."""

import json
import shlex

import pytest
from teach_world import CLASS_OF_COLOR, true_label, write_clips
from test_verbs import refusal, run

import clipvid
from clipvid.app.shared_model import SharedModel
from clipvid.app.teach_blocks import saved_blocks, status_blocks, trained_blocks
from clipvid.app.teaching import Teacher, opened_teacher
from clipvid.app.teaching_state import Session
from clipvid.evaluation.report import render_block


@pytest.fixture(scope="module")
def taught(make_model, tmp_path_factory) -> Teacher:
    """Return a teacher whose model is kept."""
    top = tmp_path_factory.mktemp("teach it's")
    folder = write_clips(top / "my clips", 5)
    teacher = Teacher(SharedModel(make_model(num_frames=2)), folder, top / "out")
    teacher.clips.start()
    teacher.clips.wait()
    session = Session()
    teacher.propose(session)
    while session.clip is not None:
        teacher.label(session, session.turn, true_label(session.clip))
    teacher.save(teacher.train())
    return teacher


@pytest.fixture(scope="module")
def commands(taught) -> dict[str, list[str]]:
    """Return the arguments of each command by its verb."""
    words = [shlex.split(block.code) for block in saved_blocks(taught) if block.code]
    assert {each[0] for each in words} == {"clipvid"}
    return {verb: args for _, verb, *args in words}


def test_printed_predict_answers_for_all_clips(commands, taught, capsys):
    run("predict", commands["predict"])
    answers = {}
    for line in capsys.readouterr().out.splitlines():
        answer = json.loads(line)
        answers[answer["video"]] = answer["predictions"][0]["label"]
    assert len(answers) == len(taught.clips.names)
    assert answers == {video: true_label(video) for video in answers}


def test_printed_push_uploads_the_model_without_the_labels(commands, capsys):
    run("push", [*commands["push"], "--dry_run"])
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown
    assert "labels.csv" not in shown
    assert "teaching.json" not in shown


def test_printed_finetune_trains_on_the_labels(commands, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    args = [
        *commands["finetune"],
        "--training.epochs=1",
        "--data.num_workers=0",
        "--model.num_frames=2",
        "--selection.folds=0",
    ]
    run("finetune", args)
    output = args[args.index("--output_dir") + 1]
    assert sorted(clipvid.from_pretrained(output).labels) == sorted(CLASS_OF_COLOR.values())


def test_blocks_show_counts_and_escape_names(taught):
    shown = "".join(map(render_block, status_blocks(taught.status())))
    assert "15 clips labeled." in shown
    assert "it&#39;s &#34;jumping&#34;, high" in shown
    trained = "".join(map(render_block, trained_blocks(taught.train())))
    assert "The new head is not better than the kept model. Label more clips." in trained


def test_folder_in_use_is_refused(taught):
    def open_again():
        return opened_teacher(taught._shared, taught.clips.folder, taught.output)

    with open_again(), pytest.raises(clipvid.RunError, match="is in use by process"), open_again():
        pass


def test_output_in_the_folder_of_the_model_is_refused(capsys, taught):
    out = str(taught.output)
    line = refusal(capsys, "app", ["--model", out, "--teach", str(taught.clips.folder), "--output_dir", out])
    assert line.endswith("is the folder of --model; choose another one")
