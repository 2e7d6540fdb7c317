"""Options of adapters, pooling, heads and tuning: wrong ones are refused when the config is built."""

import dataclasses
import pickle
import sys
from pathlib import Path

import pytest
from processes import Worker, all_end_well

import clipvid
from clipvid import InputError
from clipvid.adapters import ADAPTERS
from clipvid.hub.loading import from_pretrained
from clipvid.model.config import ModelConfig
from clipvid.model.factory import build_model
from clipvid.model.heads import HEADS
from clipvid.model.pooling import POOLING
from clipvid.model.tuning import TUNING
from clipvid.runs.config_files import parse_config
from clipvid.training.config import FinetuneConfig

REGISTRIES = {"adapter": ADAPTERS, "pooling": POOLING, "head": HEADS, "tune": TUNING}
OPTIONS = [
    (kind, name, item.name)
    for kind, registry in REGISTRIES.items()
    for name in registry
    for item in dataclasses.fields(registry.config_class(name))
]
# A value of each JSON type; an option refuses at least those of a type that neither its default nor its hint has.
WRONG = {"word": "big", "digits": "4", "true": True, "fraction": 1.5, "mapping": {"a": 1}, "nested": [[1]]}


def fields_with(kind: str, choice: dict) -> dict:
    return {kind: [choice] if kind == "tune" else choice}


def allowed(kind: str, name: str, option: str) -> set[str]:
    hint = str(next(f.type for f in dataclasses.fields(REGISTRIES[kind].config_class(name)) if f.name == option))
    kinds = {"bool": {"true"}, "float": {"fraction"}}
    actual = {value for word, values in kinds.items() if word in hint for value in values}
    return actual | ({"word", "digits"} if (kind, name, option) == ("tune", "coop", "init") else set())


@pytest.mark.parametrize(("kind", "name", "option"), OPTIONS, ids="-".join)
def test_wrong_type_error_names_the_option(kind, name, option):
    for label in WRONG.keys() - allowed(kind, name, option):
        with pytest.raises(InputError, match=option) as error:
            ModelConfig(**fields_with(kind, {"name": name, option: WRONG[label]}))
        assert repr(WRONG[label]) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "name", "option"), OPTIONS, ids="-".join)
def test_misspelled_option_suggests_the_nearest(kind, name, option):
    with pytest.raises(InputError, match=rf"no option '{option}x' \(did you mean '{option}'\?\)"):
        ModelConfig(**fields_with(kind, {"name": name, f"{option}x": 1}))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in REGISTRIES for name in REGISTRIES[kind]])
def test_misspelled_name_suggests_the_nearest(kind, name):
    with pytest.raises(InputError, match=rf"unknown {kind} '{name}q' \(did you mean '{name}'\?\)"):
        ModelConfig(**fields_with(kind, {"name": f"{name}q"}))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model.adapter={name: ila, hiden: 64}", "did you mean 'hidden'"),
        ("--model.adapter={name: ila, hidden: big}", "hidden='big': expected a valid integer"),
        ("--model.adapter={name: ila, hidden: true}", "hidden=True: expected a valid integer"),
        ("--model.adapter={name: ila, norm: bacth}", "did you mean 'batch'"),
        ("--model.adapter={name: gta, layers: uper}", "layers='uper'.*did you mean 'upper'"),
        ("--model.tune=[{name: partial, blocks: four}]", "blocks='four': expected a valid integer"),
        ("--model.tune=[{name: partial, blocks: -1}]", "blocks=-1 must be at least 0"),
        ("--model.pooling={name: mit, layers: two}", "layers='two': expected a valid integer"),
        ("--model.head={name: linear, dropout: 1}", r"dropout=1\.0 must be in \[0, 1\)"),
        ("--model.head={name: text, prompt_layers: -1}", "prompt_layers=-1 must be at least 0"),
    ],
)
def test_parser_refuses_wrong_option_of_a_run(argument, message):
    with pytest.raises(InputError, match=message):
        parse_config(FinetuneConfig, [argument], "test")


QUOTED = [
    ("adapter", "{name: ila, hidden: '64'}", "hidden='64'"),
    ("adapter", "[{name: ila, hidden: '64'}]", "hidden='64'"),
    ("adapter", "{name: ila, drop_path: '0.1'}", "drop_path='0.1'"),
    ("pooling", "{name: mit, layers: '2'}", "layers='2'"),
    ("head", "{name: text, prompt_layers: '1'}", "prompt_layers='1'"),
    ("tune", "[{name: partial, blocks: '4'}]", "blocks='4'"),
    ("tune", "[adapters, {name: lora, rank: '8'}]", "rank='8'"),
]


@pytest.mark.parametrize("place", ["file", "inline", "option"])
@pytest.mark.parametrize(("kind", "choice", "named"), QUOTED)
def test_quoted_number_is_refused_by_its_option(tmp_path, kind, choice, named, place):
    (tmp_path / "run.yaml").write_text(f"model:\n  {kind}: {choice}\n")
    args = {
        "file": ["--config", str(tmp_path / "run.yaml")],
        "inline": ["--config", f"{{model: {{{kind}: {choice}}}}}"],
        "option": [f"--model.{kind}={choice}"],
    }
    with pytest.raises(InputError, match=rf"{named}: expected a valid (integer|number)"):
        parse_config(FinetuneConfig, args[place], "test")
    plain = [arg.replace("'", "") for arg in args[place]]
    (tmp_path / "run.yaml").write_text((tmp_path / "run.yaml").read_text().replace("'", ""))
    parse_config(FinetuneConfig, plain, "test")


@pytest.mark.parametrize("words", [["--model.adapter.hidden", "32"], ["--model.adapter.hidden=32"]])
@pytest.mark.parametrize("before", [["--model.adapter=ila"], ["--model.adapter={name: ila, hidden: 16}"], ["--config"]])
def test_choice_option_on_command_line_is_yaml(tmp_path, words, before):
    (tmp_path / "run.yaml").write_text("model: {adapter: {name: ila, hidden: 16, drop_path: 1e-1}}\n")
    before = ["--config", str(tmp_path / "run.yaml")] if before == ["--config"] else before
    before = ["--model.adapter={name: ila}"] if before == ["--model.adapter=ila"] else before
    more = ["--model.adapter.drop_path=1e-1", "--model.adapter.norm", "group"]
    adapter = parse_config(FinetuneConfig, [*before, *words, *more], "test").model.adapter
    assert adapter == {"name": "ila", "hidden": 32, "drop_path": 0.1, "norm": "group"}
    with pytest.raises(InputError, match="hidden='32': expected a valid integer"):
        parse_config(FinetuneConfig, [*before, "--model.adapter.hidden='32'"], "test")


def test_text_options_stay_text_on_command_line():
    flip = ["--data.augment.label_map_flip={left: right}", "--data.augment.label_map_flip.up=4"]
    assert parse_config(FinetuneConfig, flip, "test").data.augment.label_map_flip == {"left": "right", "up": "4"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tune": [{"name": "partial", "blocks": 99}]}, "blocks=99; the image tower has"),
        ({"tune": [{"name": "lora", "rank": 10**6}]}, "rank=1000000 exceeds"),
        ({"adapter": {"name": "gta", "layers": [99]}}, "out of range for a tower"),
    ],
)
def test_option_that_does_not_fit_the_tower_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        build_model(ModelConfig(**{"adapter": "none"} | fields))


def test_parts_are_resolved_once_and_not_an_option():
    first, second = (ModelConfig(adapter={"name": "ila", "hidden": 16}) for _ in range(2))
    assert first.parts is second.parts
    assert ModelConfig(adapter={"name": "ila", "hidden": 32}).parts.adapters["ila"].hidden == 32
    assert vars(first).keys() == {item.name for item in dataclasses.fields(ModelConfig)}
    assert pickle.loads(pickle.dumps(first)) == first
    with pytest.raises(InputError, match="hidden=True"):
        ModelConfig(adapter={"name": "ila", "hidden": True})


def test_parts_follow_a_replaced_entry(monkeypatch):
    config = ModelConfig(adapter="shift")
    monkeypatch.setitem(ADAPTERS, "shift", ADAPTERS["gta"])
    assert type(config.parts.adapters["shift"]) is ADAPTERS["gta"].Config


# Entries of other packages

PLUGIN = """
from dataclasses import dataclass
from clipvid.adapters import Adapter, AdapterConfig, AdapterOutput
from clipvid.model.heads import LinearHead, LinearHeadConfig
from clipvid.model.pooling import Pooling


@dataclass(frozen=True)
class ZeroConfig(AdapterConfig):
    size: int = 1


class Zero(Adapter):
    Config = ZeroConfig
    place = "before_attention"

    def forward(self, tokens, grid, trace=False):
        return AdapterOutput(0 * tokens)


class Last(Pooling):
    def forward(self, features):
        return features[:, -1]


class Plain(LinearHead):
    Config = LinearHeadConfig
"""
ENTRY_POINTS = """
[clipvid.adapters]
zero = plugin_for_test:Zero
broken = plugin_that_does_not_exist:Zero
[clipvid.pooling]
last = plugin_for_test:Last
[clipvid.heads]
plain = plugin_for_test:Plain
"""


@pytest.fixture
def site(tmp_path) -> Path:
    """Create a folder with an installed distribution that adds an adapter, a pooling and a head."""
    info = tmp_path / "site" / "plugin_for_test-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-for-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (info.parent / "plugin_for_test.py").write_text(PLUGIN)
    return info.parent


def use_entry_points(site: Path, output: Path) -> None:
    """Save and load a model with each part of the installed package, and print errors of two names."""
    sys.path.insert(0, str(site))
    for kind, choice in {"adapter": {"name": "zero", "size": 3}, "pooling": "last", "head": "plain"}.items():
        model = clipvid.create_model("tiny", labels=["a ball", "a star"], **{"adapter": "none", kind: choice})
        model.save_pretrained(output / kind)
        clipvid.from_pretrained(output / kind)
    for name, error in {"broken": clipvid.RunError, "zeroo": clipvid.InputError}.items():
        with pytest.raises(error) as raised:
            clipvid.create_model("tiny", adapter=name)
        print(raised.value)


@pytest.mark.slow
def test_entry_points_of_installed_package(site, tmp_path):
    folders = {kind: tmp_path / kind for kind in ("adapter", "pooling", "head")}
    worker = Worker(tmp_path / "log", {}, use_entry_points, site, tmp_path)
    all_end_well([worker])
    broken, unknown = worker.said.splitlines()[-2:]
    assert "adapter 'broken' of plugin-for-test cannot be imported" in broken
    assert "unknown adapter 'zeroo' (did you mean 'zero'?)" in unknown
    for kind, name in {"adapter": "zero", "pooling": "last", "head": "plain"}.items():
        with pytest.raises(InputError, match=rf"needs the {kind} '{name}'.*install the package.*--plugin MODULE"):
            from_pretrained(folders[kind])
