"""A real language model that gets new tokens says what it said before."""

import pytest
from training.small_runs import DATA, INDEX
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmrec.evaluation.language import general_text, new_token_mass, perplexity
from llmrec.instructions.general import plain_questions
from llmrec.models.vocabulary import extend_vocabulary
from llmrec.tokens import conversation, prompt_ids

pytestmark = pytest.mark.pretrained


def test_new_tokens_take_nothing_from_questions_and_general_text(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype="float32")
    text, _ = general_text()
    before = perplexity(model, tokenizer, text, 2, 128)["perplexity"]
    texts = dict(zip(DATA.items["item_id"].to_pylist(), DATA.items["title"].to_pylist()))
    extend_vocabulary(model, tokenizer, INDEX, "text", texts=texts)
    asked = [conversation(tokenizer, [{"role": "user", "content": one}]) for one in plain_questions()]
    new = tokenizer.convert_tokens_to_ids(INDEX.tokens)
    assert max(new_token_mass(model, prompt_ids(tokenizer, asked), new)) < 0.01
    assert perplexity(model, tokenizer, text, 2, 128)["perplexity"] < 1.01 * before
