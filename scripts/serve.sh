#!/usr/bin/env bash
# Installs what is needed and serves a model folder over HTTP until Ctrl-C; further arguments go to llmrec.serving.
#
#     bash scripts/serve.sh out/quickstart/model
#     bash scripts/serve.sh out/quickstart/model --help
#
# On a CPU VLLM_CPU_KVCACHE_SPACE says how many GiB one engine takes for keys and values (2).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
source scripts/setup_vllm.sh

exec python -m llmrec.serving "$@"
