"""Model behind the page of `clipvid app`: answers for several users, refusals, and options of the verb."""

import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import shake_adapters
from search_world import build, write_videos
from test_verbs import refusal

import clipvid
from clipvid.app.label_list import LONGEST_NAME, MAX_CLASSES
from clipvid.app.shared_model import SharedModel, parse_labels
from clipvid.data.reader import VideoError

LABELS = ["walking", "running"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def model(make_model):
    return shake_adapters(make_model("ila", LABELS, num_frames=4))


@pytest.fixture(scope="module")
def shared(model):
    return SharedModel(model)


def expected_scores(model, video, labels):
    """Return the scores of a predictor with these classes."""
    before = model.labels
    model.set_labels(labels)
    scores = clipvid.Predictor(model).scores(video).tolist()
    model.set_labels(before)
    return dict(zip(labels, scores, strict=True))


def test_users_with_different_classes_get_the_scores_of_their_classes(model, videos):
    video = str(videos / "short.mp4")
    texts = ["walking\nrunning", "a cat\n\n a dog \na cat\na bird", "left", "running\nwalking"]
    expected = [expected_scores(model, video, parse_labels(text)) for text in texts]
    shared = SharedModel(model)
    with ThreadPoolExecutor(4) as pool:
        actual = list(pool.map(lambda text: shared.scores(video, text), texts * 5))
    assert [list(scores) for scores in actual] == [list(scores) for scores in expected * 5]
    for scores, same in zip(actual, expected * 5, strict=True):
        assert scores == pytest.approx(same, abs=1e-6)


def test_classes_that_fail_are_set_again_at_the_next_request(model, videos, monkeypatch):
    shared, video = SharedModel(model), str(videos / "short.mp4")
    expected = expected_scores(model, video, ["a cat", "a dog"])
    with monkeypatch.context() as patch:
        patch.setattr("clipvid.model.video_clip.label_prompts", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shared.scores(video, "a cat\na dog")
    assert shared.scores(video, "a cat\na dog") == pytest.approx(expected, abs=1e-6)
    assert set(shared.scores(video, shared.label_text)) == set(LABELS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n\t\n", "there are no classes"),
        ("\n".join(map(str, range(MAX_CLASSES + 1))), f"there are {MAX_CLASSES + 1} classes"),
        ("a" * (LONGEST_NAME + 1), "one name per line"),
    ],
    ids=["none", "many", "long"],
)
def test_class_names_out_of_range_are_refused(shared, videos, text, message):
    with pytest.raises(clipvid.InputError, match=message):
        shared.scores(str(videos / "short.mp4"), text)


def test_head_without_text_keeps_its_classes(make_model, videos):
    model = make_model(labels=LABELS, head="linear")
    shared, video = SharedModel(model), str(videos / "short.mp4")
    assert not shared.has_free_labels
    assert shared.scores(video, "a cat") == pytest.approx(
        dict(zip(LABELS, clipvid.Predictor(model).scores(video).tolist(), strict=True))
    )
    model.labels = []
    with pytest.raises(clipvid.InputError, match="--labels"):
        SharedModel(model)


def test_model_without_classes_answers_for_those_of_a_request(make_model, videos):
    shared = SharedModel(make_model())
    assert shared.label_text == ""
    with pytest.raises(clipvid.InputError, match="there are no classes"):
        shared.scores(str(videos / "short.mp4"), "")
    assert set(shared.scores(str(videos / "short.mp4"), "a cat\na dog")) == {"a cat", "a dog"}


def test_timeline_is_drawn_for_longer_videos_with_a_bounded_number_of_windows(shared, videos, monkeypatch):
    assert shared.timeline(str(videos / "short.mp4"), "", "short.mp4") is None
    monkeypatch.setattr("clipvid.app.shared_model._HOP", 0.001)
    monkeypatch.setattr("clipvid.app.shared_model._MOST_POINTS", 10)
    steps = []
    picture = shared.timeline(
        str(videos / "constant.mp4"), shared.label_text, "$a$<b>.mp4", lambda *counts: steps.append(counts)
    )
    assert picture.size == (1000, 400)
    assert len(set(picture.convert("RGB").getdata())) > 10
    assert steps[-1][0] == steps[-1][1]
    assert 5 <= steps[-1][1] <= 11


def test_explanation_has_the_picture_and_the_sentence_of_clipvid_explain(shared, model, videos, tmp_path):
    video = videos / "constant.mp4"
    picture, sentence = shared.explain(str(video), shared.label_text, "constant.mp4")
    expected = clipvid.explain(model, video)
    assert sentence == expected.sentence
    assert picture.size == (4 * 224, 2 * 224)


def test_search_returns_the_moments_of_the_index(model, videos, tmp_path, make_model):
    index = build(videos, model, tmp_path / "index")
    shared = SharedModel(model, index)
    assert shared.search(" a dog ", "", 3) == index.search(model, "a dog", top_k=3)
    assert shared.search("a dog", "a cat", 2) == index.search(model, "a dog", "a cat", top_k=2)
    with pytest.raises(clipvid.InputError, match="expected at least one word"):
        shared.search(" ", "", 3)
    with pytest.raises(clipvid.InputError, match="another"):
        SharedModel(make_model("ila", LABELS, num_frames=5), index)


def test_search_without_an_index_names_the_option(shared):
    with pytest.raises(clipvid.InputError, match="--index INDEX"):
        shared.search("a dog", "", 3)


def test_unreadable_video_is_an_error_for_users(shared, tmp_path):
    (tmp_path / "notes.mp4").write_text("Not a video.\n")
    for answer in (shared.scores, lambda *args: shared.explain(*args, "notes.mp4")):
        with pytest.raises(VideoError, match="text file"):
            answer(str(tmp_path / "notes.mp4"), shared.label_text)


def test_missing_gradio_is_refused_with_the_command_that_installs_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    line = refusal(capsys, "app", ["--model", "tiny"])
    assert line == "clipvid app: the page needs gradio; install it: pip install 'clipvid[app]'"


def test_addresses_and_limits_are_checked_before_the_model_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr("clipvid.app.server.check_gradio", lambda: None)
    assert "--max_upload 0" in refusal(capsys, "app", ["--model", "nowhere", "--max_upload", "0"])
    assert "--port 70000" in refusal(capsys, "app", ["--model", "nowhere", "--port", "70000"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}" in refusal(capsys, "app", ["--model", "nowhere", "--port", str(port)])
    assert "--host 192.0.2.1" in refusal(capsys, "app", ["--model", "nowhere", "--host", "192.0.2.1"])
