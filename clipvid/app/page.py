"""The page, of gradio's components. Its functions check what arrives and turn errors into one line.

Names of files and classes reach the browser as plain text, or escaped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from clipvid import InputError
from clipvid.app.messages import escaped, html_of, one_line_errors
from clipvid.app.shared_model import SharedModel
from clipvid.app.teach_tab import TEACH_CSS, add_teach_tab
from clipvid.app.teaching import Teacher
from clipvid.files import cut
from clipvid.inference.search.index import Index
from clipvid.inference.search.page import moments_block

MOST_MOMENTS = 50
_WAITING = 32  # requests in the queue; later ones are refused
_KEPT = 3600  # seconds that uploads and pictures are kept
_TURN: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
CSS = (
    """
.thumbs { display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: 16px; padding: 0;
 list-style: none }
.thumbs .card { padding: 12px; border: 1px solid var(--border-color-primary); border-radius: 10px; margin: 0;
 list-style: none; overflow-wrap: anywhere }
.thumbs :is(small, .playing) { display: block }
#video video { max-height: 320px }
.thumbs .frame { aspect-ratio: var(--shape); border-radius: 3px; margin-bottom: 8px;
 background: var(--strip) 0 0 / calc(var(--count) * 100%) 100%;
 animation: play calc(var(--count) * .15s) steps(var(--count), jump-none) infinite }
@keyframes play { from { background-position-x: 0 } to { background-position-x: 100% } }
@media (prefers-reduced-motion: reduce) { .thumbs .frame { animation: none } }
"""
    + TEACH_CSS
)


def build_page(shared: SharedModel, name: str, uploads: Path, teacher: Teacher | None = None) -> gr.Blocks:
    """Return the page.

    Args:
        shared: The model.
        name: Name of the model in the heading.
        uploads: Folder of uploaded files. Videos elsewhere are refused.
        teacher: Labels and training for a folder of clips, if there is one.
    """
    with gr.Blocks(title="clipvid", analytics_enabled=False, delete_cache=(_KEPT // 6, _KEPT)) as page:
        gr.HTML(f"<h1>clipvid</h1><p>{escaped(cut(name, 200))}</p>")
        with gr.Tab("Classify"):
            _classify_tab(shared, uploads)
        if shared.index is not None:
            with gr.Tab("Search"):
                _search_tab(shared, shared.index)
        if teacher is not None:
            with gr.Tab("Teach"):
                add_teach_tab(page, teacher)
    return page.queue(max_size=_WAITING, default_concurrency_limit=1)


def _classify_tab(shared: SharedModel, uploads: Path) -> None:
    hint = "" if shared.has_free_labels else "The head of this model knows only these classes."
    with gr.Row():
        with gr.Column():
            video = refuse_addresses(gr.Video(label="Video", sources=["upload", "webcam"], elem_id="video"))
            labels = gr.Textbox(
                shared.label_text, label="Classes, one per line", info=hint or None, lines=5, max_lines=10,
                interactive=shared.has_free_labels, elem_id="labels",
            )  # fmt: skip
            with gr.Row():
                classify_button = gr.Button("Classify", variant="primary", elem_id="classify")
                explain_button = gr.Button("Explain", elem_id="explain")
        scores = gr.Label(label="Scores", num_top_classes=5, elem_id="scores")
    timeline = _picture("Scores over time", "timeline")
    sentence = gr.Textbox(
        label="Explanation: frames of the clip, and below them the places that the answer rests on", visible=False,
        interactive=False, lines=2, elem_id="sentence",
    )  # fmt: skip
    picture = _picture("Explanation", "explanation")
    hidden = gr.update(value=None, visible=False)

    def classify(path: str | None, label_text: str, progress: Any = gr.Progress()) -> Iterator[tuple[Any, ...]]:  # noqa: B008
        yield None, hidden, hidden, hidden
        if path is None:
            return
        with one_line_errors():
            upload = check_upload(path, uploads)
            result = shared.scores(path, label_text)
            yield result, hidden, hidden, hidden
            curves = shared.timeline(path, label_text, upload.name, lambda done, total: progress((done, total)))
            yield result, gr.update(value=curves, visible=curves is not None), hidden, hidden

    def explain(path: str | None, label_text: str) -> tuple[Any, Any]:
        with one_line_errors():
            if path is None:
                raise InputError("no video was given; drop one first")
            drawn, words = shared.explain(path, label_text, check_upload(path, uploads).name)
        return gr.update(value=words, visible=True), gr.update(value=drawn, visible=True)

    outputs = [scores, timeline, sentence, picture]
    gr.on(
        [video.change, classify_button.click], classify, [video, labels], outputs, api_name="classify",
        show_progress_on=scores, **_TURN,
    )  # fmt: skip
    explain_button.click(explain, [video, labels], [sentence, picture], api_name="explain", **_TURN)


def _picture(label: str, elem_id: str) -> gr.Image:
    """Return a hidden picture. Its label is for screen readers, since it would hide a corner."""
    return gr.Image(
        label=label, show_label=False, visible=False, interactive=False, elem_id=elem_id,
        buttons=["download", "fullscreen"],
    )  # fmt: skip


def _search_tab(shared: SharedModel, index: Index) -> None:
    settings = index.settings
    gr.HTML(f"<p>{len(index.videos)} videos, {len(index)} windows of {settings.window:g} s</p>")
    with gr.Row():
        text = gr.Textbox(label="Find", placeholder="a ball moving left", scale=2, elem_id="query")
        exclude = gr.Textbox(label="But not", placeholder="a ball moving right", elem_id="exclude")
    top_k = gr.Slider(1, MOST_MOMENTS, 12, step=1, label="Results")
    button = gr.Button("Search", variant="primary", elem_id="search")
    results = gr.HTML(elem_id="results")

    def search(text: str, exclude: str, top_k: float) -> str:
        with one_line_errors():
            moments = shared.search(text or "", exclude or "", min(max(int(top_k), 1), MOST_MOMENTS))
        return html_of(moments_block(index, moments))

    triggers = [button.click, text.submit, exclude.submit]
    gr.on(triggers, search, [text, exclude, top_k], results, api_name="search", **_TURN)


def refuse_addresses(video: gr.Video) -> gr.Video:
    """Make a component refuse a web address instead of an upload, which gradio would download.

    gradio writes a file beside the module of every subclass, so this replaces the method of one object.
    """
    move = video.async_move_resource_to_block_cache

    async def move_upload(path: Any) -> str | None:
        if "://" in str(path or ""):
            raise gr.Error("an address was given; expected an uploaded file", print_exception=False)
        return await move(path)

    video.async_move_resource_to_block_cache = move_upload
    return video


def check_upload(path: str, uploads: Path) -> Path:
    """Return the path of an upload.

    Raises:
        InputError: It is not a file in the folder of uploads.
    """
    upload = Path(path).resolve()
    if not upload.is_relative_to(uploads.resolve()) or not upload.is_file():
        raise InputError("the video is not an upload of this page, or was deleted after an hour; upload it again")
    return upload
