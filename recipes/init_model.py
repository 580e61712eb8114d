"""Gives a language model the Semantic IDs of a catalogue as new tokens, and writes it as a folder to train from.

    python recipes/init_model.py --config recipes/configs/quickstart/model.yaml

The model is one of the Hub or a folder (`model_name_or_path: Qwen/Qwen3-0.6B`), or a small one made from a config with
a tokenizer trained on the catalogue (`model_config: {model_type: qwen3, hidden_size: 192, ...}`).
"""

from dataclasses import dataclass, field
from pathlib import Path

from llmrec.arguments import at_least
from llmrec.catalogue.semids import SemIDIndex
from llmrec.commands import run_script
from llmrec.data import PreparedData
from llmrec.instructions import load_prompt
from llmrec.item_tokenizers.codebooks import load_codebooks
from llmrec.models.folder import ITEM_TOKENIZER, RecommenderConfig, plain_generation_config, write_sidecars
from llmrec.models.from_scratch import model_from_config, train_tokenizer
from llmrec.models.vocabulary import check_plain, extend_vocabulary
from llmrec.models.weights import load_model, load_tokenizer
from llmrec.stages import begin_stage, finish_stage, model_content, settings_of
from llmrec.tokens import fix_today


@dataclass
class InitArguments:
    data_dir: str = field(metadata={"help": "Prepared data (recipes/prepare_data.py)."})
    semids: str = field(metadata={"help": "Folder of tokenize_items.py or join_semids.py, or an index.json."})
    output_dir: str = field(metadata={"help": "Where the model folder goes."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "A pretrained model."})
    model_config: dict | None = field(default=None, metadata={"help": "Fields of a config, for a model from scratch."})
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "Tokenizer of a model from scratch."})
    vocab_size: int = field(default=2000, metadata={"help": "Of the tokenizer trained for a model from scratch."})
    embedding_init: str | None = field(
        default=None,
        metadata={
            "help": "mean, text or codebook; by default text if pretrained, else codebook where there are some."
        },
    )
    behaviour_tokens: bool = field(default=True, metadata={"help": "A token for each kind of interaction, if any."})
    shuffle_semids: bool = field(default=False, metadata={"help": "Control: SemIDs exchanged between random items."})
    seed: int = field(default=0, metadata={"help": "Of every random number here."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what is there."})


def main(args: InitArguments) -> None:
    at_least(args, vocab_size=1)
    if (args.model_name_or_path is None) == (args.model_config is None):
        raise ValueError("give either model_name_or_path (pretrained) or model_config (from scratch)")
    data = PreparedData.load(args.data_dir)
    semids = Path(args.semids)
    index = SemIDIndex.load(semids / "semids.parquet" if semids.is_dir() else semids).aligned(data.items)
    if index.contextual and (args.shuffle_semids or (args.behaviour_tokens and data.behaviours)):
        raise ValueError("these Semantic IDs depend on the history: no shuffle_semids, and behaviour_tokens: false")
    if args.shuffle_semids:
        index = index.shuffled(args.seed)
    if args.behaviour_tokens:
        index = index.with_behaviours(data.behaviours)
    base = args.model_name_or_path or args.tokenizer_name_or_path
    settings = {"data": data.catalogue_fingerprint, "semid_fingerprint": index.fingerprint}
    settings |= settings_of(args) | ({"base": model_content(base)} if base else {})
    if begin_stage(args.output_dir, settings, args.overwrite) == "done":
        print(f"Reusing the model in {args.output_dir} (same settings, same Semantic IDs).")
        return
    titles = dict(zip(data.items["item_id"].to_pylist(), data.items["title"].to_pylist()))
    if args.model_config is None:
        try:
            tokenizer = load_tokenizer(args.model_name_or_path)
            check_plain(tokenizer, index)
            model = load_model(args.model_name_or_path)
        except ValueError as error:
            raise ValueError(f"model_name_or_path: {error}") from error
    else:
        source = args.tokenizer_name_or_path
        tokenizer = load_tokenizer(source) if source else train_tokenizer(titles.values(), args.vocab_size)
        model = model_from_config(args.model_config, tokenizer, args.seed)
    fix_today(tokenizer)
    item_tokenizer = semids / ITEM_TOKENIZER
    codebooks = load_codebooks(item_tokenizer, index)
    vectors = any(book is not None for book in codebooks or ())
    init = args.embedding_init or ("text" if args.model_config is None else "codebook" if vectors else "mean")
    print(f"embedding_init {init}{'' if args.embedding_init else ', which follows from the model'}")
    extend_vocabulary(model, tokenizer, index, init, texts=titles, codebooks=codebooks, seed=args.seed)
    model.generation_config = plain_generation_config(tokenizer)
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    config = RecommenderConfig.of(data, index, prompt=load_prompt("stream").to_dict())
    write_sidecars(args.output_dir, config, index, data.items, item_tokenizer)
    finish_stage(args.output_dir, parameters=model.num_parameters(), tokens=len(tokenizer))
    print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens {len(index.tokens):,} of them new")
    print(f"Wrote {args.output_dir}. Next: recipes/sft.py")


if __name__ == "__main__":
    run_script(main, InitArguments)
