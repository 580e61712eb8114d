#!/usr/bin/env bash
# The product's paths on one GPU, timed and checked in at most 8 minutes, without network; arguments go to
# scripts/check_gpu.py, which says what is measured.
#
#     bash scripts/check_gpu.sh --json gpu.json
#     bash scripts/check_gpu.sh --small           # small shapes, on the CPU where there is no GPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec timeout 480 python scripts/check_gpu.py "$@"
