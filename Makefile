# Targets of cohortbridge. `make help` lists them.
SHELL := /bin/bash
MODULES := gen platform services/registry services/ingestion services/cohortsync gateway sandbox cmd/cohortbridge e2e bench
GOFLAGS_BUILD := -trimpath
TOOLS := bin/tools

.PHONY: help
help: ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

$(TOOLS)/.gen: tools/gen/go.mod tools/gen/go.sum
	@mkdir -p $(TOOLS)
	cd tools/gen && GOWORK=off go build -o ../../$(TOOLS)/ tool
	@touch $@

$(TOOLS)/.lint: tools/lint/go.mod tools/lint/go.sum
	@mkdir -p $(TOOLS)
	cd tools/lint && GOWORK=off go build -o ../../$(TOOLS)/ tool
	@touch $@

.PHONY: gen
gen: $(TOOLS)/.gen ## Generate Go, gateway and OpenAPI from proto/.
	$(TOOLS)/buf format -w --path proto/cohortbridge
	$(TOOLS)/buf lint
	rm -rf gen/go gen/openapi
	$(TOOLS)/buf generate

.PHONY: gen-check
gen-check: gen ## Fail when generated code is not what proto/ says.
	@git diff --exit-code --stat -- gen proto || (echo "generated code is stale: run make gen and commit" >&2; exit 1)
	@test -z "$$(git status --porcelain -- gen proto)" || (git status --short -- gen proto; echo "generated files are not committed" >&2; exit 1)

.PHONY: breaking
breaking: $(TOOLS)/.gen ## Fail when a contract breaks clients (against the previous commit).
	@if git cat-file -e "$${BREAKING_AGAINST:-HEAD~1}:buf.yaml" 2>/dev/null; then \
	  $(TOOLS)/buf breaking --against ".git#ref=$$(git rev-parse "$${BREAKING_AGAINST:-HEAD~1}")"; \
	else echo "buf breaking: the previous commit has no contracts, nothing to compare"; fi

.PHONY: build
build: ## Build bin/cohortbridge.
	go build $(GOFLAGS_BUILD) -o bin/cohortbridge ./cmd/cohortbridge

.PHONY: run
run: build ## Start everything with demo data on http://127.0.0.1:8080 and stay up.
	bin/cohortbridge demo --stay --data-dir ./data --http-addr 127.0.0.1:8080 --grpc-addr 127.0.0.1:9090 --sandbox-addr 127.0.0.1:8090

.PHONY: demo
demo: build ## Show the whole product from empty to result, then exit.
	bin/cohortbridge demo $(DEMO_FLAGS)

.PHONY: test
test: ## Unit, embedded integration and sandbox end-to-end tests, race detector on.
	@for m in $(TEST_MODULES); do echo "== $$m"; (cd $$m && go test -race -timeout 15m ./...) || exit 1; done

TEST_MODULES := gen platform sandbox gateway services/registry services/cohortsync services/ingestion cmd/cohortbridge e2e

.PHONY: test-all
test-all: test ## Also the official clients over npm (needs chromium), kill -9 and destination faults.
	cd e2e/clients && npm ci --no-audit --no-fund
	cd e2e && go test -race -timeout 40m -tags clients,faults ./clients ./faults

SEEDS ?= 200
FIRST ?= 0
MODEL_TIMEOUT ?= 20m
.PHONY: model
model: ## Random histories against models of ingestion and of the sync engine: SEEDS=n from seed FIRST=k.
	cd services/cohortsync && COHORTBRIDGE_MODEL_SEEDS=$(SEEDS) COHORTBRIDGE_MODEL_FIRST=$(FIRST) go test -count=1 -timeout $(MODEL_TIMEOUT) ./modeltest
	cd services/ingestion && COHORTBRIDGE_MODEL_SEEDS=$(SEEDS) COHORTBRIDGE_MODEL_FIRST=$(FIRST) go test -count=1 -timeout $(MODEL_TIMEOUT) ./modeltest

FUZZTIME ?= 60s
FUZZ_MODULES := platform services/ingestion services/cohortsync
.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (60s), one after the other.
	@set -o pipefail; for m in $(FUZZ_MODULES); do cd $(CURDIR)/$$m; for p in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
	  for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz'); do echo "== $$m $$p $$f"; \
	    go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 2s -parallel 1 $$p || exit 1; done; done; done

.PHONY: bench
bench: build ## Measure; prints a table and writes bench/results.json.
	cd bench && go run . -binary ../bin/cohortbridge -out results.json

.PHONY: vet
vet:
	@for m in $(MODULES); do (cd $$m && go vet ./...) || exit 1; done

.PHONY: lint
lint: $(TOOLS)/.lint $(TOOLS)/.gen ## golangci-lint, buf lint and format.
	$(TOOLS)/buf lint
	@$(TOOLS)/buf format -d --exit-code --path proto/cohortbridge
	@for m in $(filter-out gen,$(MODULES)); do echo "lint $$m"; (cd $$m && $(CURDIR)/$(TOOLS)/golangci-lint run -c $(CURDIR)/.golangci.yml ./...) || exit 1; done

.PHONY: clean
clean: ## Remove what was built, and the data folder of make run.
	rm -rf bin data
