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
