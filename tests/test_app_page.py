"""Page of `clipvid app`: requests of other programs, then a real browser. Needs gradio, playwright and chromium."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from browser_page import HOSTILE, focus, free_port, open_tab, watched_tab
from conftest import posix_only, shake_adapters
from search_world import build, write_videos

import clipvid
from clipvid.app.server import served
from clipvid.app.shared_model import SharedModel

pytest.importorskip("gradio", reason="needs gradio: pip install 'clipvid[app]'")
import gradio_client
import httpx

LABELS = ["walking", HOSTILE, "</script><script>window.hacked=1</script>", "{{value}} ${alert(1)}"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = write_videos(tmp_path_factory.mktemp("videos"))
    if os.name != "nt":
        shutil.copy(folder / "short.mp4", folder / f"{HOSTILE} {{{{value}}}} ${{alert(1)}}.mp4")
    return folder


@pytest.fixture(scope="module")
def model(make_model) -> clipvid.VideoCLIP:
    return shake_adapters(make_model("ila", LABELS, num_frames=4))


@pytest.fixture(scope="module")
def address(model, videos, tmp_path_factory):
    index = build(videos, model, tmp_path_factory.mktemp("index") / "index")
    with served(SharedModel(model, index), f"models/{HOSTILE}", "127.0.0.1", free_port(), 1) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return gradio_client.Client(address, verbose=False)


def call(address: str, name: str, path: str) -> list[str]:
    """Return the events of a request with a path instead of an upload, which gradio's client would upload."""
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "a cat"]
    event = httpx.post(f"{address}gradio_api/call/{name}", json={"data": data}).json()["event_id"]
    lines = httpx.get(f"{address}gradio_api/call/{name}/{event}", timeout=60).text.splitlines()
    return [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]


def test_program_gets_scores_explanation_and_moments(client, model, videos):
    upload = gradio_client.handle_file(str(videos / "short.mp4"))
    scores, *_ = client.predict(upload, "a cat\na dog", api_name="/classify")
    assert {each["label"] for each in scores["confidences"]} == {"a cat", "a dog"}
    sentence, picture = client.predict(upload, "\n".join(LABELS), api_name="/explain")
    assert sentence["value"] == clipvid.explain(model, videos / "short.mp4").sentence
    assert Path(picture["value"]).stat().st_size > 1000
    moments = client.predict("a dog", "", 2, api_name="/search")
    assert moments.count("<li") == 2


def test_several_programs_at_once_get_their_classes(address, videos):
    def classify(label: str) -> set[str]:
        own = gradio_client.Client(address, verbose=False)
        upload = gradio_client.handle_file(str(videos / "short.mp4"))
        scores, *_ = own.predict(upload, f"a {label}\nno {label}", api_name="/classify")
        return {each["label"] for each in scores["confidences"]}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(classify, "abcd")) == [{f"a {each}", f"no {each}"} for each in "abcd"]


def test_only_uploads_are_read(client, address, videos, tmp_path):
    with (videos / "short.mp4").open("rb") as content:
        (upload,) = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.mp4", content)}).json()
    secret = tmp_path / "secret.mp4"
    shutil.copy(videos / "short.mp4", secret)
    traversal = f"{Path(upload).parent}/../../../../../../..{secret}"
    places = ["/etc/passwd", str(secret), str(videos / "short.mp4"), os.path.abspath(__file__), traversal]
    for name in ("classify", "explain"):
        assert call(address, name, upload)[-1] == "complete"
        for place in [*places, "file:///etc/passwd"]:
            assert call(address, name, place)[-1] == "error"
    assert httpx.get(f"{address}gradio_api/file={upload}").status_code == 200
    for place in (*places, "pyproject.toml"):
        assert httpx.get(f"{address}gradio_api/file={place}").status_code in (403, 404)


def test_address_of_a_video_is_refused_and_not_downloaded(address, monkeypatch):
    downloads = []

    async def download(url: str, *args) -> str:
        downloads.append(url)
        return "nowhere.mp4"

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", download)
    for url in ("https://example.com/clip.mp4", "http://127.0.0.1:9/clip.mp4"):
        assert call(address, "classify", url) == ["error"]
    assert not downloads


def test_large_upload_is_refused(address, tmp_path):
    content = b"\0" * (2 * 2**20)
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": ("large.mp4", content, "video/mp4")})
    assert answer.status_code == 413


def test_errors_are_one_escaped_line(client, tmp_path):
    path = tmp_path / "notes & <b>.mp4"
    path.write_text("Not a video.\n")
    with pytest.raises(gradio_client.exceptions.AppError) as error:
        client.predict(gradio_client.handle_file(str(path)), "a cat", api_name="/classify")
    message = str(error.value)
    assert "it is a text file, not a video" in message
    assert "<" not in message
    assert tempfile.gettempdir() not in message


def test_headers_keep_the_browser_from_the_network(address):
    answer = httpx.get(address)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert httpx.get(address, headers={"Host": "example.com"}).status_code == 400
    config = httpx.get(f"{address}config").json()
    assert config["analytics_enabled"] is False


def test_uploads_are_deleted_at_the_end(model, videos):
    before = set(Path(tempfile.gettempdir()).glob("clipvid-app-*"))
    variable = os.environ.get("GRADIO_TEMP_DIR")
    with served(SharedModel(model), "model", "127.0.0.1", free_port(), 1) as address:
        with (videos / "short.mp4").open("rb") as content:
            (path,) = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.mp4", content)}).json()
        assert Path(path).is_file()
        assert len(set(Path(tempfile.gettempdir()).glob("clipvid-app-*")) - before) == 1
    assert not Path(path).exists()
    assert set(Path(tempfile.gettempdir()).glob("clipvid-app-*")) == before
    assert os.environ.get("GRADIO_TEMP_DIR") == variable


@posix_only
@pytest.mark.slow
def test_verb_serves_until_sigterm(tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "clipvid", "app", "--model", "tiny", "--labels", "a", "b", "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    assert f"http://127.0.0.1:{port}/" in process.stdout.readline()
    assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.split()) == (130, ["clipvid", "app:", "interrupted"])
    assert not list(tmp_path.glob("clipvid-app-*"))


# A real browser


@pytest.fixture
def tab(browser, address):
    with watched_tab(browser, address) as tab:
        yield tab


def upload(tab, path: Path) -> None:
    tab.set_input_files("#video input[type=file]", str(path))


def wait_for_scores(tab, label: str) -> None:
    """Wait until the scores name a class."""
    tab.locator("#scores").get_by_text(label).first.wait_for()


@pytest.mark.slow
def test_browser_shows_scores_timeline_and_explanation(tab, videos):
    upload(tab, videos / "constant.mp4")
    tab.wait_for_selector("#timeline img")
    for label in LABELS:
        wait_for_scores(tab, label)
    tab.click("#explain")
    tab.wait_for_selector("#explanation img")
    assert "of the picture" in tab.input_value("#sentence textarea")
    tab.fill("#labels textarea", "a cat\na dog")
    tab.click("#classify")
    wait_for_scores(tab, "a cat")
    assert not tab.locator("#explanation img").count()


@pytest.mark.slow
def test_browser_shows_no_timeline_of_a_short_video(tab, videos):
    upload(tab, videos / "short.mp4")
    wait_for_scores(tab, "walking")
    tab.wait_for_timeout(500)
    assert not tab.locator("#timeline img").count()


@pytest.mark.slow
def test_browser_shows_wrong_files_as_one_line(tab, videos, tmp_path):
    upload(tab, videos / "short.mp4")
    wait_for_scores(tab, "walking")
    tab.get_by_label("Clear").first.click()
    (tmp_path / f"{HOSTILE}.mp4").write_text("Not a video.\n")
    upload(tab, tmp_path / f"{HOSTILE}.mp4")
    tab.get_by_text("it is a text file, not a video").wait_for()
    assert "walking" not in tab.inner_text("#scores")


@pytest.mark.slow
def test_tabs_of_a_browser_are_independent_and_a_reload_starts_over(tab, videos, address):
    other = open_tab(tab.context, address)
    other.fill("#labels textarea", "a cat\na dog")
    upload(tab, videos / "constant.mp4")
    upload(other, videos / "short.mp4")
    wait_for_scores(other, "a cat")
    wait_for_scores(tab, "walking")
    assert "a cat" not in tab.inner_text("#scores")
    tab.reload()
    tab.wait_for_selector("#classify")
    assert tab.input_value("#labels textarea").split("\n") == LABELS
    assert "walking" not in tab.inner_text("#scores")
    assert other.input_value("#labels textarea") == "a cat\na dog"


@pytest.mark.slow
def test_keyboard_suffices(tab, videos):
    choosers = []
    tab.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(10):  # until the page listens to keys
        focus(tab, "#video .upload-container")
        tab.keyboard.press("Enter")
        tab.wait_for_timeout(1000)
        if choosers:
            break
    choosers[0].set_files(str(videos / "short.mp4"))
    wait_for_scores(tab, "walking")
    focus(tab, "#labels textarea")
    tab.keyboard.press("Control+A")
    tab.keyboard.type("a cat\na dog")
    focus(tab, "#classify")
    tab.keyboard.press("Enter")
    wait_for_scores(tab, "a cat")
    focus(tab, "#explain")
    tab.keyboard.press("Space")
    tab.wait_for_selector("#explanation img")
    focus(tab, "[role=tab]:not([aria-selected=true])")
    tab.keyboard.press("Enter")
    focus(tab, "#query :is(textarea, input)")
    tab.keyboard.type("a dog")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#results .thumbs li")


@pytest.mark.slow
def test_browser_searches(tab, videos):
    tab.get_by_role("tab", name="Search").click()
    tab.fill("#query :is(textarea, input)", "a dog")
    tab.click("#search")
    tab.wait_for_selector("#results .thumbs li")
    names = tab.inner_text("#results")
    assert "constant.mp4" in names
    assert os.name == "nt" or f"{HOSTILE} {{{{value}}}} ${{alert(1)}}.mp4" in names
    assert tab.locator("#results .playing").count() == tab.locator("#results li").count()
    tab.fill("#exclude :is(textarea, input)", "a dog")
    tab.click("#search")
    tab.get_by_text("No moment fits the query.").wait_for()
    tab.fill("#query :is(textarea, input)", " ")
    tab.click("#search")
    tab.get_by_text("expected at least one word").wait_for()


@pytest.mark.slow
def test_camera_records_a_video(tab):
    for seconds in (1.5, 5, 15):  # on a busy machine, a short recording of chromium is empty
        tab.get_by_label("Capture from camera").click()
        tab.get_by_text("Click to Access Webcam").click()
        tab.locator("#video").get_by_text("Record", exact=True).click()
        tab.wait_for_timeout(1000 * seconds)
        tab.locator("#video").get_by_text("Stop", exact=True).click()
        tab.locator("#scores").get_by_text("walking").or_(tab.locator("#scores .error")).first.wait_for()
        if not tab.locator("#scores .error").count():
            break
        tab.reload()
        tab.wait_for_selector("#classify")
    wait_for_scores(tab, "walking")
