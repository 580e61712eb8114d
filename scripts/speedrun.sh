#!/usr/bin/env bash
# A pretrained Qwen3-0.6B on Amazon Beauty with one GPU: the stages of the quickstart, the same recipes, other YAML.
#
#     bash scripts/speedrun.sh
#
# Needs an NVIDIA GPU with 24 GB (docs/hardware.md), curl and the network: the raw reviews (J. McAuley and co-workers,
# UC San Diego, for research) and the model come from their publishers. Run it again after a break: what is there is
# reused.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
export HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false

CONFIGS=recipes/configs/speedrun
RAW=out/speedrun/raw
AMAZON=https://snap.stanford.edu/data/amazon/productGraph/categoryFiles

# Data: reviews and metadata, 5-core, leave one out
mkdir -p $RAW
for file in reviews_Beauty_5.json.gz meta_Beauty.json.gz; do
    if [ ! -f $RAW/$file ]; then
        curl --fail --location --retry 3 --output $RAW/$file.part $AMAZON/$file
        mv $RAW/$file.part $RAW/$file
    fi
done
python recipes/prepare_data.py --config $CONFIGS/data.yaml

# Semantic IDs from the items' text, and the baselines
python recipes/tokenize_items.py --config $CONFIGS/semids.yaml
python recipes/train_baselines.py --config $CONFIGS/baselines.yaml

# Qwen3-0.6B learns them as new words, then what users choose
python recipes/init_model.py --config $CONFIGS/model.yaml
accelerate launch --config_file recipes/accelerate/single_gpu.yaml recipes/sft.py --config $CONFIGS/sft.yaml

# Every test user, against popularity, item-kNN and SASRec
python recipes/evaluate.py --config $CONFIGS/evaluate.yaml
python recipes/recommend.py --config $CONFIGS/recommend.yaml
