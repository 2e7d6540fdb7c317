"""The tab *Teach* of the page: clips to label, a button to train, and one to keep the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr

from clipvid import InputError
from clipvid.app.messages import html_of, one_line_errors
from clipvid.app.teach_blocks import clip_block, saved_blocks, status_blocks, trained_blocks
from clipvid.app.teaching import Teacher
from clipvid.app.teaching_state import Session, Trained
from clipvid.files import cut

MOST_BUTTONS = 30  # further classes are typed
_WITH_KEYS = 9
_SECONDS = 1.0  # between looks at the progress
_TURN: dict[str, Any] = {"concurrency_id": "teach", "concurrency_limit": 1, "api_visibility": "private"}
TEACH_CSS = """
#clip .thumbs { grid-template-columns: minmax(0, 480px); justify-content: center }
#clip .thumbs .frame { max-width: calc(300px * var(--shape)); margin-inline: auto }
@media (prefers-reduced-motion: reduce) { #clip .thumbs .frame { max-width: none;
 aspect-ratio: calc(var(--count) * var(--shape)); background-size: 100% 100% } }
#class-buttons button { white-space: normal; overflow-wrap: anywhere; flex: 1 1 140px; min-width: 0 }
#teach-status dl { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 2px 12px; margin: 4px 0 12px }
#teach-status dd { margin: 0; overflow-wrap: anywhere; text-align: right }
#teach-status .folded dl { grid-template-columns: 1fr }
#teach-status .folded dd { text-align: left; margin-bottom: 4px }
#teach-status dt, #trained { overflow-wrap: anywhere }
#trained table { width: 100%; border-collapse: collapse }
#trained :is(table, tr, td, th) { border: 0 }
#trained :is(td, th) { text-align: left; padding: 4px 8px 4px 0; overflow-wrap: normal; font-weight: normal;
 border-bottom: 1px solid var(--border-color-primary) }
#trained small { white-space: nowrap }
#trained code { display: block; padding: 6px 8px; margin: 4px 0 10px; white-space: pre-wrap; border-radius: 4px;
 background: var(--background-fill-secondary) }
"""
# Digits press the buttons of classes, S skips and U takes a label back, except while the focus is in a field.
_KEYS = """() => { document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest("input, textarea, select, [contenteditable]")) return;
  const name = {s: "skip", u: "undo"}[event.key.toLowerCase()];
  const id = /^[1-9]$/.test(event.key) ? "class-" + event.key : name && "teach-" + name;
  const button = id && document.getElementById(id);
  if (!button || button.offsetParent === null || button.disabled) return;
  event.preventDefault();
  button.click();
}); }"""


@dataclass
class _Tab:
    """State of a tab of the browser: its session, the classes on its buttons, and the head that it has trained."""

    session: Session = field(default_factory=Session)
    names: list[str] = field(default_factory=list)
    trained: Trained | None = None


def add_teach_tab(page: gr.Blocks, teacher: Teacher) -> None:
    """Add the components and events of the tab to a page."""
    events, state, timer = _Events(teacher), gr.State(None), gr.Timer(_SECONDS)
    turn = gr.Number(0, visible=False)
    with gr.Row():
        with gr.Column(scale=3):
            clip = gr.HTML(elem_id="clip")
            with gr.Row(elem_id="class-buttons"):
                names = [f"class-{number}" for number in range(1, MOST_BUTTONS + 1)]
                buttons = [gr.Button("", visible=False, size="md", elem_id=name) for name in names]
            hint = "Type a name and press Enter"
            new_class = gr.Textbox(label="Another class", placeholder=hint, max_lines=1, elem_id="new-class")
            with gr.Row():
                skip_button = gr.Button("Skip (S)", size="md", elem_id="teach-skip")
                undo_button = gr.Button("Take back (U)", size="md", elem_id="teach-undo")
        with gr.Column(scale=2):
            status = gr.HTML(elem_id="teach-status")
            train_button = gr.Button("Train", variant="primary", elem_id="train")
            trained = gr.HTML(elem_id="trained")
            save_button = gr.Button("Keep the model", interactive=False, elem_id="save")
    shown = [status, state, turn, clip, *buttons]
    hidden: dict[str, Any] = {"show_progress": "hidden"} | _TURN
    page.load(events.start, None, shown, **hidden)
    page.load(None, None, None, js=_KEYS, api_visibility="private")
    timer.tick(events.look, state, [timer, *shown], **hidden)
    for place, button in enumerate(buttons):
        button.click(partial(events.label_by_button, place), [state, turn], shown, **hidden)
    typed = new_class.submit(events.label, [state, turn, new_class], shown, **hidden)
    typed.success(lambda: "", None, new_class, api_visibility="private")
    skip_button.click(events.skip, [state, turn], shown, **hidden)
    undo_button.click(events.undo, state, shown, **hidden)
    train_button.click(events.train, state, [state, trained, save_button], show_progress_on=trained, **_TURN)
    save_button.click(events.save, state, [trained, save_button], show_progress_on=trained, **_TURN)


class _Events:
    """Events of the tab. Most return the values of status, state, turn, clip and the buttons of classes.

    The state is None while the page is being loaded, and after the program was started again.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def start(self) -> tuple[Any, ...]:
        """Show the first clip."""
        tab = _Tab()
        self.teacher.propose(tab.session)
        return self._show(tab)

    def look(self, tab: _Tab | None) -> tuple[Any, ...]:
        """Show the progress, and the first clip as soon as it is read. Stop looking at the end."""
        if tab is None:
            return tuple(gr.skip() for _ in range(MOST_BUTTONS + 5))
        now = self.teacher.status()
        timer = gr.Timer(active=now.done < now.total and now.failure is None)
        if tab.session.clip is None:
            self.teacher.propose(tab.session)
            return timer, *self._show(tab)
        return timer, html_of(*status_blocks(now)), *(gr.skip() for _ in range(MOST_BUTTONS + 3))

    def label_by_button(self, place: int, tab: _Tab | None, turn: float) -> Any:
        """Label the clip by the class that the tab shows on a button."""
        names = [] if tab is None else tab.names
        return self.label(tab, turn, names[place]) if place < len(names) else self.start()

    def label(self, tab: _Tab | None, turn: float, name: str) -> tuple[Any, ...]:
        """Label the clip, and show the next one."""
        if tab is None:
            return self.start()
        with one_line_errors():
            self.teacher.label(tab.session, int(turn), name)
        return self._show(tab)

    def skip(self, tab: _Tab | None, turn: float) -> tuple[Any, ...]:
        """Show another clip."""
        if tab is None:
            return self.start()
        self.teacher.skip(tab.session, int(turn))
        return self._show(tab)

    def undo(self, tab: _Tab | None) -> tuple[Any, ...]:
        """Take the last label back."""
        if tab is None:
            return self.start()
        with one_line_errors():
            self.teacher.undo(tab.session)
        return self._show(tab)

    def train(self, tab: _Tab | None) -> tuple[Any, ...]:
        """Train a head. Return the state, the result, and the button that keeps the model."""
        tab = tab or _Tab()
        with one_line_errors():
            tab.trained = self.teacher.train()
        return tab, html_of(*trained_blocks(tab.trained)), gr.Button(interactive=tab.trained.is_better)

    def save(self, tab: _Tab | None) -> tuple[Any, ...]:
        """Keep the model. Return the result with further commands, and the button."""
        with one_line_errors():
            if tab is None or tab.trained is None:
                raise InputError("no head is trained; press Train first")
            self.teacher.save(tab.trained)
        return html_of(*trained_blocks(tab.trained), *saved_blocks(self.teacher)), gr.Button(interactive=False)

    def _show(self, tab: _Tab) -> tuple[Any, ...]:
        tab.names = self.teacher.class_names()[:MOST_BUTTONS]
        now = self.teacher.status()
        card = html_of(clip_block(self.teacher, tab.session, now))
        buttons = (_button(place, tab.names) for place in range(MOST_BUTTONS))
        return html_of(*status_blocks(now)), tab, tab.session.turn, card, *buttons


def _button(place: int, names: list[str]) -> Any:
    if place >= len(names):
        return gr.Button(visible=False)
    key = f"{place + 1}  " if place < _WITH_KEYS else ""
    return gr.Button(f"{key}{cut(names[place], 100)}", visible=True)
