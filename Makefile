PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo docs real-video test test-all test-gpu lint clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "clipvid needs Python 3.11 or newer; PYTHON=/path/to/python make ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing clipvid and what it needs into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar on -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/clipvid demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'slow or not slow'

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu tests/test_gpu.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --platform linux
	$(BIN)/mypy --platform darwin
	$(BIN)/mypy --platform win32
	$(BIN)/lint-imports

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/mkdocs build --strict

# The ladders of docs/results/real-video.md; each trial is run once: make real-video WEIZMANN=... UCF=... TOWER=...
LADDER = $(BIN)/clipvid benchmark ladder --jobs 2 --trial.recipe.model.backbone local-dir:$(TOWER)
FEW = --config configs/ladder/two_clips.yaml --output_dir outputs/ladder
MORE = --config configs/ladder/five_to_ten_clips.yaml --output_dir outputs/ladder
real-video: $(INSTALLED)
	$(LADDER) --config configs/ladder/weizmann_tower.yaml --trial.data.root $(WEIZMANN)
	$(LADDER) --config configs/ladder/ucf101_mini_tower.yaml --trial.data.root $(UCF)
	$(LADDER) --config configs/ladder/weizmann_tower.yaml --trial.data.root $(WEIZMANN) \
	  --trial.protocol.shots 2 $(FEW)/weizmann_tower_2_clips
	$(LADDER) --config configs/ladder/ucf101_mini_tower.yaml --trial.data.root $(UCF) \
	  --trial.protocol '{name: holdout, shots: 2}' $(FEW)/ucf101_mini_tower_2_clips
	$(LADDER) --config configs/ladder/ucf101_mini_tower.yaml --trial.data.root $(UCF) \
	  --trial.protocol '{name: holdout, shots: 5}' $(MORE)/ucf101_mini_tower_5_clips
	$(LADDER) --config configs/ladder/ucf101_mini_tower.yaml --trial.data.root $(UCF) \
	  --trial.protocol '{name: holdout, shots: 10}' --trial.recipe.training.epochs 5 $(MORE)/ucf101_mini_tower_10_clips

clean:
	rm -rf outputs
