#!/usr/bin/env bash
# Installs what is needed and runs the tests; further arguments go to pytest.
#
#     bash scripts/test.sh                    # fast tests, no network, no GPU
#     bash scripts/test.sh -m slow            # the slow ones (real data: LLMREC_DATA=/path/to/data)
#     bash scripts/test.sh -m vllm            # those that need vLLM, which is installed first
#     bash scripts/test.sh -m pretrained      # those on real weights, which are fetched first, and vLLM for some of them
#     bash scripts/test.sh tests/data -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

arguments=" $* "
asks_for() { # a marker
    [[ "$arguments" == *" -m"*"$1"* && "$arguments" != *"not $1"* ]]
}
if asks_for pretrained; then
    source scripts/setup_pretrained.sh
fi
if asks_for vllm || asks_for pretrained; then
    source scripts/setup_vllm.sh
    # Small and quiet: the engine in the test's own process, one thread, 1 GiB for keys and values
    export VLLM_ENABLE_V1_MULTIPROCESSING="${VLLM_ENABLE_V1_MULTIPROCESSING:-0}"
    export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    export VLLM_LOGGING_LEVEL="${VLLM_LOGGING_LEVEL:-ERROR}"
    export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" RAY_USAGE_STATS_ENABLED="${RAY_USAGE_STATS_ENABLED:-0}"
fi

python -m pytest "$@"
