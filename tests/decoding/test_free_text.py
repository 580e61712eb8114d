"""Free text of a model that would write Semantic ID tokens anywhere: whole ones only, or none."""

import re

import pytest
import torch
from tiny import tiny_data, tiny_index, tiny_model

from llmrec import LLMRecommender
from llmrec.decoding.free_text import SemIDsInText, continue_text
from llmrec.decoding.semid_states import CatalogueTokens
from llmrec.decoding.trie import SemIDTrie
from llmrec.instructions import load_prompt
from llmrec.models.folder import RecommenderConfig
from llmrec.models.vocabulary import semid_token_ids

COUNT = 40


@pytest.fixture(scope="module")
def recommender():
    """The head likes all tokens of Semantic IDs, spare ones too, about as much as all words together."""
    data = tiny_data()
    index = tiny_index(data)
    model, tokenizer = tiny_model(data, index, tie_word_embeddings=False)
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    head.weight = model.lm_head.weight
    torch.nn.init.zeros_(head.bias)
    head.bias.data[torch.cat([*map(torch.from_numpy, semid_token_ids(tokenizer, index))])] = 3.0
    model.lm_head = head
    config = RecommenderConfig.of(data, index, prompt=load_prompt("next_item").to_dict())
    return LLMRecommender(model.eval(), tokenizer, index, data.items, config)


def semids_in(texts) -> list[str]:
    """The runs of SemID tokens of some texts, cut where a Semantic ID may begin."""
    runs = [run for text in texts for run in re.findall(r"(?:<[abc]_\d+>)+", text)]
    return [semid for run in runs for semid in re.split(r"(?=<a_)", run) if semid]


def known(recommender) -> set[str]:
    return {recommender.index.encode(item) for item in recommender.item_ids}


@pytest.mark.parametrize("length", [5, 40])
def test_a_text_holds_whole_semantic_ids_of_the_catalogue(recommender, length):
    prompts = recommender.token_ids(["What is this?", f"What is {recommender.index.encode('item-03')}?"])
    prompts, seeds = prompts * (COUNT // 2), list(range(COUNT))
    free = semids_in(continue_text(recommender.model, recommender.tokenizer, prompts, length, 1.0, seeds))
    assert set(free) - known(recommender) and any(re.search("<c_[123]>", semid) for semid in free)
    ruled = semids_in(recommender.write(prompts, length, 1.0, seeds))
    assert len(ruled) > COUNT / 2 and set(ruled) <= known(recommender)
    assert not semids_in(recommender.write(prompts, length, 1.0, seeds, semid="never"))


def test_a_title_has_no_semantic_id_and_a_list_of_items_has(recommender):
    titles = recommender.generate_text("item_to_title", [{"about": item} for item in recommender.item_ids], 12)
    assert not semids_in(titles) and any(titles)
    listed = recommender.generate_text(
        "interleaved_history", [{"history": [item]} for item in recommender.item_ids], 12
    )
    assert semids_in(listed) and set(semids_in(listed)) <= known(recommender)


def test_what_stands_beside_a_semantic_id_is_as_the_model_scores_it():
    trie = SemIDTrie(torch.tensor([[4, 6], [5, -1], [5, 7]]).numpy(), 1)
    tokens = CatalogueTokens(trie, [[4, 5], [6, 7, 8]])
    scores = torch.randn(2, 10)
    processor = SemIDsInText(tokens, [[2, 3], [5]], 4)
    first = processor(torch.tensor([[2, 3], [1, 5]]), scores)
    outside, after = [0, 1, 2, 3, 4, 5, 9], [0, 1, 2, 3, 4, 5, 7, 9]  # token 8 is spare
    for row, there in zip(first, (outside, after)):
        assert row.isfinite().nonzero()[:, 0].tolist() == there
    assert first[0, outside].equal(scores[0, outside]) and first[1, after].equal(scores[1, after])
    second = processor(torch.tensor([[2, 3, 4], [1, 5, 3]]), scores)  # in a SemID, in a text
    assert second[0].isfinite().nonzero()[:, 0].tolist() == [6] and second[1, outside].equal(scores[1, outside])
    third = processor(torch.tensor([[2, 3, 4, 6], [1, 5, 3, 5]]), scores)
    assert third[0, outside].equal(scores[0, outside]) and third[1, after].equal(scores[1, after])
    last = processor(torch.tensor([[2, 3, 4, 6, 2], [1, 5, 3, 5, 2]]), scores)  # no room for two tokens
    assert last.isfinite().nonzero()[:, 1].tolist() == [0, 1, 2, 3, 9] * 2
