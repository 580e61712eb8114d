"""Contextual item tokenizers end to end: rendering, training rows, constrained recommendation, the saved folder."""

import numpy as np
import pytest
from tiny import MODEL, tiny_data

from llmrec import LLMRecommender
from llmrec.instructions import Catalogue, Renderer, TaskMix, build_dataset, load_prompt
from llmrec.item_tokenizers import ActionPiece, Pctx, fit_semids
from llmrec.model_folder import ITEM_TOKENIZER, RecommenderConfig, plain_generation_config, write_sidecars
from llmrec.scratch import model_from_config, train_tokenizer
from llmrec.vocabulary import extend_vocabulary

KINDS = {
    "pctx": lambda: Pctx(codebook_sizes=[4, 4], context_dim=4, feature_dim=4),
    "actionpiece": lambda: ActionPiece(2, 4, pca_dim=None, num_buckets=8, vocabulary_size=40),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    data = tiny_data()
    features = np.random.default_rng(0).normal(size=(data.items.num_rows, 8)).astype(np.float32)
    contextual = KINDS[request.param]()
    index = fit_semids(contextual, features, data.items, data.train)
    tokenizer = train_tokenizer(data.items["title"].to_pylist(), 300)
    model = model_from_config(MODEL, tokenizer)
    extend_vocabulary(model, tokenizer, index)
    model.generation_config = plain_generation_config(tokenizer)
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    contextual.save_pretrained(path / "made" / ITEM_TOKENIZER)
    config = RecommenderConfig.of(data, index, prompt=load_prompt("next_item").to_dict(), num_beams=10)
    items = data.items.take([data.items["item_id"].to_pylist().index(item) for item in index.items])
    write_sidecars(path, config, index, items, path / "made" / ITEM_TOKENIZER)
    return path, data, index, contextual, tokenizer


def test_the_folder_recommends_and_its_prompts_are_the_training_prompts(folder):
    path, data, index, contextual, tokenizer = folder
    recommender = LLMRecommender.from_pretrained(path)
    assert recommender.renderer.catalogue.sequence_tokenizer.name == contextual.name
    history = data.train["item_ids"][0].as_py()
    (found,) = recommender.recommend([history], k=5)
    assert len({item.item_id for item in found}) == 5
    prompt = load_prompt("next_item")
    row = {"history": history[:-1], "targets": [history[-1]]}
    (asked,) = recommender.prompts([history[:-1]])
    assert asked == recommender.renderer.prompt(prompt, row)
    assert "".join(contextual.encode_history([history[:-1]])[0]) in asked
    answer = recommender.renderer.completion(prompt, row)
    assert history[-1] in index.decode(answer)


def test_training_rows_and_streams(folder):
    path, data, index, contextual, tokenizer = folder
    renderer = Renderer(tokenizer, Catalogue(index, data.items, contextual))
    rows = build_dataset(data, [TaskMix.parse("next_item")], renderer, 5, 200)
    semids = {id for tokens in index.level_tokens for id in tokenizer.convert_tokens_to_ids(tokens)}
    for row in rows.select(range(20)):
        answer = [token for token in row["labels"] if token >= 0]
        assert set(answer) <= semids and row["targets"][0] in index.decode(tokenizer.decode(answer))
    if contextual.name == "pctx":  # an item keeps tokens of its own, so histories are lists of targets
        assert len(build_dataset(data, [TaskMix.parse("stream")], renderer, 5, 200)) == data.train.num_rows
    else:
        with pytest.raises(ValueError, match="use a prompt of task next_item"):
            build_dataset(data, [TaskMix.parse("stream")], renderer, 5, 200)
