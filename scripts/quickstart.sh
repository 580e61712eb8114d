#!/usr/bin/env bash
# The whole way on a generated store, on a laptop's CPU: data -> Semantic IDs -> model -> fine-tuning -> evaluation
# against baselines and controls -> recommendations for two users. Minutes after the installation.
#
#     bash scripts/quickstart.sh
#
# Every stage writes a folder under out/quickstart and is reused by the next run; delete the folder to start anew.
# Two stages run beside the others, on a second core: what they print goes to files in out/quickstart/logs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

CONFIGS=recipes/configs/quickstart
OUT=out/quickstart
export HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # models this small are slower on several threads than on one
[ -d "$OUT" ] && echo "$OUT is there already: finished stages are reused, an interrupted one goes on."
mkdir -p $OUT/logs
source scripts/stages.sh
set -m # every stage is a process group of its own, so that none outlives this script
trap 'for job in $(jobs -p); do kill -- "-$job"; done 2>/dev/null || :' EXIT

beside() { # the rest is the name of a function: it runs while the script goes on
    echo "(runs beside the next stages; it prints to $OUT/logs/$1.log)"
    "$1" </dev/null >"$OUT/logs/$1.log" 2>&1 &
}
join() { # name, process: waits for it
    wait "$2" && return
    tail -n 20 "$OUT/logs/$1.log" >&2
    echo "The stage '$1' failed; all that it printed is in $OUT/logs/$1.log. The same command goes on." >&2
    exit 1
}

baselines() {
    run python recipes/train_baselines.py --config $CONFIGS/baselines.yaml
}
control() {
    run python recipes/init_model.py --config $CONFIGS/model.yaml \
        --shuffle_semids true --output_dir $OUT/control_model
    run accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/sft.py --config $CONFIGS/sft.yaml \
        --model_name_or_path $OUT/control_model --output_dir $OUT/control
}

stage "1/8 Generate the store, clean it, hold out each user's last items"
run python recipes/prepare_data.py --config $CONFIGS/data.yaml

stage "2/8 Baselines: popularity, item-kNN, SASRec"
beside baselines
BASELINES=$!

stage "3/8 Give every item a Semantic ID made from its text and its neighbours in histories"
run python recipes/tokenize_items.py --config $CONFIGS/semids.yaml

stage "4/8 A small Qwen3 that knows the Semantic IDs as words"
run python recipes/init_model.py --config $CONFIGS/model.yaml

stage "5/8 A control that must lose: the same model and training on shuffled Semantic IDs"
beside control
CONTROL=$!

stage "6/8 Supervised fine-tuning"
run accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/sft.py --config $CONFIGS/sft.yaml

stage "7/8 Recommend for two users"
run python recipes/recommend.py --config $CONFIGS/recommend.yaml

stage "8/8 Evaluate on 3,000 test users (and with histories exchanged between users: the other control)"
join baselines $BASELINES
join control $CONTROL
run python recipes/evaluate.py --config $CONFIGS/evaluate.yaml

echo
echo "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s. Next: docs/own_data.md starts from your own CSV."
