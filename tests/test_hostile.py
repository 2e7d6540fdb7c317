"""Untrusted files and configs: accepted, or refused with an error for users, and never executed."""

import itertools
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_checkpoint import mutate

from clipvid import InputError
from clipvid.data.manifest import ManifestError, load_manifest
from clipvid.data.reader import VideoError
from clipvid.runs.config_files import config_record, parse_config, read_config
from clipvid.runs.output_folder import prepare_output_dir
from clipvid.training.config import FinetuneConfig

RECORD = config_record(FinetuneConfig())
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["ila", "!!python/none x"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
relaxed = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def names(record: dict[str, Any], prefix: str = "") -> list[str]:
    nested = {key: value for key, value in record.items() if isinstance(value, dict)}
    below = [name for key, value in nested.items() for name in names(value, f"{prefix}{key}.")]
    return [f"{prefix}{key}" for key in record] + below


def put(record: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    *path, last = name.split(".")
    place = record
    for key in path:
        place = place.setdefault(key, {})
    place[last] = value
    return record


def parsed(path: Path) -> FinetuneConfig | None:
    """Return the config, or None if the command line refuses it with a message and exit code 2."""
    try:
        return parse_config(FinetuneConfig, ["--config", str(path)], "test")
    except SystemExit as end:
        if end.code != 2:
            raise
        return None
    except ValueError as error:
        print(error, file=sys.stderr)
        return None


@relaxed
@given(name=st.sampled_from(names(RECORD)), value=VALUES)
def test_any_config_value_is_accepted_or_named(name: str, value: Any, tmp_path: Path, capsys) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(put({}, name, value)))
    if parsed(path) is None:
        message = capsys.readouterr().err
        assert any(part in message for part in name.split(".")), message


@relaxed
@given(content=st.text(max_size=60) | st.sampled_from(["[" * 3000, "a: &a [*a]", "? {a: b} : c", "\x00", "- 1"]))
def test_any_text_is_a_config_or_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    assert isinstance(parsed(path), FinetuneConfig | None)


@pytest.mark.parametrize("name", ["seed", "training", "training.epochs", "model.adapter"])
def test_null_is_refused_unless_optional(name: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(put({"model": {"pretrained": None}}, name, None)))
    assert parsed(path) is None
    assert f"invalid value: {name}: null;" in capsys.readouterr().err


def test_yaml_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = "output_dir: !!python/object/apply:os.system ['touch owned']\n"
    Path("config.yaml").write_text(evil)
    with pytest.raises(SystemExit):
        parse_config(FinetuneConfig, ["--config", "config.yaml"], "test")
    Path("run").mkdir()
    Path("run/run.yaml").write_text(evil)
    with pytest.raises(ValueError, match=r"run\.yaml, the config of the run in run, cannot be read"):
        prepare_output_dir(Path("run"), FinetuneConfig())
    assert not Path("owned").exists()


def test_a_mutated_run_file_is_refused(tmp_path: Path) -> None:
    chance, config = random.Random(0), FinetuneConfig()
    prepare_output_dir(tmp_path, config)
    whole = (tmp_path / "run.yaml").read_bytes()
    for _ in range(100):
        (tmp_path / "run.yaml").write_bytes(mutate(whole, chance))
        try:
            prepare_output_dir(tmp_path, config)
        except (ValueError, FileExistsError) as error:
            assert str(tmp_path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("count", [400, pytest.param(4000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["list.txt", "list.csv", "classes.txt", "classes.csv"])
def test_a_mutated_list_is_read_or_refused(tmp_path: Path, kind: str, count: int) -> None:
    videos = ["run/ann_run.mp4", "run/bob_run.mp4", "side walk/cid.mp4"]
    for video in videos:
        (tmp_path / video).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / video).touch()
    files = {
        "list.txt": "".join(f"{video} {label}\n" for video, label in zip(videos, (0, 0, 1), strict=True)),
        "list.csv": "path,label,group\n" + "".join(f"{video},run,ann\n" for video in videos),
        "classes.txt": "run\nside walk\n",
        "classes.csv": "id,name,motion\n1,side walk,slow\n0,run,fast\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    used = [kind if kind.startswith("list") else "list.csv", kind if kind.startswith("classes") else "classes.txt"]
    chance, whole, refused = random.Random(kind), files[kind].encode(), 0
    for _ in range(count // 4):
        (tmp_path / kind).write_bytes(mutate(whole, chance))
        try:
            actual = load_manifest(tmp_path, *used)
        except (ManifestError, OSError) as error:
            refused += 1
            assert any(name in str(error) for name in (*used, *videos))  # noqa: PT017
        else:
            for index in range(len(actual)):
                try:
                    path = Path(actual.video(index)).resolve()
                except (VideoError, OSError, ValueError):  # the system refuses the path: one bad video
                    continue
                assert path.is_relative_to(tmp_path.resolve())
    assert refused > 0


REPEATED = "x:\n- &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"- &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", r":2: the key 'seed' appears twice"),
        ("data: {val: a, root: b, val: c}\n", r":1: the key 'val' appears twice"),
        ("model:\n  head: {name: text, name: linear}\n", r":2: the key 'name' appears twice"),
        (REPEATED, "over 10000 values, with those that anchors repeat"),
        ("x: [" + "a, " * 10_001 + "]", "over 10000 values"),
        ("a: &a [1, *a]\n", "an anchor is used inside itself"),
        ("a: " + "[" * 40 + "]" * 40, "nested too deep"),
        ("a: " + "[" * 5000, "not YAML|nested too deep"),
        ("seed: 1" + "0" * 5000, r":1: a number of over 100 digits"),
        ("a: 'b\n\n", r":\d: not YAML"),
        ("a: b: c\n", r":1: not YAML"),
        ("a: \x15\n", "not YAML"),
        (" " * (2**20 + 1), "expected at most 1048576"),
        ("a: é".encode("latin-1"), "is not UTF-8 text"),
    ],
    ids=lambda value: str(value)[:24],
)
@pytest.mark.parametrize("name", ["config.yaml", "run/run.yaml"])
def test_yaml_is_read_strictly(text: str | bytes, message: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    read = {
        "config.yaml": lambda: read_config(FinetuneConfig, tmp_path / name),
        "run/run.yaml": lambda: prepare_output_dir(tmp_path / "run", FinetuneConfig()),
    }[name]
    with pytest.raises(InputError, match=message) as error:
        read()
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


def test_anchors_within_the_bound_are_followed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("training: {epochs: &few 2, save_steps: *few}\n")
    assert read_config(FinetuneConfig, tmp_path / "config.yaml").training.save_steps == 2


@pytest.mark.parametrize("value", [{"dropout": "x" * 9999}, {"y" * 9999: 1}], ids=["value", "name"])
def test_messages_about_options_are_short(value: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        read_config(FinetuneConfig, {"model": {"head": {"name": "linear", **value}}})
    assert len(str(error.value)) < 1000
