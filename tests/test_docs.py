"""README and documentation: commands parse, YAML is accepted, Python runs, links and names exist.

A block whose first line is `# needs ...` requires the network, a GPU or files of the reader. It is checked but not run.
"""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from conftest import REPOSITORY
from jsonargparse import ArgumentParser
from torch.distributed.run import get_args_parser

import clipvid
from clipvid.commands import VERBS, import_plugin, main, split_plugins
from clipvid.data.synthetic.encoding import write_video
from clipvid.data.synthetic.world import WorldConfig, render_clip

sys.path.insert(0, str(REPOSITORY / "docs" / "generate"))

from cli import parser_of
from figures import FIGURES
from store import split_row, tables_of
from tables import load, markdown

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
GENERATED = {"docs/reference/cli.md"}
LANGUAGES = {"python", "sh", "yaml", "toml", "text", "js"}
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
REMOTE = re.compile(r"openai|hf auth|[\"' ]user/")


class Block(NamedTuple):
    """Fenced block of a page."""

    page: Path
    line: int
    language: str
    code: str

    @property
    def needs(self) -> str | None:
        """Requirement of the block in its first line."""
        first = self.code.split("\n", 1)[0]
        return first.removeprefix("# needs ") if first.startswith("# needs ") else None

    @property
    def title(self) -> str:
        return f"{self.page.relative_to(REPOSITORY).as_posix()}:{self.line}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield Block(page, line, match[2], textwrap.dedent(match[3]))


BLOCKS = list(blocks())


def of(*languages: str) -> Any:
    chosen = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", chosen, ids=[block.title for block in chosen])


class Parsed(Exception):
    """Signal that the options were accepted."""


def parse(verb: str, args: list[str]) -> None:
    """Parse options with the parser of a verb and build its typed config. Run nothing else."""
    real = ArgumentParser.parse_args

    def parse_only(parser: ArgumentParser, *inputs: Any, **options: Any) -> None:
        parser.instantiate_classes(real(parser, *inputs, **options))
        raise Parsed

    assert verb in VERBS, f"unknown verb {verb!r}"
    rest, plugins = split_plugins(args)
    main = importlib.import_module(f"clipvid.commands.{verb.replace('-', '_')}").main
    with registrations_undone(), patch.object(ArgumentParser, "parse_args", parse_only):
        for plugin in plugins:
            import_plugin(plugin)
        with pytest.raises(Parsed):
            main(rest)


@contextmanager
def registrations_undone() -> Iterator[None]:
    """Remove adapters and plugins that were added inside, and restore those that were replaced."""
    built_in = dict(clipvid.ADAPTERS)
    with patch.dict(os.environ):
        try:
            yield
        finally:
            for name in clipvid.ADAPTERS.keys() - built_in.keys():
                del clipvid.ADAPTERS[name]
            clipvid.ADAPTERS.update(built_in)


def check_command(words: list[str]) -> None:
    """Check one command of a shell block."""
    program, *rest = words
    if program == "accelerate":
        assert rest[0] == "launch"
        launch = launch_command_parser().parse_args(rest[1:])
        check_script(launch.training_script, launch.training_script_args)
    elif program == "torchrun":
        launch = get_args_parser().parse_args(rest)
        check_script(launch.training_script, launch.training_script_args)
    elif program == "python":
        check_script(rest[0], rest[1:])
    elif program == "clipvid":
        parse(rest[0], rest[1:])
    elif program == "make":
        makefile = (REPOSITORY / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in rest)
    elif program == "sbatch":
        assert (REPOSITORY / rest[0]).is_file()
        parse("finetune", ["--config", *rest[1:]])
    else:
        assert program in ("pip", "hf"), f"unknown program {program!r}"


def check_script(script: str, args: list[str]) -> None:
    assert (REPOSITORY / script).is_file(), f"{script} does not exist"
    parse(Path(script).stem.replace("_", "-"), args)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a reader's working folder, with the configs and the files that the pages use."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs", target_is_directory=True)
    text = next(block.code for block in BLOCKS if "output_dir: outputs/my_videos" in block.code)
    (tmp_path / "my_videos.yaml").write_text(text)
    code = next(block.code for block in BLOCKS if "class TemporalConv(" in block.code)
    (tmp_path / "temporal_conv.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_blocks_have_known_languages():
    assert [block.title for block in BLOCKS if block.language not in LANGUAGES] == []


def test_blocks_that_need_the_network_have_a_tag():
    local = [block for block in BLOCKS if block.language in ("sh", "python") and block.needs is None]
    assert [block.title for block in local if REMOTE.search(block.code) and "--dry_run" not in block.code] == []


@of("sh")
def test_commands_parse(block: Block, workplace: Path):
    lines = block.code.replace("\\\n", " ").split("\n")
    commands = [words for line in lines if (words := shlex.split(line, comments=True))]
    assert commands
    for words in commands:
        check_command(words)


@pytest.mark.parametrize(
    "command",
    [
        "clipvid predict --modle x clip.mp4",
        "clipvid finetune --model.adapter iila",
        "clipvid fly",
        "accelerate launch --num_thread 3 scripts/finetune.py",
        "accelerate launch scripts/finetunes.py",
        "python scripts/finetune.py --training.epochs many",
        "make tea",
    ],
)
def test_wrong_commands_are_detected(command: str, workplace: Path):
    with pytest.raises((AssertionError, SystemExit, clipvid.ClipvidError)):
        check_command(shlex.split(command))


@of("yaml")
def test_yaml_is_a_config(block: Block, workplace: Path):
    keys = yaml.safe_load(block.code).keys()
    (workplace / "block.yaml").write_text(block.code)
    if "protocols" in keys:
        parse("evaluate", ["--suite", "block.yaml"])
    else:
        parse("pretrain" if "objectives" in keys else "finetune", ["--config", "block.yaml"])


@of("python")
def test_python_compiles_and_imports_exist(block: Block):
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "clipvid":
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "clipvid":
            assert hasattr(clipvid, node.attr), f"clipvid.{node.attr} does not exist"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Create a folder with a clip and the model folders that the pages use."""
    folder = tmp_path_factory.mktemp("reader")
    config = WorldConfig(train_per_class=1, val_per_class=0, test_per_class=0)
    (folder / "videos").mkdir()
    for number, name in enumerate(("clip", "walk", "run", "videos/clip")):
        write_video(folder / f"{name}.mp4", render_clip(config, number, "train", 0), config.fps)
    model = clipvid.create_model("tiny", adapter="st_adapter", labels=["ball moving left", "box moving up"])
    for name in ("my_videos", "gestures", "sports"):
        model.save_pretrained(folder / "outputs" / name)
    return folder


def run_block(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.needs is not None:
        pytest.skip(f"needs {block.needs}")
    monkeypatch.chdir(folder)
    name = "documentation_block"
    module = type(sys)(name)  # dataclasses look up the module of their class
    monkeypatch.setitem(sys.modules, name, module)
    with registrations_undone():
        exec(compile(block.code, block.title, "exec"), module.__dict__)


def test_example_of_the_readme_runs(models: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (block,) = (block for block in BLOCKS if block.language == "python" and block.page.name == "README.md")
    assert len(block.code.strip().replace("\n\n", "\n").split("\n")) <= 5
    run_block(block, models, monkeypatch)
    assert "ball moving left" in capsys.readouterr().out


def test_folder_of_an_image_tower_computes_what_timm_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (block,) = (block for block in BLOCKS if block.language == "python" and "timm.create_model(" in block.code)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(block.code.replace("vit_small", "vit_tiny"), block.title, "exec"), names)
    model = clipvid.create_model("local-dir:my_tower", adapter="none", head="linear", labels=["a", "b"], num_frames=2)
    frames = torch.rand(1, 2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().encoder(frames).frame_features[0], names["tower"].eval()(frames[0]))


@pytest.mark.slow
def test_example_of_a_trainer_runs_as_a_script(models: Path):
    (block,) = (block for block in BLOCKS if block.language == "python" and "TrainingArguments(" in block.code)
    script = models / "trainer.py"
    script.write_text(block.code)
    done = subprocess.run([sys.executable, script], cwd=models, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "train_loss" in done.stdout
    trained = clipvid.from_pretrained(models / "outputs/trainer/checkpoint-4")
    before = clipvid.from_pretrained(models / "outputs/my_videos").trained_state()
    assert any(not value.equal(before[name]) for name, value in trained.trained_state().items())


@pytest.mark.slow
def test_script_of_an_exported_model_runs_without_clipvid(models: Path):
    pytest.importorskip("onnxscript")
    (block,) = (block for block in BLOCKS if block.language == "python" and "onnxruntime" in block.code)
    lines = [line for line in block.code.splitlines()[1:] if line.strip()]
    assert len(lines) <= 40
    assert "clipvid" not in block.code.replace('["clipvid"]', "")
    main(["export", "--model", str(models / "outputs/my_videos"), "--output", str(models / "my_videos.onnx")])
    script = models / "exported.py"
    script.write_text(block.code)
    done = subprocess.run([sys.executable, script], cwd=models, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    scores = {label: float(score) for score, label in (line.split("  ") for line in done.stdout.splitlines())}
    predicted = {
        one["label"]: one["score"]
        for one in clipvid.Predictor(clipvid.from_pretrained(models / "outputs/my_videos"))(models / "clip.mp4")
    }
    assert scores == pytest.approx(predicted, abs=0.02)


@pytest.mark.slow
@of("python")
def test_python_runs(block: Block, models: Path, monkeypatch: pytest.MonkeyPatch):
    run_block(block, models, monkeypatch)


def without_blocks(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(REPOSITORY).as_posix() for page in PAGES])
def test_links_and_anchors_exist(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if file.relative_to(REPOSITORY).as_posix() in GENERATED:
            continue
        assert file.exists(), f"{page.name}: {target} does not exist"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(REPOSITORY).as_posix() for page in PAGES])
def test_names_in_the_text_exist(page: Path):
    text = without_blocks(page)
    options = {action.dest for verb in ("finetune", "evaluate", "pretrain") for action in parser_of(verb)._actions}
    for code in re.findall(r"`([^`\n]+)`", text):
        for path in re.findall(r"(?<![\w/.])(?:configs|tests|scripts|clipvid|docs)/[\w/.*-]+", code):
            name = path.rstrip("/.")
            assert list(REPOSITORY.glob(name)), f"{page.name}: {path} does not exist"
        if match := re.match(r"(?:--)?((?:data|training|optim|model|hub)(?:\.[a-z_0-9]+)+)(?=[ :]|$)", code):
            assert match[1] in options or match[1].endswith(".safetensors"), f"{page.name}: {match[1]} is not an option"
        if match := re.match(r"clipvid ([a-z-]+)", code):
            assert match[1] in VERBS, f"{page.name}: {match[1]} is not a verb"
    for kind, name in re.findall(r"<!-- (table|figure): ([\w.]+) -->", text):
        assert name in FIGURES if kind == "figure" else (REPOSITORY / "docs/results" / f"{name}.json").is_file()


def test_tests_named_on_the_page_of_reliability_exist():
    files = list((REPOSITORY / "tests").glob("test_*.py"))
    defined = {file.name for file in files}
    for file in files:
        defined |= set(re.findall(r"^def (test_\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE))
    names = re.findall(r"`(test_\w+(?:\.py)?)`", (REPOSITORY / "docs/reliability.md").read_text(encoding="utf-8"))
    assert len(names) > 15
    assert [name for name in names if name not in defined] == []


def test_every_page_is_in_the_navigation():
    navigation = (REPOSITORY / "mkdocs.yml").read_text()
    pages = [page.relative_to(REPOSITORY / "docs").as_posix() for page in (REPOSITORY / "docs").rglob("*.md")]
    assert [page for page in pages if not re.search(rf": {re.escape(page)}$", navigation, re.MULTILINE)] == []


def test_summary_of_real_video_is_that_of_its_ladders() -> None:
    page = (REPOSITORY / "docs/results/real-video.md").read_text(encoding="utf-8")
    lines = page.split("## Which adapter, how many clips")[1].split("\n\n")[2].splitlines()
    shown = {cells[0].strip("`"): cells[1:] for cells in map(split_row, lines[2:])}
    names = ["weizmann_tower_2_clips", "weizmann_tower", *(f"ucf101_mini_tower_{k}_clips" for k in (2, 5, 10))]
    for place, name in enumerate([*names, "ucf101_mini_tower"]):
        stored = load(f"ladder_{name}")
        top1, less = (stored["columns"].index(column) for column in ("top-1", "top-1 less none"))
        expected = {}
        for row in stored["rows"]:
            mean, low, high = map(float, re.findall(r"[+-]?\d+\.\d+", row[less])) if row[0] != "none" else (0, 0, 0)
            difference = f"**{mean:+.3f}**" if low > 0 or high < 0 else f"{mean:+.3f}"
            expected[row[0]] = row[top1].split()[0] + (f", {difference}" if row[0] != "none" else "")
        assert {row: cells[place] for row, cells in shown.items() if cells[place] != "-"} == expected


def test_tables_of_a_ladder_are_stored_as_they_are_written() -> None:
    results = "| | adapter | top-1 |\n|---|---|---:|\n| none | none | 0.50 |\n| a \\| b | gta | 0.75 (0.7 to 0.8) |"
    judged = "| hypothesis | held |\n|---|---|\n| none on top1 ≤ 0.6 | yes |"
    notes = "- Mean over the seeds 0, 1.\n- 2 of 2 trials: `clipvid benchmark ladder --config a.yaml`"
    stored = tables_of(f"{results}\n\n{judged}\n\n{notes}\n", None)
    shown = [re.sub(" *\\| *", "|", markdown(stored[suffix])) for suffix in ("", "_predictions")]
    assert shown == [re.sub(" *\\| *", "|", table) for table in (results, judged)]
    assert stored[""]["command"] == "clipvid benchmark ladder --config a.yaml"
    assert stored[""]["conditions"] == "Mean over the seeds 0, 1."
    assert tables_of(f"{results}\n\n{notes}", "my command")[""]["command"] == "my command"
    cost = tables_of(f"{results}\n\nViT-B-32, median of 3.\nMiB: peak memory.", "clipvid benchmark cache")[""]
    assert cost["conditions"] == "ViT-B-32, median of 3. MiB: peak memory."
    with pytest.raises(ValueError, match="unknown table"):
        tables_of(f"{results.replace('| |', '| other |', 1)}\n\n{notes}", None)
