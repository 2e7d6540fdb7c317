"""Tab *Teach* of `clipvid app` in a real browser. Needs gradio, playwright and chromium."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from browser_page import HOSTILE, focus, free_port, open_tab, watched_tab
from conftest import posix_only
from teach_world import write_clip_of_color, write_clips

from clipvid.app.server import served
from clipvid.app.shared_model import SharedModel
from clipvid.app.teaching import Teacher

pytest.importorskip("gradio", reason="needs gradio: pip install 'clipvid[app]'")
import gradio
import httpx

NAMES = {"red": f"red {HOSTILE}", "green": '"green", {{value}}', "blue": "it's ${alert(1)} blue"}
ODD_CLIP = f"red {HOSTILE} {{{{value}}}} ${{alert(1)}}.mp4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = write_clips(tmp_path_factory.mktemp("teach") / "clips", 4)
    if os.name != "nt":
        write_clip_of_color(folder / ODD_CLIP, "red", 99)
        (folder / f"notes {HOSTILE}.mp4").write_text("Not a video.\n")
    return folder


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def teacher(make_model, folder, output) -> Teacher:
    return Teacher(SharedModel(make_model(num_frames=2)), folder, output)


@pytest.fixture
def address(teacher):
    with served(teacher._shared, "model", "127.0.0.1", free_port(), 1, teacher) as address:
        yield address


def labels_in(output: Path) -> dict[str, str]:
    """Return the labels on disk by clip."""
    if not (output / "labels.csv").exists():
        return {}
    with (output / "labels.csv").open(newline="", encoding="utf-8") as file:
        return {row["path"]: row["label"] for row in csv.DictReader(file)}


def test_clips_are_not_served_as_files(address, teacher):
    teacher.clips.wait()
    clip = teacher.clips.path(teacher.clips.names[0])
    for place in (clip, teacher.output / "labels.csv", f"{clip.parent}/../../secret"):
        assert httpx.get(f"{address}gradio_api/file={place}").status_code in (403, 404)
    names = httpx.get(f"{address}gradio_api/info").json()["named_endpoints"]
    assert set(names) == {"/classify", "/explain"}


def test_program_cannot_name_a_clip(address, teacher, output):
    """Send the events of the tab without having opened it."""
    teacher.clips.wait()
    config = httpx.get(f"{address}config").json()
    for event in config["dependencies"]:
        if event["api_visibility"] == "public" or not event["inputs"]:
            continue
        data = ["../secret.mp4" for _ in event["inputs"]]
        body = {"data": data, "fn_index": event["id"], "session_hash": "a"}
        httpx.post(f"{address}gradio_api/queue/join", json=body)
    httpx.get(f"{address}gradio_api/queue/data?session_hash=a", timeout=60)
    assert labels_in(output) == {}
    assert not list(output.glob("*"))


def test_full_disk_is_one_line(teacher, monkeypatch):
    from clipvid.app.teach_tab import _Events, _Tab

    tab, events = _Tab(), _Events(teacher)
    teacher.clips.start()
    teacher.clips.wait()
    teacher.propose(tab.session)
    clip, turn = tab.session.clip, tab.session.turn

    def fail(*args) -> None:
        raise OSError(28, "No space left on device", "/secret/labels.csv")

    with monkeypatch.context() as patch:
        patch.setattr("clipvid.app.label_list.write_text", fail)
        with pytest.raises(gradio.Error) as error:
            events.label(tab, turn, "red")
    assert error.value.message == "a file could not be written or read: No space left on device"
    assert (tab.session.clip, tab.session.turn) == (clip, turn)
    events.label(tab, turn, "red")
    assert list(labels_in(teacher.output)) == [clip]


# A real browser


@pytest.fixture
def tab(browser, address):
    with watched_tab(browser, address) as tab:
        show_teach(tab)
        yield tab


def show_teach(tab) -> None:
    tab.get_by_role("tab", name="Teach").click()
    tab.wait_for_selector("#clip .frame")


def clip_of(tab) -> str:
    return tab.inner_text("#clip small")


def name_of(clip: str) -> str:
    return NAMES[Path(clip).name.split()[0]]


def button_of(tab, name: str):
    """Return the button of a class, or None."""
    buttons = tab.locator("#class-buttons button:visible")
    return next((button for button in buttons.all() if button.inner_text().endswith(name)), None)


def wait_for_other_clip(tab, clip: str) -> None:
    tab.wait_for_function("clip => document.querySelector('#clip small')?.innerText !== clip", arg=clip)


def type_class(tab, name: str) -> None:
    tab.fill("#new-class :is(input, textarea)", name)
    tab.press("#new-class :is(input, textarea)", "Enter")


def label_by_mouse(tab, count: int) -> list[str]:
    """Label the next clips, and return their names."""
    clips = []
    for _ in range(count):
        clip = clip_of(tab)
        button = button_of(tab, name_of(clip))
        if button is None:
            type_class(tab, name_of(clip))
        else:
            button.click()
        wait_for_other_clip(tab, clip)
        clips.append(clip)
    return clips


def wait_for_count(tab, text: str) -> None:
    tab.locator("#teach-status").get_by_text(text).wait_for()


@pytest.mark.slow
def test_mouse_labels_trains_and_keeps_a_model_that_predict_loads(tab, folder, output):
    clips = label_by_mouse(tab, 9)
    assert labels_in(output) == {clip: name_of(clip) for clip in clips}
    assert tab.is_disabled("#save")
    tab.click("#train")
    tab.locator("#trained").get_by_text("of 9").first.wait_for()
    tab.click("#save")
    tab.get_by_text("The model is saved.").wait_for()
    assert "clipvid push --model" in tab.inner_text("#trained")
    command = [sys.executable, "-m", "clipvid", "predict", "--model", str(output), str(folder / "blue 2.mp4")]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(process.stdout)["predictions"][0]["label"] in NAMES.values()
    assert tab.is_disabled("#save")
    tab.click("#train")
    tab.get_by_text("The new head is not better than the kept model.").wait_for()
    assert tab.is_disabled("#save")


@pytest.mark.slow
def test_keyboard_labels_skips_takes_back_trains_and_keeps(tab, output):
    tab.evaluate("document.activeElement.blur()")
    for _ in range(10):  # until the page listens to keys
        clip = clip_of(tab)
        tab.keyboard.press("s")
        tab.wait_for_timeout(1000)
        if clip_of(tab) != clip:
            break
    labeled = {}
    while len(labeled) < 8:
        clip = clip_of(tab)
        button = button_of(tab, name_of(clip))
        if button is None:
            focus(tab, "#new-class :is(input, textarea)")
            tab.keyboard.type(name_of(clip))
            tab.keyboard.press("Enter")
            wait_for_other_clip(tab, clip)
            focus(tab, "#teach-skip")
        else:
            tab.keyboard.press(button.inner_text()[0])
            wait_for_other_clip(tab, clip)
        labeled[clip] = name_of(clip)
    assert labels_in(output) == labeled
    clip = clip_of(tab)
    tab.keyboard.press("U")
    wait_for_other_clip(tab, clip)
    last = clip_of(tab)
    assert labels_in(output) == {name: label for name, label in labeled.items() if name != last}
    tab.keyboard.press("Control+1")
    tab.keyboard.press("0")
    tab.keyboard.press("9")
    tab.wait_for_timeout(300)
    assert (clip_of(tab), len(labels_in(output))) == (last, 7)
    tab.keyboard.press(button_of(tab, name_of(last)).inner_text()[0])
    wait_for_other_clip(tab, last)
    focus(tab, "#train")
    tab.keyboard.press("Enter")
    tab.locator("#trained table").wait_for()
    focus(tab, "#save")
    tab.keyboard.press("Space")
    tab.get_by_text("The model is saved.").wait_for()
    assert (output / "config.json").exists()


@pytest.mark.slow
def test_reload_keeps_labels_and_classes(tab, output):
    clips = label_by_mouse(tab, 4)
    tab.reload()
    show_teach(tab)
    wait_for_count(tab, "4 clips labeled.")
    assert clip_of(tab) not in clips
    for name in set(labels_in(output).values()):
        assert button_of(tab, name) is not None
    assert not tab.inner_text("#trained").strip()
    label_by_mouse(tab, 1)
    assert len(labels_in(output)) == 5


@pytest.mark.slow
def test_two_tabs_lose_no_labels(tab, address, output):
    other = open_tab(tab.context, address)
    show_teach(other)
    assert clip_of(tab) != clip_of(other)
    labeled = []
    for _ in range(3):
        labeled += label_by_mouse(tab, 1) + label_by_mouse(other, 1)
    assert len(set(labeled)) == 6
    assert labels_in(output) == {clip: name_of(clip) for clip in labeled}
    for each in (tab, other):
        each.click("#train")
        each.locator("#trained").get_by_text("of 6").first.wait_for()


@pytest.mark.slow
def test_second_press_before_the_next_clip_labels_nothing(tab, output):
    label_by_mouse(tab, 1)
    clip = clip_of(tab)
    tab.evaluate("for (let i = 0; i < 5; i++) document.getElementById('class-1').click()")
    wait_for_other_clip(tab, clip)
    tab.wait_for_timeout(1000)
    assert len(labels_in(output)) == 2
    wait_for_count(tab, "2 clips labeled.")


@posix_only
@pytest.mark.slow
def test_wrong_files_and_odd_names_are_shown_as_text(tab, folder, output):
    tab.locator("#teach-status summary").get_by_text("1 file skipped").wait_for()
    tab.click("#teach-status summary")
    skipped = tab.inner_text("#teach-status .folded")
    assert f"notes {HOSTILE}.mp4" in skipped
    assert "it is a text file, not a video" in skipped
    assert str(folder) not in tab.content()
    seen = set()
    while clip_of(tab) != ODD_CLIP:
        clip = clip_of(tab)
        assert clip not in seen
        seen.add(clip)
        tab.click("#teach-skip")
        wait_for_other_clip(tab, clip)
    type_class(tab, "7")
    tab.get_by_text("is not a class name").wait_for()
    assert not labels_in(output)
    type_class(tab, NAMES["red"])
    wait_for_other_clip(tab, ODD_CLIP)
    assert labels_in(output) == {ODD_CLIP: NAMES["red"]}
    assert NAMES["red"] in tab.inner_text("#teach-status")
    assert button_of(tab, NAMES["red"]) is not None


@posix_only
@pytest.mark.slow
def test_labels_survive_a_killed_program_which_one_process_may_use_at_a_time(browser, folder, output):
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "clipvid", "app", "--model", "tiny", "--num_frames", "2", "--port", str(port)]
    command += ["--teach", str(folder), "--output_dir", str(output)]

    def start() -> subprocess.Popen:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert address in process.stdout.readline()
        return process

    process = start()
    with watched_tab(browser, address) as tab:
        show_teach(tab)
        clips = label_by_mouse(tab, 3)
        process.kill()
        process.communicate()
    assert labels_in(output) == {clip: name_of(clip) for clip in clips}
    process = start()
    other = [*command[:-5], str(free_port()), *command[-4:]]
    second = subprocess.run(other, capture_output=True, text=True, timeout=120)
    assert second.returncode == 1
    assert "is in use by process" in second.stderr
    with watched_tab(browser, address) as tab:
        show_teach(tab)
        wait_for_count(tab, "3 clips labeled.")
        label_by_mouse(tab, 1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(labels_in(output)) == 4
    assert not (output / ".lock").exists()
