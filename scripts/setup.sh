#!/usr/bin/env bash
# Makes .venv with llmrec in it and activates it. Sourced by the other scripts; also runs alone:
#
#     source scripts/setup.sh
#
# Needs bash and Python 3.11 or newer, nothing else. A second run sees that nothing has changed and is instant.
#   PYTHON              the interpreter to make the environment with (default: the first python3 that is new enough)
#   LLMREC_TORCH_INDEX  where to take PyTorch from, e.g. PyTorch's own index of CPU or CUDA builds
#   LLMREC_EXTRAS       extras of pyproject.toml to install (default: dev)

llmrec_setup() {
    local root python candidate stamp
    local candidates=(python3 python3.13 python3.12 python3.11)
    [ -n "${PYTHON:-}" ] && candidates=("$PYTHON")
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    cd "$root" || return 1

    if ! .venv/bin/python -c "" 2>/dev/null; then
        for candidate in "${candidates[@]}"; do
            if "$candidate" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
                python="$candidate"
                break
            fi
        done
        if [ -z "${python:-}" ]; then
            echo "llmrec needs Python 3.11 or newer and found none (${PYTHON:-python3} is:" \
                "$("${PYTHON:-python3}" --version 2>&1)). Install one, or name it: PYTHON=/path/to/python3.11" >&2
            return 1
        fi
        echo "[setup] making .venv with $("$python" --version)"
        rm -rf .venv
        if ! "$python" -m venv .venv; then
            rm -rf .venv
            echo "python -m venv failed; on Debian and Ubuntu install the package python3-venv" >&2
            return 1
        fi
    fi

    stamp="$(.venv/bin/python -c "import hashlib, pathlib, sys
parts = pathlib.Path('pyproject.toml').read_bytes(), sys.argv[1].encode(), str(pathlib.Path.cwd()).encode()
print(hashlib.sha256(b'\0'.join(parts)).hexdigest())" "${LLMREC_EXTRAS:-dev} ${LLMREC_TORCH_INDEX:-}")" || return 1
    if [ "$(cat .venv/llmrec-setup 2>/dev/null)" != "$stamp" ]; then
        rm -f .venv/llmrec-setup
        if nvidia-smi -L 2>/dev/null; then
            echo "[setup] found an NVIDIA GPU: PyTorch should be a CUDA build (the default on Linux)"
        else
            echo "[setup] no NVIDIA GPU: the CPU is used (LLMREC_TORCH_INDEX may name PyTorch's smaller CPU builds)"
        fi
        echo "[setup] 1/3 pip" && .venv/bin/python -m pip install --quiet --upgrade pip || return 1
        # torch first and alone, so that nothing else decides which build of it is taken
        echo "[setup] 2/3 PyTorch (some minutes the first time)"
        .venv/bin/python -m pip install --quiet "torch==2.13.0" \
            ${LLMREC_TORCH_INDEX:+--index-url "$LLMREC_TORCH_INDEX"} || return 1
        echo "[setup] 3/3 llmrec and its dependencies"
        .venv/bin/python -m pip install --quiet --editable ".[${LLMREC_EXTRAS:-dev}]" || return 1
        echo "$stamp" > .venv/llmrec-setup
    fi
    source .venv/bin/activate
    echo "[setup] .venv is ready: $(python --version), torch $(python -c "
from importlib.metadata import version
print(version('torch'))")"
}

llmrec_setup || { echo "[setup] failed; the message above says why. Running it again continues." >&2; return 1 2>/dev/null || exit 1; }
