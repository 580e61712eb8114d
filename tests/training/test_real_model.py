"""The product's path with a real pretrained model, SmolLM2-135M-Instruct: its language, template and settings."""

import json
import re

import pytest
import torch
from decoding import reference_search
from decoding.reference_search import assert_same, found
from peft import PeftModel
from training.small_runs import DATA, INDEX, make_trainer, rows, settings
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from llmrec.decoding import constrained_generate, tree_beam_search
from llmrec.decoding.free_text import continue_text
from llmrec.instructions import load_prompt
from llmrec.models.folder import RecommenderConfig, write_sidecars
from llmrec.recommenders import LLMRecommender
from llmrec.tokens import conversation
from llmrec.training import save_final_model
from llmrec.training.lora import merged

pytestmark = pytest.mark.pretrained
LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "v_proj"]}
SEMID = re.compile(r"<[abc]_\d+>")
HISTORIES = [["item-03"], ["item-20", "item-21", "item-22"]]
# What an Instruct model's generation config may say; none of it is heeded.
LOUD = {"do_sample": True, "temperature": 9.0, "top_k": 3, "repetition_penalty": 5.0, "no_repeat_ngram_size": 1}


@pytest.fixture(scope="module")
def base(extended):
    return LLMRecommender.from_pretrained(extended, dtype="float32")


@pytest.fixture(scope="module")
def trained(extended, tmp_path_factory):
    """A model folder after three LoRA steps, and logits after some tokens: while it trained, as an adapter that was
    reloaded, and merged."""
    folder = tmp_path_factory.mktemp("real-run") / "model"
    config = RecommenderConfig.load(extended)
    trainer = make_trainer(
        extended,
        settings(folder, save_strategy="steps", save_steps=3, learning_rate=1e-3, per_device_train_batch_size=2),
        ModelConfig(model_name_or_path=str(extended), **LORA),
        write_sidecars=lambda to: write_sidecars(to, config, INDEX, DATA.items),
    )
    trainer.train()
    ids = torch.tensor([trainer.train_dataset[0]["input_ids"]])
    with torch.no_grad():
        while_training = trainer.model.eval()(ids).logits
        loaded = AutoModelForCausalLM.from_pretrained(extended, dtype="float32")
        reloaded = PeftModel.from_pretrained(loaded, folder / "checkpoint-3").eval()
        as_adapter = reloaded(ids).logits
        as_one = merged(reloaded)(ids).logits
    save_final_model(trainer, lambda: None)
    return LLMRecommender.from_pretrained(folder), ids, [while_training, as_adapter, as_one]


def test_lora_reloaded_merged_and_saved_gives_the_trained_logits(trained, base):
    recommender, ids, versions = trained
    assert recommender.model.dtype == torch.float32
    with torch.no_grad():
        final, before = recommender.model(ids).logits, base.model(ids).logits
    for logits in versions:  # these are up to 20
        torch.testing.assert_close(logits.log_softmax(-1), final.log_softmax(-1), atol=1e-4, rtol=1e-5)
    assert (final - before).abs().max() > 0.1


@pytest.mark.parametrize("normalize", ["vocabulary", "catalogue"])
def test_three_searches_are_one(trained, monkeypatch, normalize):
    recommender, model = trained[0], trained[0].model
    monkeypatch.setattr(reference_search, "EOS", recommender.tokenizer.eos_token_id)
    prompts = recommender.token_ids(recommender.prompts(HISTORIES))
    width, trie = max(map(len, prompts)), recommender.trie
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = (ids > 0).long()
    tree = tree_beam_search(model, ids, mask, trie, 4, normalize=normalize)
    generated = constrained_generate(model, ids, mask, trie, 4, normalize=normalize)
    semids = [
        tuple(recommender.tokenizer.convert_tokens_to_ids(INDEX.tokens_of_row(row))) for row in range(len(INDEX))
    ]
    for row, prompt in enumerate(prompts):
        ours = found(tree, row)
        assert_same(ours, reference_search.reference_search(model, prompt, semids, 4, normalize))
        sequences = generated.sequences[4 * row : 4 * row + 4, width:].tolist()
        scores = generated.sequences_scores[4 * row : 4 * row + 4].tolist()
        known = [tuple(token for token in one if token in recommender.catalogue.tokens.tokens) for one in sequences]
        assert_same(ours, list(zip(known, scores)))


def test_the_settings_of_the_model_change_nothing(extended, base, tmp_path):
    for path in extended.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 2, **LOUD}))
    loud = LLMRecommender.from_pretrained(tmp_path, dtype="float32")
    assert loud.model.generation_config.repetition_penalty == 5.0
    assert loud.recommend(HISTORIES, k=5) == base.recommend(HISTORIES, k=5)
    row = [{"about": "item-03"}]
    assert loud.generate_text("item_to_title", row, 12) == base.generate_text("item_to_title", row, 12)
    ids = torch.tensor(base.token_ids(base.prompts(HISTORIES[:1])))
    one, other = (
        constrained_generate(each.model, ids, torch.ones_like(ids), base.trie, 3).sequences for each in (loud, base)
    )
    assert one.equal(other)


def test_training_and_recommending_read_the_same_tokens(base):
    """The template puts a system turn of its own first; BOS, which it writes, comes once; EOS is learned."""
    tokenizer = base.tokenizer
    assert tokenizer.bos_token_id == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert base.model.generation_config.bos_token_id == tokenizer.bos_token_id  # else the trainer warns
    for task in ("stream", "item_to_title"):
        row = rows(tokenizer, prompt=task)[0]
        text = tokenizer.decode(row["input_ids"])
        assert text.count("<|im_start|>system") == 1 == text.count("<|im_start|>assistant")
        assert text.startswith("<|im_start|>system") and "<|im_start|><|im_start|>" not in text
        assert "helpful AI assistant named SmolLM" in text
    asked = len(row["labels"]) - sum(label != -100 for label in row["labels"])
    assert row["labels"][-1] == tokenizer.eos_token_id == row["input_ids"][-1]
    wordings = load_prompt("item_to_title").templates
    wording = wordings[row["variation"] % len(wordings)]
    (prompt,) = base.token_ids(base.task_prompts("item_to_title", [{"about": row["about"]}], [wording]))
    assert prompt == row["input_ids"][:asked]


def test_the_end_of_an_answer_is_learned_where_it_is_padding_too(extended, tmp_path):
    trainer = make_trainer(extended, settings(tmp_path), prompt="item_to_title")
    batch = next(iter(trainer.get_train_dataloader()))
    lengths, eos = batch["attention_mask"].sum(1), trainer.processing_class.eos_token_id
    assert lengths.min() < lengths.max()
    for labels, length in zip(batch["labels"], lengths.tolist()):
        assert labels[length - 1] == eos and (labels[length:] == -100).all()


def test_it_answers_as_before_its_vocabulary_grew(base, smollm2):
    questions = ["What is the capital of France?", "Name a primary colour.", "How many legs does a dog have?"]
    prompts = [conversation(base.tokenizer, [{"role": "user", "content": question}]) for question in questions]
    answers = list(base.write(base.token_ids(prompts), 10))
    plain = AutoModelForCausalLM.from_pretrained(smollm2, dtype="float32").eval()
    assert answers == list(continue_text(plain, base.tokenizer, base.token_ids(prompts), 10))
    assert "Paris" in answers[0]


def test_items_and_words_are_asked_of_it(trained):
    recommender = trained[0]
    (items,) = recommender.ask("title_to_item", [{"about": "item-03"}], k=5)
    assert len({item.item_id for item in items}) == 5
    model, semids = recommender.model, {INDEX.encode(item) for item in INDEX.items}
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    head.weight = model.lm_head.weight
    torch.nn.init.zeros_(head.bias)
    head.bias.data[recommender.catalogue.tokens.ids] = 20.0  # the head likes every token of a Semantic ID
    model.lm_head, plain = head, model.lm_head
    try:
        prompts = recommender.token_ids(recommender.task_prompts("item_to_title", [{"about": "item-03"}]))
        (free,) = continue_text(model, recommender.tokenizer, prompts, 8)
        (ruled,) = recommender.write(prompts, 8)
        (title,) = recommender.generate_text("item_to_title", [{"about": "item-03"}], 8)
    finally:
        model.lm_head = plain
    assert SEMID.search(free) and not set(re.split("(?=<a_)", free)) <= semids | {""}
    assert SEMID.search(ruled) and set(re.split("(?=<a_)", ruled)) <= semids | {""}
    assert title and not SEMID.search(title)
