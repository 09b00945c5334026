# make demo | make test: the two to know. Everything below calls `make install` by itself.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= 2.13.0
RUN ?= runs/demo
ASSETS ?=

.PHONY: install demo demo-short check format test test-slow gpu-check validator clean

install: $(VENV)/.installed .venv-blender/.installed

$(VENV)/.installed: pyproject.toml requirements/train.txt scripts/install.sh
	bash scripts/install.sh train "$(PYTHON)" "$(VENV)" "$(TORCH)"

.venv-blender/.installed: requirements/blender.txt scripts/install.sh
	bash scripts/install.sh blender "$(PYTHON)" .venv-blender

demo: install
	$(BIN)/python scripts/demo.py run_dir="$(RUN)" assets="$(ASSETS)"

demo-short: install
	$(BIN)/python scripts/demo.py run_dir="$(RUN)" assets="$(ASSETS)" short=true

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/pyright
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow and not gpu and not blender" tests/unit

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: install validator
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow" --durations=10

test-slow: install validator
	$(BIN)/python -m pytest -q -m slow --durations=10

gpu-check: install
	$(BIN)/python -m pytest -q -m gpu tests/gpu

# The Khronos glTF validator, for the tests of exported GLBs; without Node.js they skip, saying so.
validator:
	@if command -v npm >/dev/null; then \
	  test -d tests/gltf_validator/node_modules || npm install --silent --no-audit --no-fund --prefix tests/gltf_validator; \
	else echo "npm is not installed: the tests of the Khronos validator will be skipped"; fi

clean:
	rm -rf $(VENV) .venv-blender runs
