# `make run` and `make test` do all that is needed on a machine where only Rust is installed, as often as you like.

SHELL := bash
export CARGO_TARGET_DIR ?= $(CURDIR)/target
# The compiler cache appears while `deps` runs, so each command looks for it anew.
CARGO := . scripts/env.sh && cargo

.DEFAULT_GOAL := help

.PHONY: help
help: ## Say what there is
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 19

.PHONY: deps
deps: ## Install what building needs (Debian, Ubuntu), or say what is missing
	@scripts/deps.sh build

.PHONY: build
build: deps ## Build the program as it is run
	@$(CARGO) build --release --locked

.PHONY: run
run: build ## Start a node with its data in ./data
	@exec "$$CARGO_TARGET_DIR/release/kontor" serve

.PHONY: test
test: deps ## Run every test, also with real Matrix clients
	@scripts/deps.sh test
	$(CARGO) test --locked
	@KONTOR_BIN="$$CARGO_TARGET_DIR/debug/kontor" tests/clients/run.sh
	@KONTOR_BIN="$$CARGO_TARGET_DIR/debug/kontor" tests/offices/run.sh Outage
	@cd complement && python3 -m unittest test_verdict

.PHONY: clients
clients: deps ## Run today's apps, which encrypt, in one office and in two
	@scripts/deps.sh test
	@$(CARGO) build --locked
	@export KONTOR_BIN="$$CARGO_TARGET_DIR/debug/kontor"; \
	SUITES=rust_sdk tests/clients/run.sh; code=$$?; \
	tests/offices/run.sh Encryption && exit $$code

.PHONY: interop
interop: deps ## Share rooms with a real Synapse (see tests/offices/README.md)
	@scripts/deps.sh test
	@$(CARGO) build --locked
	@KONTOR_BIN="$$CARGO_TARGET_DIR/debug/kontor" tests/offices/run.sh Interop

.PHONY: complement
complement: deps ## Run the whole acceptance suite (see complement/README.md)
	@complement/run.sh

.PHONY: fmt
fmt: ## Format the code
	@$(CARGO) fmt
	@$(CARGO) fmt --manifest-path tests/clients/rust-sdk/Cargo.toml

.PHONY: lint
lint: deps ## Check the format and the lints
	@$(CARGO) fmt --check
	@$(CARGO) fmt --check --manifest-path tests/clients/rust-sdk/Cargo.toml
	$(CARGO) clippy --locked --all-targets -- --deny warnings

.PHONY: clean
clean: ## Remove what was built; ./data stays
	@$(CARGO) clean
