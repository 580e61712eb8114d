"""Think-ahead inference on a tiny model that was trained to think."""

import dataclasses
import math
import re

import pytest
import torch
from tiny import MODEL, tiny_data, tiny_index, tiny_model
from transformers import GenerationConfig
from trl import SFTConfig

from llmrec.catalogue.filters import Filter
from llmrec.catalogue.semids import SemIDIndex
from llmrec.decoding.thoughts import ThoughtBlock, after_thoughts, write_thoughts
from llmrec.instructions import Catalogue, TaskMix, Template, build_dataset, compose, load_prompt, task_rows
from llmrec.instructions.dataset import reader_of
from llmrec.models.folder import RecommenderConfig, plain_generation_config, write_sidecars
from llmrec.models.from_scratch import model_from_config, train_tokenizer
from llmrec.models.vocabulary import extend_vocabulary
from llmrec.recommenders import LLMRecommender
from llmrec.training import SemIDSFTTrainer

HISTORIES = [["item-03"], ["item-01", "item-02"], ["item-20", "item-21", "item-22", "item-23"], ["item-09", "item-10"]]
PROMPT = load_prompt("think_next_item")
BLOCK = ThoughtBlock.of(PROMPT.templates[0].completion)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder after 120 steps of SFT on think_next_item."""
    data, path = tiny_data(), tmp_path_factory.mktemp("thinking")
    index = tiny_index(data)
    rows = task_rows("think_next_item", data, 4)
    rationales = [compose.rationale(Catalogue(index, data.items), row) for row in rows]
    tokenizer = train_tokenizer([*rationales, "<think>\n", "\n</think>\n\n"], 900)
    model = model_from_config(MODEL, tokenizer)
    extend_vocabulary(model, tokenizer, index)
    model.generation_config = plain_generation_config(tokenizer)
    shown = {"max_history": 4, "num_beams": 8, "max_thought_tokens": 60}
    config = RecommenderConfig.of(data, index, prompt=PROMPT.to_dict(), **shown)
    base = LLMRecommender(model, tokenizer, index, data.items, config)
    trainer = SemIDSFTTrainer(
        model,
        SFTConfig(
            output_dir=str(path / "model"),
            max_steps=120,
            per_device_train_batch_size=16,
            learning_rate=1e-2,
            max_length=300,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=build_dataset(data, [TaskMix(PROMPT)], base.renderer, 4, 300),
        processing_class=tokenizer,
        write_sidecars=lambda to: write_sidecars(to, config, index, data.items),
    )
    trainer.train()
    assert reader_of(trainer.train_dataset).truncated == 0
    trainer.save_model(str(path / "model"))
    return path / "model"


@pytest.fixture
def recommender(folder):
    return LLMRecommender.from_pretrained(folder)


def thinking(recommender, **fields):
    recommender.config = dataclasses.replace(recommender.config, **fields)
    return recommender


def as_pairs(lists):
    return [[(item.item_id, item.score) for item in items] for items in lists]


def beams_after(recommender, histories, thoughts, k):
    """The plain search after a prompt and a block, one history at a time."""
    found = []
    for history, text, prompt in zip(histories, thoughts, recommender.prompts(histories)):
        ids = recommender.token_ids([prompt])[0] + recommender.token_ids([BLOCK.text(text)])[0]
        (hits,) = recommender.search([ids], [k], [history])
        found.append([(recommender.index.items[hit.item], hit.score) for hit in hits])
    return found


def assert_same(lists, expected):
    for items, others in zip(lists, expected, strict=True):
        assert [item for item, _ in items] == [item for item, _ in others]
        assert [score for _, score in items] == pytest.approx([score for _, score in others], abs=1e-4)


def test_the_model_thinks_in_the_form_it_was_taught_and_recommends_valid_items(recommender):
    colours = "(red|green|blue)"
    seen = rf"The user lately looked at {colours}(, {colours})?( and {colours})?\."
    for (text,) in recommender.think(HISTORIES):
        assert re.fullmatch(rf"{seen} They are likely to want {colours} next, perhaps from brand [0-3]\.", text)
    for items in recommender.recommend(HISTORIES, k=10):
        assert len({item.item_id for item in items}) == 10
        assert {item.item_id for item in items} <= set(recommender.item_ids)


def test_one_greedy_thought_equals_a_hand_made_loop(recommender):
    written = []
    for prompt in recommender.prompts(HISTORIES):
        ids = recommender.token_ids([prompt])[0] + recommender.token_ids([BLOCK.opening])[0]
        start = len(ids)
        while len(ids) < start + 60 and "</think>" not in recommender.tokenizer.decode(ids[start:]):
            with torch.no_grad():
                ids.append(int(recommender.model(torch.tensor([ids])).logits[0, -1].argmax()))
        written.append(recommender.tokenizer.decode(ids[start:]).partition("</think>")[0].strip())
    assert recommender.think(HISTORIES) == [[text] for text in written]
    assert_same(as_pairs(recommender.recommend(HISTORIES, k=6)), beams_after(recommender, HISTORIES, written, 6))


def test_the_search_reads_what_a_training_row_holds(recommender):
    row = {"history": ["item-01", "item-02"], "targets": ["item-03"]}
    text, answer = recommender.renderer.render(PROMPT, row)
    trained = recommender.token_ids([text])[0] + recommender.token_ids([answer])[0]
    thought = compose.rationale(recommender.renderer.catalogue, row)
    assert answer == BLOCK.text(thought) + recommender.index.encode("item-03")
    asked = (
        recommender.token_ids(recommender.prompts([row["history"]]))[0]
        + recommender.token_ids([BLOCK.text(thought)])[0]
    )
    assert trained[: len(asked)] == asked and len(trained) - len(asked) in (2, 3)


def test_several_thoughts_are_averaged(recommender):
    thinking(recommender, thoughts=3, thought_temperature=2.5)
    thoughts = recommender.think(HISTORIES)
    assert all(len(texts) == 3 for texts in thoughts) and len({t for texts in thoughts for t in texts}) > 6
    expected = []
    for history, texts in zip(HISTORIES, thoughts):
        probabilities = {}
        for items in beams_after(recommender, [history] * 3, texts, 8):
            for item, score in items:
                probabilities[item] = probabilities.get(item, 0.0) + math.exp(score) / 3
        best = sorted(probabilities, key=probabilities.get, reverse=True)[:5]
        expected.append([(item, math.log(probabilities[item])) for item in best])
    assert_same(as_pairs(recommender.recommend(HISTORIES, k=5)), expected)


def test_thoughts_follow_from_the_seed_and_not_from_neighbours(folder, recommender):
    thinking(recommender, thoughts=3, thought_temperature=2.5)
    together = recommender.think(HISTORIES)
    assert [recommender.think([history])[0] for history in HISTORIES] == together
    torch.manual_seed(7)
    torch.rand(3)
    state = torch.get_rng_state()
    assert recommender.think(HISTORIES) == together
    assert torch.equal(torch.get_rng_state(), state)
    other = thinking(LLMRecommender.from_pretrained(folder), thoughts=3, thought_temperature=2.5)
    other.seed = 1
    assert other.think(HISTORIES) != together


def test_without_thinking_the_block_is_empty(recommender):
    assert BLOCK.text("") == "<think>\n\n</think>\n\n"
    plain = beams_after(recommender, HISTORIES, [""] * 4, 6)
    assert_same(as_pairs(recommender.recommend(HISTORIES, k=6, think=False)), plain)
    thinking(recommender, thoughts=0)
    assert_same(as_pairs(recommender.recommend(HISTORIES, k=6)), plain)


def test_an_unfinished_thought_is_closed_and_filters_hold(recommender):
    thinking(recommender, thoughts=2, max_thought_tokens=2, thought_temperature=1e-3)
    full = thinking(recommender, max_thought_tokens=60).think(HISTORIES)
    thinking(recommender, max_thought_tokens=2)
    for texts, whole in zip(recommender.think(HISTORIES), full):
        assert all(0 < len(text) < len(other) and other.startswith(text) for text, other in zip(texts, whole))
    for items in recommender.recommend(HISTORIES, k=30, filters=Filter(where=[("price", "<", 5)])):
        assert sorted(item.item_id for item in items) == [f"item-{i:02d}" for i in range(5)]


def test_the_checkpoints_own_sampling_is_not_inherited(recommender):
    before = recommender.think(HISTORIES)
    own = GenerationConfig(
        do_sample=True, temperature=9.0, repetition_penalty=1.9, suppress_tokens=[*range(5, 60)], max_new_tokens=2
    )
    recommender.model.generation_config = own
    assert recommender.think(HISTORIES) == before
    assert recommender.model.generation_config is own


def test_a_folder_keeps_the_fields(folder, tmp_path):
    config = dataclasses.replace(
        RecommenderConfig.load(folder), thoughts=4, max_thought_tokens=9, thought_temperature=0.5
    )
    recommender = LLMRecommender.from_pretrained(folder)
    write_sidecars(tmp_path, config, recommender.index, recommender.renderer.catalogue.items)
    assert RecommenderConfig.load(tmp_path) == config
    assert config.prompt["thinking"] is True


def test_no_history_gives_no_thoughts(recommender):
    assert recommender.think([]) == [] and recommender.recommend([], k=2) == []


def test_a_behaviour_is_wanted_after_the_thought():
    data = tiny_data()
    plain = tiny_index(data)
    index = SemIDIndex(plain.item_ids, plain.codes, plain.codebook_sizes, behaviours=["view", "buy"])
    model, tokenizer = tiny_model(data, index)
    config = RecommenderConfig.of(data, index, prompt=PROMPT.to_dict(), num_beams=5, max_thought_tokens=6)
    recommender = LLMRecommender(model.eval(), tokenizer, index, data.items, config)
    history = [("item-01", "view"), ("item-02", "buy")]
    (prompt,) = recommender.prompts([history], behaviour="view")
    before = prompt.removesuffix("<|view|>")
    ((thought,),) = recommender.think([history], behaviour="view")
    ids = [*recommender.token_ids([before])[0], *recommender.token_ids([BLOCK.text(thought) + "<|view|>"])[0]]
    (expected,) = recommender.search([ids], [5], [history])
    found = recommender.recommend([history], k=5, behaviour="view")
    assert_same(as_pairs(found), [[(index.items[hit.item], hit.score) for hit in expected]])


def test_a_completion_that_is_no_thought_is_refused():
    for completion in ("{target}", "{rationale}{target}", "<think>{rationale}</think>{target} !", "<think></think>"):
        prompt = dataclasses.replace(PROMPT, templates=(Template("{history}", completion),))
        with pytest.raises(ValueError, match="completion of a thinking prompt should read like"):
            ThoughtBlock.of(prompt.templates[0].completion)


def test_bad_numbers_are_named(recommender):
    with pytest.raises(ValueError, match="thoughts is -1, it should be a whole number of at least 0"):
        thinking(recommender, thoughts=-1).recommend(HISTORIES)
    with pytest.raises(ValueError, match="thought_temperature is -1.0, it should be"):
        thinking(recommender, thoughts=2, thought_temperature=-1.0).recommend(HISTORIES)
    with pytest.raises(ValueError, match="thought_temperature is 0"):
        thinking(recommender, thoughts=2, thought_temperature=0.0).recommend(HISTORIES)
    stream = dataclasses.replace(recommender.config, prompt=load_prompt("stream").to_dict())
    parts = recommender.tokenizer, recommender.index, recommender.renderer.catalogue.items
    with pytest.raises(ValueError, match="has no thoughts"):
        LLMRecommender(recommender.model, *parts, stream).think(HISTORIES)


def test_thoughts_of_rows_of_any_length(recommender):
    prompts = recommender.token_ids(["a", "a longer prompt of some more words", "b"])
    many = [BLOCK, 2, 5, 1.0]
    small = LLMRecommender(
        recommender.model,
        recommender.tokenizer,
        recommender.index,
        recommender.renderer.catalogue.items,
        recommender.config,
        batch_size=4,
    )
    together = write_thoughts(small.write, recommender.tokenizer, prompts, *many)
    alone = [write_thoughts(recommender.write, recommender.tokenizer, [ids], *many)[0] for ids in prompts]
    assert together == alone


def test_the_mixture_of_lists_by_hand():
    lists = [[(3, math.log(0.5)), (1, math.log(0.2))], [(1, math.log(0.4)), (2, math.log(0.3))]]
    expected = [(1, 0.3), (3, 0.25), (2, 0.15)]
    for (item, score), (other, probability) in zip(after_thoughts(lists), expected, strict=True):
        assert item == other and score == pytest.approx(math.log(probability))
    assert after_thoughts([[(5, -1.0), (2, -1.0)]]) == [(5, -1.0), (2, -1.0)]
    assert [item for item, _ in after_thoughts([[(5, -1.0)], [(2, -1.0)]])] == [2, 5]
