"""Teacher behind the page: labels of several tabs, proposals, training, and the model that is kept."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import posix_only
from teach_world import LABELS, true_label, write_clip_of_color, write_clips
from test_verbs import run

import clipvid
from clipvid.app.label_list import LabelList
from clipvid.app.shared_model import SharedModel
from clipvid.app.teaching import CHECK_EVERY, Teacher
from clipvid.app.teaching_state import Session
from clipvid.data.manifest import load_manifest

PER_COLOR = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("teach") / "clips", PER_COLOR)


@pytest.fixture(scope="module")
def shared(make_model) -> SharedModel:
    return SharedModel(make_model(num_frames=2))


@contextmanager
def teaching(shared: SharedModel, folder: Path, output: Path):
    """Yield a teacher that has encoded all clips."""
    teacher = Teacher(shared, folder, output)
    teacher.clips.start()
    teacher.clips.wait()
    yield teacher


@pytest.fixture
def teacher(shared, folder, tmp_path):
    with teaching(shared, folder, tmp_path / "out") as teacher:
        yield teacher


def label_clips(teacher: Teacher, count: int, session: Session | None = None) -> Session:
    """Label the next clips as their names say."""
    session = session or Session()
    if session.clip is None:
        teacher.propose(session)
    for _ in range(count):
        teacher.label(session, session.turn, true_label(session.clip))
    return session


def test_clips_are_proposed_until_all_are_labeled(teacher):
    session = label_clips(teacher, 3)
    assert {true_label(clip) for clip, _ in session.history} == set(LABELS)
    label_clips(teacher, 3 * PER_COLOR - 3, session)
    assert session.clip is None
    assert {clip: true_label(clip) for clip in teacher.clips.names} == LabelList(teacher.output / "labels.csv").copy()
    status = teacher.status()
    assert status.counts == dict.fromkeys(LABELS, PER_COLOR)
    assert (status.done, status.total, status.failure, status.missing) == (3 * PER_COLOR, 3 * PER_COLOR, None, 0)


def test_checks_compare_guesses_with_labels(teacher):
    session, checked = Session(), []
    teacher.propose(session)
    while session.clip is not None:
        if session.guess is not None:
            checked.append((session.clip, session.guess))
            assert session.turn % CHECK_EVERY == 0
        teacher.label(session, session.turn, true_label(session.clip))
    assert len(checked) == 3 * PER_COLOR // CHECK_EVERY
    agreement = teacher.status().checks
    assert (agreement.hits, agreement.count) == (
        sum(true_label(clip) == guess for clip, guess in checked),
        len(checked),
    )
    clip, guess = checked[-1]
    session = Session(clip=clip, turn=5)
    teacher.label(session, 5, next(label for label in LABELS if label != guess))
    assert teacher.status().checks.hits == agreement.hits - (true_label(clip) == guess)


def test_answer_to_an_earlier_clip_is_ignored(teacher):
    session = label_clips(teacher, 1)
    clip, turn = session.clip, session.turn
    teacher.label(session, turn - 1, LABELS[0])
    teacher.skip(session, turn - 1)
    assert (session.clip, session.turn, len(teacher.status().counts)) == (clip, turn, 1)


def test_skipped_clips_do_not_return_in_their_tab(teacher):
    session = Session()
    teacher.propose(session)
    shown = []
    while session.clip is not None:
        shown.append(session.clip)
        teacher.skip(session, session.turn)
    assert sorted(shown) == sorted(teacher.clips.names)
    other = Session()
    teacher.propose(other)
    assert other.clip is not None
    assert teacher.status().counts == {}


def test_undo_restores_the_former_label_and_shows_the_clip(teacher):
    session = label_clips(teacher, 2)
    second, first = session.history[1][0], session.history[0][0]
    teacher.undo(session)
    assert session.clip == second
    assert list(LabelList(teacher.output / "labels.csv").copy()) == [first]
    teacher.label(session, session.turn, "another class")
    teacher.undo(session)
    teacher.undo(session)
    teacher.undo(session)
    assert session.clip == first
    assert not (teacher.output / "labels.csv").exists()


def test_class_names_that_differ_in_case_only_are_one_class(teacher):
    session = label_clips(teacher, 1)
    name = next(iter(teacher.status().counts))
    teacher.label(session, session.turn, f"  {name.upper()} ")
    assert teacher.status().counts == {name: 2}
    with pytest.raises(clipvid.InputError, match="not a class name"):
        teacher.label(session, session.turn, "3")
    assert session.clip is not None


def test_tabs_show_different_clips_and_lose_no_labels(teacher):
    sessions = [Session() for _ in range(3)]
    for session in sessions:
        teacher.propose(session)
    assert len({session.clip for session in sessions}) == 3

    def work(session: Session) -> list[str]:
        while session.clip is not None:
            teacher.label(session, session.turn, true_label(session.clip))
        return [clip for clip, _ in session.history]

    with ThreadPoolExecutor(3) as pool:
        labeled = [clip for clips in pool.map(work, sessions) for clip in clips]
    assert set(labeled) == set(teacher.clips.names)
    assert LabelList(teacher.output / "labels.csv").copy() == {clip: true_label(clip) for clip in labeled}


def test_clip_of_a_closed_tab_is_shown_when_no_other_is_left(teacher):
    closed = Session()
    teacher.propose(closed)
    session = label_clips(teacher, 3 * PER_COLOR - 1)
    assert session.clip == closed.clip


def test_restart_continues_without_reading_the_clips(shared, folder, teacher, monkeypatch):
    label_clips(teacher, 7)
    before = teacher.status()
    monkeypatch.setattr(shared, "video_features", lambda clips: 1 / 0)
    with teaching(shared, folder, teacher.output) as again:
        assert again.status() == before
        assert again.class_names() == teacher.class_names()
        names, features = teacher.clips.ready()
        same_names, same = again.clips.ready()
        assert dict(zip(names, features.tolist(), strict=True)) == dict(zip(same_names, same.tolist(), strict=True))


def test_features_are_those_of_single_clips(shared, teacher):
    names, features = teacher.clips.ready()
    predictor = clipvid.Predictor(with_labels(shared.model))
    for name, own in zip(names[:3], features[:3], strict=True):
        with clipvid.data.reader.open_video(teacher.clips.path(name)) as video, torch.no_grad():
            alone = shared.model.encode_video(predictor.reader.read(video))[0]
        torch.testing.assert_close(own, alone, atol=1e-5, rtol=1e-5)


def with_labels(model):
    model.set_labels(["a", "b"])
    return model


def test_clips_can_be_labeled_while_others_are_encoded(shared, folder, tmp_path, monkeypatch):
    may_continue, encode, passes = threading.Event(), shared.video_features, []

    def encode_and_wait(clips):
        passes.append(len(clips))
        if len(passes) > 1:
            may_continue.wait(60)
        return encode(clips)

    monkeypatch.setattr(shared, "video_features", encode_and_wait)
    monkeypatch.setenv("CLIPVID_CACHE", str(tmp_path / "cache"))
    teacher, session = Teacher(shared, folder, tmp_path / "out"), Session()
    teacher.propose(session)
    assert session.clip is None
    teacher.clips.start()
    while teacher.clips.done() < 4:  # one pass of the model
        threading.Event().wait(0.01)
    label_clips(teacher, 2, session)
    assert teacher.status().done < teacher.status().total
    assert not teacher.status().skipped
    threading.Timer(0.2, may_continue.set).start()
    teacher.clips.close()
    assert teacher.status().done < teacher.status().total


def test_failure_of_the_thread_is_in_the_status(shared, folder, tmp_path, monkeypatch):
    def fail(clips):
        raise RuntimeError("CUDA out of memory\nmore")

    monkeypatch.setattr(shared, "video_features", fail)
    monkeypatch.setattr("threading.excepthook", lambda args: None)
    monkeypatch.setenv("CLIPVID_CACHE", str(tmp_path / "cache"))
    with teaching(shared, folder, tmp_path / "out") as teacher:
        assert teacher.status().failure == "CUDA out of memory more"


@posix_only
def test_files_that_cannot_be_used_are_skipped_with_reasons(shared, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    write_clip_of_color(folder / "red 1.mp4", "red", 1)
    write_clip_of_color(tmp_path / "secret.mp4", "blue", 2)
    (folder / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (folder / "inside.mp4").symlink_to(folder / "red 1.mp4")
    (folder / "text.mp4").write_text("Not a video.\n")
    (folder / "two\nlines.mp4").write_text("x")
    (folder / " space.mp4").write_text("x")
    (folder / ".hidden.mp4").write_text("x")
    with open(os.fsencode(folder) + b"/\xff.mp4", "wb"):
        pass
    with teaching(shared, folder, tmp_path / "out") as teacher:
        status = teacher.status()
        assert sorted(teacher.clips.ready()[0]) == ["inside.mp4", "red 1.mp4"]
    assert (status.done, status.total) == (3, 3)
    reasons = dict(status.skipped)
    assert "leads out of the folder" in reasons.pop("link.mp4")
    assert "text file" in reasons.pop("text.mp4")
    assert len(reasons) == 3
    assert all("rename the file" in reason for reason in reasons.values())
    with pytest.raises(clipvid.InputError, match="not a clip of the folder"):
        teacher.clips.path("../secret.mp4")


def test_folders_that_cannot_be_used_are_refused(shared, folder, tmp_path):
    with pytest.raises(clipvid.InputError, match="is not a folder"):
        Teacher(shared, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(clipvid.InputError, match="no usable video"):
        Teacher(shared, tmp_path / "empty", tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(clipvid.InputError, match=r"no labels\.csv and contains 'config\.json'"):
        Teacher(shared, folder, tmp_path / "other")
    with pytest.raises(clipvid.InputError, match="is a file"):
        Teacher(shared, folder, tmp_path / "other" / "config.json")
    for content in ("{", "[]", '{"checks": {}}', '{"checks": {"a": 1}, "repeats": {}, "kept": {}, "accuracy": {}}'):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "teaching.json").write_text(content)
        with pytest.raises(clipvid.InputError, match="damaged"):
            Teacher(shared, folder, tmp_path / "out")


# Training


def test_head_is_trained_compared_and_kept_only_if_better(teacher, shared, capsys):
    with pytest.raises(clipvid.InputError, match="no clip is labeled"):
        teacher.train()
    label_clips(teacher, 12)
    trained = teacher.train()
    assert trained.current.new.count == trained.current.other.count == 12
    assert trained.current.other.hits == sum(
        guess == label
        for guess, label in zip(zero_shot(shared, teacher, trained), trained.labels.values(), strict=True)
    )
    assert trained.kept is None
    assert trained.is_better
    teacher.save(trained)
    model = clipvid.from_pretrained(teacher.output)
    assert model.labels == [name for name in teacher.class_names() if name in trained.labels.values()]
    unseen = [name for name in teacher.clips.names if name not in trained.labels]
    predictor = clipvid.Predictor(model)
    for name in unseen:
        assert predictor(str(teacher.clips.path(name)), 1)[0]["label"] == trained.guesses[name] == true_label(name)
    run("predict", ["--model", str(teacher.output), str(teacher.clips.path(unseen[0]))])
    assert true_label(unseen[0]) == json.loads(capsys.readouterr().out)["predictions"][0]["label"]
    with pytest.raises(clipvid.InputError, match="not better"):
        teacher.save(trained)


def zero_shot(shared: SharedModel, teacher: Teacher, trained) -> list[str]:
    """Return the answers of the loaded model, from the files."""
    text = "\n".join(trained.head.labels)
    scores = [shared.scores(str(teacher.clips.path(name)), text) for name in trained.labels]
    return [max(each, key=each.get) for each in scores]


def test_list_of_labels_trains_a_model(teacher):
    label_clips(teacher, 9)
    manifest = load_manifest(teacher.clips.folder, str(teacher.output / "labels.csv"), None)
    assert {sample.path: manifest.class_names[sample.label] for sample in manifest.samples} == LabelList(
        teacher.output / "labels.csv"
    ).copy()


def test_kept_model_is_replaced_only_by_a_better_one(teacher):
    session = Session()
    teacher.propose(session)
    wrong = dict(zip(LABELS, [*LABELS[1:], LABELS[0]], strict=True))
    for number in range(9):  # a third of the labels is wrong
        label = true_label(session.clip)
        teacher.label(session, session.turn, wrong[label] if number % 3 == 0 else label)
    first = teacher.train()
    teacher.save(first)
    label_clips(teacher, 6, session)
    with teaching(teacher._shared, teacher.clips.folder, teacher.output) as again:
        second = again.train()
        assert second.kept.new.count == 15  # all of them were answered before they were labeled, or held out
        later = [clip for clip in second.labels if clip not in first.labels]
        assert len(later) == 6
        hits = sum(first.guesses[clip] == label for clip, label in second.labels.items())
        assert second.kept.other.hits == hits
        assert second.is_better == (second.current.is_better and second.kept.new.hits > hits)


def test_model_is_not_kept_if_the_loaded_one_is_as_good(make_model, folder, tmp_path):
    model = make_model(num_frames=2)
    with teaching(SharedModel(model), folder, tmp_path / "first") as teacher:
        label_clips(teacher, 3 * PER_COLOR)
        teacher.save(teacher.train())
    loaded = SharedModel(clipvid.from_pretrained(tmp_path / "first"))
    with teaching(loaded, folder, tmp_path / "second") as teacher:
        label_clips(teacher, 9)
        trained = teacher.train()
        assert trained.current.other.hits == 9
        assert not trained.is_better
        with pytest.raises(clipvid.InputError, match="not better"):
            teacher.save(trained)
    assert not (tmp_path / "second" / "config.json").exists()


def test_model_whose_head_reads_patches_is_asked_about_the_files(make_model, folder, tmp_path):
    shared = SharedModel(make_model(num_frames=2, head={"name": "text", "prompt_layers": 1}))
    with teaching(shared, folder, tmp_path / "out") as teacher:
        label_clips(teacher, 6)
        trained = teacher.train()
        expected = zero_shot(shared, teacher, trained)
        hits = sum(guess == label for guess, label in zip(expected, trained.labels.values(), strict=True))
        assert trained.current.other.hits == hits


def test_clip_with_a_doubtful_label_is_shown_again(teacher):
    session = Session()
    teacher.propose(session)
    mistake = None
    while session.clip is not None:
        label = true_label(session.clip)
        if mistake is None and session.turn == 8:
            mistake, label = session.clip, next(other for other in LABELS if other != label)
        teacher.label(session, session.turn, label)
        if len(session.history) == 15:
            teacher.train()
    assert teacher.status().repeats == (1, 1)
    assert LabelList(teacher.output / "labels.csv").get(mistake) == true_label(mistake)
