"""Models to and from the Hub: the real client in a separate process, against an HTTP server on localhost."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import hub_client
import pytest
import torch
from conftest import random_frames, shake
from hub_server import CUT, LOSE_ANSWER, READER, WRITER, Fault, Hub, Repository
from huggingface_hub import ModelCard
from test_xclip_folder import write_model

from clipvid.adapters import ADAPTERS
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.hub.card import card_text, is_edited, write_card
from clipvid.hub.push import push_to_hub
from clipvid.model.lora import LoraConfig
from clipvid.model.pooling import MIT

LABELS = ["walking", "running", "jumping"]
NAME = "user/model"
METRICS = {
    "top1": {"value": 0.75, "low": 0.5, "high": 0.9, "count": 12},
    "top5": {"value": 1.0, "low": 0.8, "high": 1.0, "count": 12},
    "nll": 0.5,
    "config": {
        "output_dir": "/home/somebody/outputs/run",
        "model": {"backbone": "local-dir:/home/somebody/clip", "init_from": "/home/somebody/start"},
        "data": {"root": "/home/somebody/weizmann", "val": "val.txt", "protocol": "holdout"},
        "also": [{"root": "/home/somebody/more", "videos": "train.txt"}],
        "optim": {"lr": 0.125},
    },
}

Call = Callable[..., Any]


def hub_environment(hub: Hub, home: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub
        hub.shutdown()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Return HF_HOME of the client, its cache."""
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def client(server: Hub, home: Path) -> Iterator[ProcessPoolExecutor]:
    """Start a process that imports once, with the environment of a user of `server`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in hub_environment(server, home).items():
            patch.setenv(name, value)
        patch.delenv("HF_TOKEN", raising=False)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(hub_client.set_token, None).result()
            yield pool


@pytest.fixture
def hub(server: Hub) -> Hub:
    server.reset()
    return server


@pytest.fixture
def call(client: ProcessPoolExecutor, hub: Hub) -> Call:
    """Run a function in the client's process, logged in with write access, unless `token` is given."""

    def run(function: Callable, *args: Any, token: str | None = WRITER) -> Any:
        client.submit(hub_client.set_token, token).result()
        return client.submit(function, *args).result()

    return run


@pytest.fixture
def saved(make_model, tmp_path) -> Path:
    """Save a model folder with figures and a card."""
    model = make_model("ila", LABELS)
    shake(model.encoder.layers[1].adapters)
    return save(model, tmp_path / "saved")


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    write_card(folder)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "optimizer.pt").write_bytes(b"not for the Hub")
    return folder


# Round trips


def test_push_round_trip_is_bitwise(call, hub, make_model, saved):
    url, kept = call(push_to_hub, saved, NAME)
    files = hub.files(NAME)
    assert (kept, url) == (False, f"{hub.url}/{NAME}/commit/{hub.repositories[NAME].refs['main']}")
    assert len(hub.repositories[NAME].commits) == 2  # the Hub's initial one, and the push
    assert files.keys() == {
        ".gitattributes", "README.md", "backbone/open_clip_config.json", "backbone/open_clip_model.safetensors",
        "config.json", "metrics.json", "model.safetensors", "video_preprocessor_config.json",
    }  # fmt: skip
    assert files["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    frames = random_frames()
    assert torch.equal(call(hub_client.logits, NAME, frames, token=None), call(hub_client.logits, str(saved), frames))


@pytest.mark.parametrize(
    "spec",
    [*({"adapter": name} for name in ADAPTERS), {"adapter": {"name": "ila", "hidden": 16, "variant": "ssv2"}},
     {"adapter": "ila", "pooling": "mit", "head": {"name": "text", "prompt_layers": 2}},
     {"adapter": "ila", "head": "linear", "pooling": "mit"}, {"adapter": ["sifa", "ata"], "tune": ["full"]},
     {"adapter": "ila", "tune": ["adapters", "lora"]}, {"adapter": "none", "tune": ["coop"]}],
    ids=lambda spec: "-".join(str(value) for value in spec.values()),
)  # fmt: skip
def test_push_round_trip_of_every_kind_of_model(call, make_model, tmp_path, spec):
    model = make_model(labels=LABELS, **spec)
    shake(model, 0.05) if "tune" in spec else [
        shake(part) for part in (*model.encoder.adapters(), model.pooling, model.head)
    ]
    model.set_labels(LABELS)
    model.save_pretrained(tmp_path)
    call(push_to_hub, tmp_path, NAME)
    frames = random_frames()
    with torch.no_grad():
        assert torch.equal(call(hub_client.logits, NAME, frames), model(frames).logits)


@pytest.mark.parametrize("way", ["save_pretrained", "repo_id", "push_to_hub", "trainer"])
def test_transformers_model_is_really_pushed(call, hub, saved, tmp_path, way):
    call(hub_client.save_from_transformers, str(saved), str(tmp_path / "model"), way)
    files = hub.files(NAME)
    assert {"config.json", "video_preprocessor_config.json", "README.md"} <= files.keys()
    assert ("model.safetensors" in files) == (way != "repo_id")
    assert any(name.startswith("model-00001-of-") for name in files) == (way == "repo_id")
    frames = random_frames()
    assert torch.equal(call(hub_client.logits, NAME, frames), call(hub_client.logits, str(saved), frames))


def test_revisions_are_branches_and_commits(call, hub, make_model, tmp_path):
    frames, outputs = random_frames(), {}
    for seed, branch in enumerate(("main", "second")):
        model = make_model("st_adapter", LABELS)
        for adapter in model.encoder.adapters():
            shake(adapter, seed=seed)
        model.save_pretrained(tmp_path)
        with torch.no_grad():
            outputs[branch] = model(frames).logits
        call(push_to_hub, tmp_path, NAME, False, None if branch == "main" else branch)
    for branch, expected in outputs.items():
        for revision in (branch, hub.repositories[NAME].refs[branch]):
            assert torch.equal(call(hub_client.logits, NAME, frames, revision), expected)
    assert torch.equal(call(hub_client.logits, NAME, frames), outputs["main"])
    with pytest.raises(FileNotFoundError, match="has no revision 'third'; pass a branch, tag or commit"):
        call(hub_client.logits, NAME, frames, "third")


def test_push_deletes_stale_files_in_same_commit(call, hub, make_model, tiny_folder, saved, tmp_path):
    call(push_to_hub, saved, NAME)
    make_model("none", LABELS, is_public=True).save_pretrained(tmp_path / "other")
    call(push_to_hub, tmp_path / "other", NAME)
    assert hub.files(NAME).keys() == {
        ".gitattributes", "README.md", "config.json", "model.safetensors", "video_preprocessor_config.json",
    }  # fmt: skip
    assert len(hub.repositories[NAME].commits) == 3


def test_unchanged_push_makes_no_commit(call, hub, saved):
    first = call(push_to_hub, saved, NAME).url
    assert call(push_to_hub, saved, NAME).url == first
    assert len(hub.repositories[NAME].commits) == 2


def test_cached_model_loads_offline(call, hub, home, saved, tmp_path):
    call(push_to_hub, saved, NAME)
    frames = random_frames()
    expected = call(hub_client.logits, NAME, frames)
    torch.save(frames, tmp_path / "frames.pt")
    script = "import sys, torch, hub_client; print(hub_client.logits(sys.argv[1], torch.load(sys.argv[2])).tolist())"
    hub.requests.clear()
    run = subprocess.run(
        [sys.executable, "-c", script, NAME, tmp_path / "frames.pt"],
        env=os.environ | hub_environment(hub, home) | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert torch.equal(torch.tensor(json.loads(run.stdout)), expected)
    assert not hub.requests


def python_path() -> str:
    return os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent), *sys.path])


# Refusals and retries


@pytest.mark.parametrize(
    ("token", "error", "message"),
    [
        (None, PermissionError, r"refused user/model \(401: .*\): log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_nobody", PermissionError, r"refused user/model \(401: .*\): log in"),
        (
            READER,
            PermissionError,
            r"refused user/model \(403: .*\): your token lacks the permission; create one with write",
        ),
    ],
    ids=["no token", "unknown token", "token that reads"],
)
def test_push_without_permission_is_refused(call, hub, saved, token, error, message):
    with pytest.raises(error, match=message):
        call(push_to_hub, saved, NAME, token=token)
    assert not hub.repositories


def test_push_to_repository_of_others_is_refused(call, hub, saved):
    first = call(push_to_hub, saved, NAME).url
    (saved / "video_preprocessor_config.json").write_text("{}")
    with pytest.raises(PermissionError, match="403"):
        call(push_to_hub, saved, NAME, token=READER)
    assert first.endswith(hub.repositories[NAME].refs["main"])


@pytest.mark.parametrize(
    ("method", "path", "answer"),
    [
        ("POST", "/api/repos/create", 500),
        ("POST", "/api/repos/create", 429),
        ("POST", "/objects/batch", 429),
        ("PUT", "/lfs/", 500),
        ("PUT", "/lfs/", CUT),
        ("POST", "/commit/", 500),
        ("POST", "/commit/", 409),
        ("POST", "/commit/", LOSE_ANSWER),
    ],
    ids=str,
)
def test_temporary_errors_are_retried(call, hub, saved, method, path, answer):
    hub.faults = [Fault(method, path, answer)]
    call(push_to_hub, saved, NAME)
    assert hub.faults[0].times == 0
    assert hub.files(NAME)["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    assert len(hub.repositories[NAME].commits) == 2


def test_concurrent_commit_is_detected(call, hub, saved):
    """A card that is edited between the check and the commit is kept."""
    call(push_to_hub, saved, NAME)
    repository, edited = hub.repositories[NAME], b"---\n---\nmine"
    (saved / "video_preprocessor_config.json").write_text('{"num_frames": 4}')

    def edit_once() -> None:
        hub.on_preupload = None
        repository.add("main", repository.commits[repository.refs["main"]] | {"README.md": edited})

    hub.on_preupload = edit_once
    assert call(push_to_hub, saved, NAME).kept_card
    assert hub.files(NAME)["README.md"] == edited
    assert hub.files(NAME)["video_preprocessor_config.json"] == b'{"num_frames": 4}'


@pytest.mark.slow
@pytest.mark.parametrize(("path", "answer"), [("/commit/", 500), ("/commit/", 409), ("/lfs/", CUT)], ids=str)
def test_permanent_errors_publish_nothing(call, hub, saved, path, answer):
    hub.faults = [Fault("PUT" if path == "/lfs/" else "POST", path, answer, times=100)]
    with pytest.raises(ConnectionError, match=r"failed for user/model|refused user/model"):
        call(push_to_hub, saved, NAME)
    assert hub.files(NAME).keys() == {".gitattributes"}


def test_push_killed_during_upload_publishes_nothing(call, hub, saved, tmp_path):
    hub.faults = [Fault("PUT", "/lfs/", CUT, times=100)]
    script = "import sys; from clipvid.hub.push import push_to_hub; push_to_hub(sys.argv[1], sys.argv[2])"
    process = subprocess.Popen(
        [sys.executable, "-c", script, saved, NAME],
        env=os.environ | hub_environment(hub, tmp_path / "hf") | {"PYTHONPATH": python_path(), "HF_TOKEN": WRITER},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert hub.upload_began.wait(120)
    process.kill()
    process.wait()
    assert hub.files(NAME).keys() == {".gitattributes"}
    hub.faults = []
    call(push_to_hub, saved, NAME)
    assert hub.files(NAME)["model.safetensors"] == (saved / "model.safetensors").read_bytes()


def test_private_stays_private(call, hub, saved):
    call(push_to_hub, saved, "user/secret", True)
    assert hub.repositories["user/secret"].private
    with pytest.raises(FileNotFoundError, match=r"the Hub has no repository user/secret, or it is private \(log in"):
        call(hub_client.logits, "user/secret", random_frames(), token=None)
    call(hub_client.logits, "user/secret", random_frames(), token=READER)
    call(push_to_hub, saved, "user/public")
    with pytest.raises(ValueError, match="exists and is public: make it private in its settings"):
        call(push_to_hub, saved, "user/public", True)


def test_missing_repository_error(call):
    with pytest.raises(FileNotFoundError, match=r"'user/nothing' is not a local .* no repository user/nothing"):
        call(hub_client.logits, "user/nothing", random_frames())


def test_foreign_repository_is_refused_before_download(call, hub, saved):
    call(push_to_hub, saved, NAME)
    repository = hub.repositories[NAME]
    foreign = json.dumps({"model_type": "vivit"}).encode()
    repository.add("main", repository.commits[repository.refs["main"]] | {"config.json": foreign})
    hub.requests.clear()
    with pytest.raises(ValueError, match="is not the config of a clipvid model"):
        call(hub_client.logits, NAME, random_frames())
    assert not [request for request in hub.requests if "safetensors" in request]


def test_only_model_files_are_downloaded(call, hub, saved, tmp_path):
    call(push_to_hub, saved, NAME)
    repository = hub.repositories[NAME]
    alien = {
        "evil.py": b"raise SystemExit",
        "pytorch_model.bin": b"pickle",
        "other.safetensors": b"large",
        "x/y.json": b"{}",
    }
    repository.add("main", repository.commits[repository.refs["main"]] | alien)
    hub.requests.clear()
    call(hub_client.logits, NAME, random_frames())
    assert not [request for request in hub.requests if any(name in request for name in alien)]


def test_x_clip_of_transformers_is_loaded_from_the_hub(call, hub, tmp_path):
    folder = write_model(tmp_path / "xclip", "small")
    stored = {path.name: path.read_bytes() for path in folder.iterdir()}
    alien = {"pytorch_model.bin": b"pickle", "modeling.py": b"raise SystemExit", "flax_model.msgpack": b"large"}
    hub.repositories["user/xclip"] = Repository(private=False)
    hub.repositories["user/xclip"].add("main", stored | alien)
    frames = torch.randint(256, (1, 3, 3, 32, 32), dtype=torch.uint8)
    actual = call(hub_client.video_features, "user/xclip", frames)
    assert torch.equal(actual, hub_client.video_features(str(folder), frames))
    assert not [request for request in hub.requests if any(name in request for name in alien)]


@pytest.mark.parametrize("repo_id", ["model", "a/b/c", "user/two words", ""])
def test_invalid_repo_id_is_refused(call, hub, saved, repo_id):
    with pytest.raises(ValueError, match=r"repo_id='.*expected user/name"):
        call(push_to_hub, saved, repo_id)
    assert not hub.requests


def test_damaged_folder_is_not_pushed(call, hub, saved):
    with (saved / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or was changed"):
        call(push_to_hub, saved, NAME)
    assert not hub.requests


# The card


def test_card_has_figures(saved):
    card = ModelCard(card_text(saved, NAME))
    data = card.data.to_dict()
    assert data["library_name"] == "clipvid"
    assert data["pipeline_tag"] == "video-classification"
    assert "ila" in data["tags"]
    result = data["model-index"][0]["results"][0]
    assert result["task"]["type"] == "video-classification"
    assert (result["dataset"]["name"], result["dataset"]["split"]) == ("weizmann", "val.txt")
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        "top-1 accuracy": 0.75,
    }
    assert f'clipvid.from_pretrained("{NAME}")' in card.text
    assert "lr: 0.125" in card.text
    for name, link in (("ila", "2304.10465"), ("CLIP", "2103.00020")):
        assert re.search(rf"- {name}: .*https://arxiv\.org/abs/{link}", card.text)
    assert "somebody" not in str(card)


def test_card_names_the_base_model(make_model, saved):
    record = json.loads((saved / "config.json").read_text())
    record["backbone"] |= {"name": "ViT-B-16", "pretrained": "openai"}
    (saved / "config.json").write_text(json.dumps(record))
    assert ModelCard(card_text(saved, NAME)).data.base_model == "timm/vit_base_patch16_clip_224.openai"


def test_edited_card_is_kept(call, hub, saved):
    path = saved / "README.md"
    assert not is_edited(path.read_text())
    call(push_to_hub, saved, NAME)
    assert f'from_pretrained("{NAME}")' in hub.files(NAME)["README.md"].decode()
    repository = hub.repositories[NAME]
    edited = hub.files(NAME)["README.md"].replace(b"## Use", b"## How I use it")
    repository.add("main", hub.files(NAME) | {"README.md": edited})
    assert call(push_to_hub, saved, NAME).kept_card
    assert hub.files(NAME)["README.md"] == edited

    assert not call(push_to_hub, saved, NAME, False, None, True).kept_card
    assert hub.files(NAME)["README.md"] == card_text(saved, NAME).encode()

    path.write_text(mine := path.read_text().replace("## Use", "## My words"))
    write_card(saved)
    assert path.read_text() == mine
    call(push_to_hub, saved, NAME)
    assert hub.files(NAME)["README.md"].decode() == mine


def test_unedited_card_is_replaced(call, hub, saved):
    call(push_to_hub, saved, NAME)
    (saved / "metrics.json").write_text(json.dumps(METRICS | {"nll": 0.25}))
    call(push_to_hub, saved, NAME)
    assert "| nll | 0.250 |" in hub.files(NAME)["README.md"].decode()


def test_card_has_no_local_paths(call, hub, saved):
    record = json.loads((saved / "config.json").read_text())
    record["backbone"]["name"] = record["model"]["backbone"] = "local-dir:/home/somebody/clip"
    (saved / "config.json").write_text(json.dumps(record))
    call(push_to_hub, saved, NAME)
    assert json.loads(hub.files(NAME)["config.json"])["backbone"]["name"] == "local-dir:clip"
    assert not [path for path, content in hub.files(NAME).items() if b"somebody" in content]


def test_other_figures_are_not_pushed(call, hub, saved):
    """An example is a CLIP that was trained on stills."""
    (saved / "metrics.json").write_text(json.dumps({"loss": 1.0, "config": {"output_dir": "/home/somebody/clip"}}))
    call(push_to_hub, saved, NAME)
    assert "metrics.json" not in hub.files(NAME)
    assert not [path for path, content in hub.files(NAME).items() if b"somebody" in content]


# The commands


def test_push_command_and_its_dry_run(call, hub, saved):
    arguments = ("--model", str(saved), "--repo_id", NAME)
    code, out, _ = call(hub_client.command, "push", *arguments, "--dry_run", token=None)
    assert code == 0
    assert not hub.requests
    size = (saved / "model.safetensors").stat().st_size
    assert re.search(rf"^ +{size:,}  model\.safetensors$", out, re.MULTILINE)
    assert f"# {NAME}" in out
    code, out, err = call(hub_client.command, "push", *arguments, "--private", "--revision", "try")
    assert (code, out.strip()) == (0, f"{hub.url}/{NAME}/commit/{hub.repositories[NAME].refs['try']}"), err
    assert hub.repositories[NAME].private
    assert hub.files(NAME).keys() == {".gitattributes"}


def test_failed_push_is_one_line_without_token(call, hub, saved):
    code, out, err = call(hub_client.command, "push", "--model", str(saved), "--repo_id", NAME, token=READER)
    assert (code, out) == (1, "")
    assert err.startswith("clipvid push: the Hub refused user/model (403")
    assert len(err.splitlines()) == 1
    assert READER not in err
    call(hub_client.command, "push", "--model", str(saved), "--repo_id", NAME)
    assert not [path for path in saved.rglob("*") if path.is_file() and WRITER.encode() in path.read_bytes()]
    assert not [path for path, content in hub.files(NAME).items() if WRITER.encode() in content]


# A run that pushes at its end


@pytest.fixture(scope="module")
def run_arguments(tmp_path_factory) -> list[str]:
    """Return command-line arguments of a fine-tuning run of one step."""
    world = WorldConfig(
        objects=("ball", "star"), motions=("horizontal",), num_frames=6, image_size=48,
        train_per_class=2, val_per_class=1, test_per_class=0,
    )  # fmt: skip
    root = build_world(world, tmp_path_factory.mktemp("world"), progress=False)
    options = {
        "data.root": root,
        "data.num_workers": 0,
        "model.adapter": "shift",
        "model.tune": "[adapters, layernorm]",
        "model.num_frames": 2,
        "training.epochs": 1,
        "training.per_device_train_batch_size": 4,
        "training.report_to": "none",
        "selection.folds": 0,
        "hub.push_to_hub": "true",
        "hub.repo_id": NAME,
    }
    return [f"--{key}={value}" for key, value in options.items()]


def test_finished_run_is_pushed(call, hub, run_arguments, tmp_path):
    arguments = [*run_arguments, f"--output_dir={tmp_path}"]
    code, _, err = call(hub_client.command, "finetune", *arguments, token=READER)
    assert code == 1
    assert f"push it later: clipvid push --model {tmp_path} --repo_id {NAME}" in err
    assert (tmp_path / "metrics.json").is_file()
    code, out, err = call(hub_client.command, "finetune", *arguments)
    assert code == 0, err
    assert "is already finished" in out
    assert f"{hub.url}/{NAME}/commit/" in out
    figures = json.loads((tmp_path / "metrics.json").read_text())
    card = ModelCard(hub.files(NAME)["README.md"].decode())
    assert card.data.to_dict()["model-index"][0]["results"][0]["metrics"][0]["value"] == figures["top1"]["value"]
    frames = random_frames(1, 2, 48)
    assert torch.equal(call(hub_client.logits, NAME, frames), call(hub_client.logits, str(tmp_path), frames))
    video = next(Path(run_arguments[0].removeprefix("--data.root=")).rglob("*.mp4"))
    code, out, _ = call(hub_client.command, "predict", "--model", NAME, str(video))
    predicted = {item["label"]: item["score"] for item in json.loads(out)["predictions"]}
    assert {item["label"]: item["score"] for item in call(hub_client.classify, NAME, str(video))} == predicted


@pytest.mark.parametrize(
    ("options", "token", "message"),
    [
        ([], None, "the requested push to the Hub will not work"),
        ([], "hf_nobody", "401"),
        (["--hub.repo_id=model"], WRITER, "lacks the user or organization"),
        (["--data.protocol=leave_one_group_out"], WRITER, "makes a model for each group"),
    ],
    ids=["no token", "unknown token", "no id", "cross-validation"],
)
def test_push_is_checked_before_training(call, hub, run_arguments, tmp_path, options, token, message):
    output = tmp_path / "run"
    code, _, err = call(hub_client.command, "finetune", *run_arguments, f"--output_dir={output}", *options, token=token)
    assert code == 1
    assert message in err
    assert not output.exists()


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name != "none"])
def test_card_cites_the_papers_of_every_adapter(make_model, tmp_path, name):
    assert ADAPTERS[name].papers
    make_model(name, LABELS, pooling="mit", tune=["adapters", "lora"]).save_pretrained(tmp_path)
    text = card_text(tmp_path, NAME)
    for part, papers in ((name, ADAPTERS[name].papers), ("mit", MIT.papers), ("lora", LoraConfig.papers)):
        for paper in papers:
            assert re.search(r"https://arxiv\.org/abs/\d{4}\.\d{5}$", paper)
            assert f"- {part}: {paper}" in text
