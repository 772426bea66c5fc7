# `make demo` and `make test` do all the set-up that each needs, from nothing but Python and make.
PYTHON ?= python3
BIN ?= .venv/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo check test test-kaggle readme docs explorer hooks clean

demo: .venv/runtime  ## teach a generator of drawn people martians, in minutes
	$(BIN)/facegen train --preset demo
	@echo "for the command facegen in this shell: source .venv/bin/activate"

check: .venv/dev  ## between two edits: nothing out of step, the rules of the house, the path's pages, fast tests
	$(BIN)/python -m pytest -q -n 2 -m "not slow" tests
	$(BIN)/nbdev_test --n_workers 2 --file_re '^[0-9]' --do_print

test: .venv/dev test-kaggle  ## everything that must hold; ends with pytest's summary
	$(BIN)/nbdev_test --n_workers 2 --do_print  # each page, from its first cell to its last
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests

# Kaggle's image: Python 3.13, TensorFlow 2.20, Keras 3.13.2, Jupyter, and nothing that only development needs.
test-kaggle:
	@python=; for p in python3.13 "$$PYENV_ROOT"/versions/3.13*/bin/python3.13; do \
	  if "$$p" -c "import venv, ensurepip" 2>/dev/null; then python=$$p; break; fi; done; \
	if [ -z "$$python" ]; then echo "Kaggle's versions: not tested, no Python 3.13 here"; \
	else $(MAKE) --no-print-directory .venv-kaggle/ready PYTHON="$$python" || exit; \
	  .venv-kaggle/bin/python -m pytest -q tests/test_kernel_sessions.py -k offline & session=$$!; \
	  .venv-kaggle/bin/pytest -q tests/test_parity.py tests/test_runtime.py; result=$$?; \
	  wait $$session && exit $$result; fi

readme: README.md README.zh-CN.md  ## from the pages index of nbs/; cells with nbdev directives stay out
README.md: nbs/index.ipynb
README.zh-CN.md: nbs/index.zh-CN.ipynb
README.md README.zh-CN.md:
	@$(BIN)/jupyter nbconvert --version > /dev/null 2>&1 || { \
	  echo "$@: left as it was, since $(BIN) lacks Jupyter's nbconvert; run make .venv/dev, then this again" >&2; exit 2; }
	@trap 'rm -f $@.md.part $@.part' EXIT; \
	$(BIN)/jupyter nbconvert --to markdown --RegexRemovePreprocessor.patterns='#\|' --stdout $< > $@.md.part && \
	  sed -E 's#\]\(index(\.zh-CN)?\.ipynb\)#](README\1.md)#g; s#\]\(([^):]*\.(ipynb|png))\)#](nbs/\1)#g' $@.md.part > $@.part && mv $@.part $@ || { \
	  echo "$@: left as it was" >&2; exit 2; }

docs: explorer  ## the notebooks as a site, in build/docs/html
	$(BIN)/python -m sphinx -M html nbs build/docs -c docs -W -q
	@echo "the site begins with build/docs/html/index.html"

explorer: .venv/docs  # for the site: of the first generator of the package that is free of others' terms; nothing, where there is none
	@rm -rf build/docs; \
	name=$$($(BIN)/python -c "from facegen_keras.share.terms import free_generator; print(free_generator() or '')") || exit; \
	if [ -n "$$name" ]; then $(BIN)/facegen explore "$$name" --out build/docs/extra/explore; fi

# What the explorer runs in a browser; its tests, and `facegen explore --runtime build/onnxruntime-web`, ask no other host then.
build/onnxruntime-web: facegen_keras/share/runtime.py
	@version=$$(sed -n 's/^RUNTIME_VERSION = "\([^"]*\)".*/\1/p' $<); \
	rm -rf $@ $@.part && mkdir -p $@.part && cd $@.part && npm pack --silent onnxruntime-web@$$version > /dev/null && \
	tar xzf *.tgz && cd - > /dev/null && mv $@.part/package $@ && rm -rf $@.part && touch $@

hooks: .venv/dev  ## git hooks that merge notebooks cell by cell
	$(BIN)/nbdev_install_hooks

clean:
	rm -rf .venv .venv-kaggle build *.egg-info

.venv/made:  # not .venv/bin/python, which a venv that failed leaves behind
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))" 2>/dev/null || \
	  { echo "Python: expected 3.11 to 3.13, got $$(command -v $(PYTHON) >/dev/null && $(PYTHON) --version 2>&1 || echo none); run make PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/runtime: .venv/made settings.ini setup.py
	$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/dev: .venv/runtime
	$(BIN)/pip install --quiet --editable ".[dev]"
	@touch $@

.venv/docs: .venv/runtime
	$(BIN)/pip install --quiet --editable ".[docs]"
	@touch $@

.venv-kaggle/ready: settings.ini setup.py
	$(PYTHON) -m venv .venv-kaggle
	.venv-kaggle/bin/pip install --quiet . pytest "tensorflow==2.20.*" "keras==3.13.2"
	@touch $@
