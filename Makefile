.PHONY: help style test test-slow test-vllm test-pretrained quickstart

help:  ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-15s %s\n", $$1, $$2}'

style:  ## Fix what ruff can fix, and format
	ruff check --fix .
	ruff format .

test:  ## The fast tests: CPU only, no network
	bash scripts/test.sh

test-slow:  ## The slow tests (real data: LLMREC_DATA=/path/to/data)
	bash scripts/test.sh -m slow

test-vllm:  ## The tests that need vLLM, which is installed first
	bash scripts/test.sh -m vllm

test-pretrained:  ## The tests on the weights of a real model, which is fetched first
	bash scripts/test.sh -m pretrained

quickstart:  ## The whole way on a generated store, in minutes on a CPU
	bash scripts/quickstart.sh
