"""Registration of clipvid's models with transformers, in any order of imports."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import clipvid

MODEL = Path(__file__).parent / "saved_models" / "ila"
USES = {
    "pipeline": "from transformers import pipeline; made = pipeline('video-classification', DIR, device='cpu').model",
    **{
        name: f"from transformers import {name}; made = {name}.from_pretrained(DIR)"
        for name in ("AutoConfig", "AutoModelForVideoClassification", "AutoVideoProcessor")
    },
}
CHECK = 'assert type(made).__module__.startswith("clipvid.inference.")'
FIRST = {
    "clipvid": "import clipvid",
    "clipvid.training": "import clipvid.training.finetune, clipvid",
    "transformers": "import transformers, clipvid",
    "Auto classes": "from transformers import AutoConfig, AutoModelForVideoClassification; import clipvid",
    "modeling_layers": "import clipvid, transformers.modeling_layers",
    "peft": "import peft, clipvid",
    "clipvid, then peft": "import clipvid, peft",
}
PAIRS = {(first, "AutoModelForVideoClassification") for first in FIRST} | {("clipvid", use) for use in USES}
CASES = {f"{first}: {use}": f"{FIRST[first]}; {USES[use]}; {CHECK}" for first, use in sorted(PAIRS)}
# Each case has a separate process, forked after unrelated slow imports.
FORK = """
import json, os, sys, traceback
import av, huggingface_hub, PIL.Image, pyarrow, scipy.optimize, timm, torch, torchvision.transforms.v2
assert "transformers" not in sys.modules
torch.set_num_threads(1)
DIR, cases = json.loads(sys.stdin.read())
outcomes = {}
for name, code in cases.items():
    sys.stdout.flush()
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            exec(code)
            outcome = ""
        except BaseException:
            outcome = traceback.format_exc()[-3000:]
        os.write(writing, outcome.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        outcomes[name] = answer.read()
    os.wait()
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """Return the traceback of each case, empty for success."""
    asked = json.dumps([str(MODEL), CASES])
    run = subprocess.run([sys.executable, "-c", FORK], input=asked, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_a_saved_folder_in_any_import_order(outcomes, case):
    assert outcomes[case] == ""


def test_public_names_resolve():
    for name in clipvid.__all__:
        assert getattr(clipvid, name) is not None
    assert set(clipvid.__all__) <= set(dir(clipvid))


def test_the_stub_names_every_public_name_with_its_home():
    stub = ast.parse(Path(clipvid.__file__).with_suffix(".pyi").read_text())
    homes = {
        alias.asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    classes = {node.name for node in stub.body if isinstance(node, ast.ClassDef)}
    assert homes.keys() | classes == set(clipvid.__all__)
    for name, home in homes.items():
        assert getattr(importlib.import_module(home), name) is getattr(clipvid, name)
