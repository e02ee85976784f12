# The targets of overlayd; `make help` lists them.
SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory

# ip, iptables and sshd live where a user's PATH may not look.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

# Namespaces need root; a user is asked by sudo.
SUDO    := $(if $(filter-out 0,$(shell id -u)),sudo -E)
VERSION := $(or $(shell git describe --tags --always --dirty 2>/dev/null),unknown)

# Static, the same bytes from any directory, and no need for git's permission
# to read a tree of another owner.
GOBUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'

PLATFORMS := linux/amd64 linux/arm64 darwin/arm64 windows/amd64

# How long each fuzz target runs; how long and how often the benchmark measures.
export FUZZTIME      ?= 60s
export BENCH_SECONDS ?= 5
export BENCH_ROUNDS  ?= 3
# Which sections or events the benchmarks take; empty: all.
export ONLY          ?=
# How often everything happens in bench-recovery.
export ROUNDS        ?= 10

.PHONY: help build demo lab test lint cross race bench bench-recovery bench-entries pgo fuzz clean bin/overlayd bin/overlayd-unfiltered bin/lab bin/bench bin/wireguard-go
.DEFAULT_GOAL := help

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r target text; do printf '  make %-14s %s\n' "$$target" "$$text"; done

build: bin/overlayd ## build bin/overlayd, static

demo: bin/overlayd bin/lab ## three machines in one, from the three commands to a page of the LAN; a minute
	@examples/lab/install.sh demo
	@$(SUDO) bin/lab demo

lab: bin/overlayd bin/lab ## the same machines, kept up for you to enter until Ctrl-C
	@examples/lab/install.sh demo
	@$(SUDO) bin/lab up

test: lint cross ## everything a change must pass: lint, all platforms, all tests (as root: in namespaces too)
	@examples/lab/install.sh test
	@echo "== go test ./..."
	@go test -count=1 -timeout 14m ./...

lint: ## gofmt, go vet, staticcheck
	@echo "== gofmt, go vet, staticcheck"
	@bad=$$(gofmt -l .); if [ -n "$$bad" ]; then echo "gofmt: run gofmt -w on:" $$bad >&2; exit 1; fi
	@go vet ./...
	@go tool -modfile=tools.mod staticcheck ./...

# Without the profile, which would have everything compiled twice over.
cross: ## compile for every platform
	@for p in $(PLATFORMS); do echo "== build $$p"; GOOS=$${p%/*} GOARCH=$${p#*/} CGO_ENABLED=0 go build -pgo=off ./...; done

race: ## all tests under the race detector, simulations shortened (needs a C compiler)
	@go test -race -short -timeout 20m ./...

bench: bin/overlayd bin/overlayd-unfiltered bin/bench bin/wireguard-go ## speed, beside wireguard-go, plain routing and no filter (BENCH_SECONDS, BENCH_ROUNDS, ONLY=relayed,direct,tls,filter)
	@examples/lab/install.sh bench
	@$(SUDO) bin/bench
	@$(if $(ONLY),,$(SUDO) bin/bench ways)

bench-recovery: bin/overlayd bin/bench ## how soon packets flow again after what can happen (ROUNDS, ONLY=roam,relay-restart,...)
	@examples/lab/install.sh bench
	@$(SUDO) bin/bench recovery

bench-entries: bin/overlayd bin/bench ## proxy, forwards and nc, beside plain packets (BENCH_SECONDS, BENCH_ROUNDS)
	@examples/lab/install.sh bench
	@$(SUDO) bin/bench entries -seconds $(BENCH_SECONDS) -rounds $(BENCH_ROUNDS)

pgo: bin/bench bin/wireguard-go ## measure where overlayd spends its time, for the compiler: cmd/overlayd/default.pgo
	@examples/lab/install.sh bench
	@$(GOBUILD) -pgo=off -tags profile -o bin/overlayd-profile ./cmd/overlayd
	@rm -rf bin/profile && mkdir -p bin/profile
	@$(SUDO) env PROFILE_DIR=$(CURDIR)/bin/profile bin/bench -overlayd bin/overlayd-profile -only relayed,direct,tls -probes one,four,reverse -rounds 1 -seconds 12 -out bin/profile
	@find bin/profile -name '*.pprof' -empty -delete
	@# The path of the measured binary says nothing to the compiler, and much of the machine.
	@path=$(CURDIR)/bin/overlayd-profile; go tool pprof -proto bin/profile/*.pprof | gunzip | LC_ALL=C sed "s|$$path|$${path//?/-}|" | gzip -9n > cmd/overlayd/default.pgo
	@ls -l cmd/overlayd/default.pgo

fuzz: ## every fuzz target for FUZZTIME (60s) each
	@.ci/fuzz

clean: ## remove what make made, and what a killed lab left
	@rm -rf bin bench-results
	@if [ "$$(id -u)" = 0 ]; then go run ./examples/lab/cmd clean; fi

bin/overlayd:
	@$(GOBUILD) -o $@ ./cmd/overlayd

# What the benchmark compares the filter with; nothing else may use it.
bin/overlayd-unfiltered:
	@$(GOBUILD) -tags unfiltered -o $@ ./cmd/overlayd

bin/lab:
	@$(GOBUILD) -o $@ ./examples/lab/cmd

bin/bench:
	@$(GOBUILD) -o $@ ./examples/lab/bench

# What the benchmark compares with: the very module version that overlayd is built on.
bin/wireguard-go:
	@$(GOBUILD) -o $@ golang.zx2c4.com/wireguard
