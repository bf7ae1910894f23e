# proxytune: `make help` says what there is to make.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo fidelity test audit test-core test-mistralrs test-openai test-orders test-serve test-cpp test-python test-plugin test-vllm \
    bench bench-memory bench-peers bench-plugin bench-vllm build install lint load miri doc plugin install-deps target-dir

# Outside the working tree, so that it outlives a fresh checkout. One already set is kept.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/proxytune-target
# A new rustup is found before the shell has been opened anew.
export PATH := $(PATH):$(HOME)/.cargo/bin

# Passed to cargo, for instance FEATURES=cuda.
FEATURES ?=
CARGO_FLAGS := --locked $(if $(FEATURES),--features $(FEATURES))
# With mistral.rs in it, which takes a while to compile the first time.
ALL_FLAGS := --locked --features "serve $(FEATURES)"

PROXYTUNE := $(CARGO_TARGET_DIR)/release/proxytune
TRIO := --host models/tiny-host.gguf --tuned models/tiny-tuned.gguf --untuned models/tiny-untuned.gguf

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

demo: build ## Build, check the tiny trio, show the host alone and proxy-tuned
	@$(PROXYTUNE) check $(TRIO)
	@echo
	@scripts/demo.sh $(PROXYTUNE) $(TRIO)

# The sanitizers, faults in llama-server, black boxes and vLLM have targets of their own: test-cpp, test-plugin, test-openai, test-vllm.
test: lint doc audit test-core test-orders test-mistralrs test-serve test-python ## All that must hold before a change is taken (the first time about 40 minutes on two cores)
	@CHECKS="plain install" scripts/test-cpp.sh
	@TESTS="test_plugin test_chat" $(MAKE) test-plugin

test-core: install-deps target-dir ## The tests that need no engine but llama.cpp
	cargo test --release $(CARGO_FLAGS)

test-mistralrs: install-deps target-dir ## The plugin in mistral.rs
	cargo test --release $(ALL_FLAGS) --test mistralrs

# Short: for a look, and for ratios. cargo bench --bench NAME measures one of them at length.
BENCH_TIME := --warm-up-time 0.3 --measurement-time 0.5 --noplot
BENCHED := $(CARGO_TARGET_DIR)/bench

bench: build ## Micro-benchmarks, then tokens/s of the tiny trio, each beside its floor, as tables and pictures (five minutes)
	@mkdir -p "$(BENCHED)" && touch "$(BENCHED)/begun"
	cargo bench $(CARGO_FLAGS) --benches -- $(BENCH_TIME)
	cargo bench --locked -p proxytune-cpp --features bench --bench ffi -- $(BENCH_TIME)
	$(PROXYTUNE) bench $(TRIO) --prompt-file models/demo-prompts.txt --alpha 0.5 --svg "$(BENCHED)/trio.svg" > "$(BENCHED)/trio.txt"
	python3 benches/micro.py "$(CARGO_TARGET_DIR)/criterion" --since "$(BENCHED)/begun" --svg "$(BENCHED)/micro.svg" > "$(BENCHED)/micro.txt"
	@cat "$(BENCHED)"/{micro,trio}.txt
	@ls "$(BENCHED)"/*.txt "$(BENCHED)"/*.svg

PEERS_DIR ?= $(HOME)/.cache/proxytune-peers
# Flags such as --trio shipped --rounds 2.
PEERS ?=

bench-peers: build ## transformers, llama.cpp and mistral.rs beside proxytune, on three trios (installs torch once; FEATURES=serve for mistral.rs)
	@scripts/venv.sh "$(PEERS_DIR)/venv" benches/peers/requirements.txt
	"$(PEERS_DIR)/venv/bin/python" benches/peers "$(PROXYTUNE)" --models "$(PEERS_DIR)/models" $(PEERS)

FIDELITY_DIR ?= $(HOME)/.cache/proxytune-fidelity
# --write renews docs/fidelity.md.
FIDELITY ?=

fidelity: build ## The paper's tables in small: tunes tiny models on two tasks, scores all (installs torch; an hour or more the first time)
	@scripts/venv.sh "$(FIDELITY_DIR)/venv" models/fidelity/requirements.txt
	"$(FIDELITY_DIR)/venv/bin/python" models/fidelity "$(PROXYTUNE)" --cache "$(FIDELITY_DIR)" $(FIDELITY)

build: install-deps target-dir ## Build the release binary
	cargo build --release $(CARGO_FLAGS)

lint: install-deps target-dir ## cargo fmt --check and clippy, warnings are errors
	@scripts/component.sh rustfmt fmt || exit 0; set -x; cargo fmt --check
	@scripts/component.sh clippy clippy || exit 0; set -x; cargo clippy --release --all-targets $(CARGO_FLAGS) -- -D warnings; cargo clippy --release --all-targets $(ALL_FLAGS) -- -D warnings

audit: install-deps ## Dependencies against deny.toml: licences, sources, known vulnerabilities
	@scripts/audit.sh

# llama.cpp's source tree or install prefix; empty: where the compiler finds llama.h.
LLAMA_DIR ?=
# Of its own, since the same dependencies are built with other features.
PLUGIN_TARGET_DIR := $(or $(PLUGIN_TARGET_DIR),$(CARGO_TARGET_DIR)-plugin)
export PLUGIN_TARGET_DIR
PLUGIN := $(PLUGIN_TARGET_DIR)/release/libproxytune_llama.so
plugin test-plugin bench-plugin: export CARGO_TARGET_DIR := $(PLUGIN_TARGET_DIR)

plugin: install-deps ## The plugin for llama.cpp programs: make plugin LLAMA_DIR=<source tree or install prefix>
	@scripts/target-dir.sh "$(PLUGIN_TARGET_DIR)"
	LLAMA_DIR="$(LLAMA_DIR)" cargo build --release --locked -p proxytune-llama
	@echo "$(PLUGIN)"

test-plugin: ## The plugin in an unmodified llama-server, which is built once (about ten minutes on two cores)
	@scripts/target-dir.sh "$(PLUGIN_TARGET_DIR)"
	@scripts/test-plugin.sh $(MAKE)

test-orders: ## The runner in many orders of events; SHUTTLE_ITERATIONS asks for more
	RUSTFLAGS="--cfg shuttle" CARGO_TARGET_DIR="$(CARGO_TARGET_DIR)-orders" \
	    cargo test --release --locked --no-default-features --test interleavings

miri: install-deps ## What needs no engine under Miri, where rustup has it: combination, planner, pair, runner, C and C++ interfaces
	@scripts/miri.sh

load: install-deps target-dir ## Many clients against serve and llama-server, beside their engines alone; MINUTES=1 to try, 20 by default
	@$(MAKE) plugin LLAMA_DIR="$$(scripts/llama-server.sh --source)"
	@PLUGIN="$(PLUGIN)" scripts/load.sh

test-serve: install-deps target-dir ## The server, by the official openai client; compiles mistral.rs (about 18 minutes on two cores)
	@scripts/test-serve.sh

test-openai: install-deps target-dir ## Hosts behind an API: servers of llama.cpp, llama-cpp-python and mistral.rs as black boxes (compiles mistral.rs)
	@scripts/test-openai.sh

PREFIX ?= /usr/local
CPP_BUILD_DIR ?= $(CARGO_TARGET_DIR)/cpp
export CPP_BUILD_DIR

install: install-deps target-dir ## Install the C++ library: make install PREFIX=<where to>
	rm -f "$(CPP_BUILD_DIR)/plain/CMakeCache.txt" # one made from another checkout would be refused
	cmake -S bindings/cpp -B "$(CPP_BUILD_DIR)/plain" -DPROXYTUNE_FEATURES="$(FEATURES)"
	cmake --build "$(CPP_BUILD_DIR)/plain" --target shared static
	cmake --install "$(CPP_BUILD_DIR)/plain" --prefix "$(PREFIX)"

test-cpp: install-deps target-dir ## The C++ library, also under sanitizers and as installed (builds a llama.cpp once)
	@scripts/test-cpp.sh

test-python: install-deps target-dir ## The Python package by itself, installed by pip into an environment of its own (about two minutes the first time)
	@scripts/test-python.sh

test-vllm: install-deps target-dir ## The Python package in vLLM, transformers and llama-cpp-python (installs them once: several GB)
	@scripts/test-vllm.sh

# MODELS="HOST TUNED UNTUNED": GGUF files instead of the tiny trio; MODELS=random: a host of 1.1 B parameters and proxies of 92 M, which
# are made once. BENCH: flags such as --rounds 2.
bench-plugin: ## llama-server alone and with the plugin, with and without drafts, against the floor
	@scripts/target-dir.sh "$(PLUGIN_TARGET_DIR)"
	@scripts/bench-plugin.sh $(MAKE) llama_server $(BENCH) $(MODELS)

bench-memory: build ## Memory that the proxies need in llama-server beside their weights and KV caches; MODELS as above, BENCH="--slots 4"
	@scripts/target-dir.sh "$(PLUGIN_TARGET_DIR)"
	@CARGO_TARGET_DIR="$(PLUGIN_TARGET_DIR)" scripts/bench-plugin.sh $(MAKE) memory --program "$(PROXYTUNE)" $(BENCH) $(MODELS)

bench-vllm: install-deps target-dir ## Tokens/s of vLLM alone, with a naive processor and with ours, against the floor
	@scripts/test-vllm.sh --bench

# In release as well: a debug build would compile the engine a second time.
doc: install-deps target-dir ## Build the documentation, warnings are errors
	RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps $(ALL_FLAGS)

install-deps: ## Install what the engine's build needs and is missing (Debian, Ubuntu)
	@scripts/install-deps.sh

target-dir:
	@scripts/target-dir.sh "$(CARGO_TARGET_DIR)"
