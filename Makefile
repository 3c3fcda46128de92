# Fleethub. `make help` lists the targets; each says what it does beside its name.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

GO       ?= go
PROGRAMS := hub provisioning device-agent firmware-sim
COMMIT   := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
STAMP    := -X github.com/fleethub/fleethub/certs/command.commit=$(COMMIT)
# Go files that are ours: not what a build or a demo left behind.
SOURCES   = $(shell find . -name '*.go' -not -path './_dev/*' -not -path './.git/*')
# staticcheck is pinned in a module file of its own, so that linting adds nothing to what the programs depend on.
LINTER   := $(GO) tool -modfile=scripts/tools.mod staticcheck

# Where cross puts the boards' binaries.
DIST     ?= dist
BENCH    ?= .
FUZZTIME ?= 20s
TESTTIME ?= 10m
PACKAGES ?= ./...

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the four programs into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(STAMP)' -o bin/ $(addprefix ./,$(PROGRAMS))

.PHONY: run
run: build ## build, then run a throwaway fleet of 25 devices under _dev/ until Ctrl-C
	@scripts/demo.sh

.PHONY: test
test: setup lint ## everything CI checks: what the tests need, lint, then every test under the race detector
	$(GO) test -race -timeout $(TESTTIME) $(PACKAGES)
	@$(MAKE) --no-print-directory tagged

.PHONY: tagged
tagged: setup ## the tests with a real browser (Chromium) and with keys in an HSM (SoftHSM2, a build with cgo); `test` runs them, too
	@GO='$(GO)' TESTTIME='$(TESTTIME)' scripts/tagged.sh browser pkcs11

.PHONY: race
race: setup ## every test three times, shuffled, under the race detector: what is flaky shows here
	$(GO) test -race -shuffle=on -count=3 -timeout 30m $(PACKAGES)

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (20s) each
	@GO='$(GO)' scripts/fuzz.sh '$(FUZZTIME)'

.PHONY: lint
lint: ## gofmt, go vet, staticcheck, shellcheck
	@unformatted="$$(gofmt -l $(SOURCES))"; \
	if [[ -n "$$unformatted" ]]; then echo "not formatted, run gofmt -w on:" >&2; echo "$$unformatted" >&2; exit 1; fi
	$(GO) vet ./...
	$(LINTER) ./...
	shellcheck scripts/*.sh .ci/run

.PHONY: bench
bench: ## the benchmarks, one package at a time (BENCH=regexp picks some)
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -p 1 -timeout 30m $(PACKAGES)

.PHONY: bench-peers
bench-peers: ## the hub beside a bare crypto/tls server, mosquitto (Debian package mosquitto) and a stock mochi server, in one run
	@command -v mosquitto >/dev/null || [[ -x /usr/sbin/mosquitto ]] || { echo "bench-peers: there is no mosquitto; apt-get install mosquitto" >&2; exit 1; }
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 60m ./firmware-sim/peers -args -peers

.PHONY: bench-revoke
bench-revoke: ## cut one of 10,000 connected devices off, then all of them in one order, while 500 others are watched: a minute
	$(GO) test -run '^$$' -bench Revoke -benchtime 1x -timeout 10m ./firmware-sim/peers

.PHONY: interop
interop: setup ## public MQTT interoperability suites against the hub (fetched with git, needs python3): some ten minutes
	scripts/interop.sh

.PHONY: soak
soak: setup ## 50 kills, 50 power cuts and every fault at full size, judged from outside (as root; an hour or more)
	SOAK_KILLS=50 SOAK_CONNECTS=1000000 SOAK_STOP=30s SOAK_FUZZ=5m $(GO) test -count=1 -v -timeout 4h ./firmware-sim/soak

.PHONY: cross
cross: ## device-agent for the boards: dist/device-agent-linux-{amd64,arm64,armv7,armv6}, static and stripped
	@for target in amd64 arm64 armv7 armv6; do \
		arch=$${target%v[67]}; arm=$${target#"$$arch"}; \
		echo "$(DIST)/device-agent-linux-$$target"; \
		CGO_ENABLED=0 GOOS=linux GOARCH=$$arch GOARM=$${arm#v} \
			$(GO) build -trimpath -ldflags '-s -w $(STAMP)' -o $(DIST)/device-agent-linux-$$target ./device-agent; \
	done

.PHONY: e2e
e2e: setup ## only the end-to-end stories over the four real programs, each test named as it runs
	$(GO) test -race -count=1 -v -timeout $(TESTTIME) ./firmware-sim/e2e

.PHONY: setup
setup: ## install from Debian what the tests need (root or sudo), or name what is missing
	@scripts/setup.sh

.PHONY: clean
clean: ## remove what was built and the throwaway fleet
	rm -rf bin dist _dev coverage.out
