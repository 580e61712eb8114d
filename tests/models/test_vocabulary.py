import numpy as np
import pytest
import torch
from tiny import tiny_data, tiny_index, tiny_model
from transformers import AutoTokenizer

from llmrec.models.from_scratch import model_from_config, train_tokenizer
from llmrec.models.vocabulary import _TEXT, add_semid_tokens, check_plain, extend_vocabulary, semid_token_ids
from llmrec.tokens import conversation, prompt_ids


@pytest.mark.parametrize("pattern", ["default", "openonerec", "eugeneyan"])
def test_every_semid_token_is_one_id_and_survives_decoding(tmp_path, pattern):
    data = tiny_data()
    index = tiny_index(data)
    index = type(index)(index.item_ids, index.codes, index.codebook_sizes, pattern)
    tokenizer = train_tokenizer(data.items["title"].to_pylist(), 300)
    assert add_semid_tokens(tokenizer, index) == len(index.tokens)
    tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for item, length in zip(index.item_ids, index.lengths):
        ids = tokenizer(f"see {index.encode(item)}, then", add_special_tokens=False)["input_ids"]
        semid = tokenizer(index.encode(item), add_special_tokens=False)["input_ids"]
        assert len(semid) == length
        assert tokenizer.decode(semid, skip_special_tokens=True) == index.encode(item)
        assert index.encode(item) in tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("init", ["mean", "text", "codebook"])
def test_new_rows_are_initialised_and_old_ones_untouched(tied, init):
    data = tiny_data()
    index = tiny_index(data)
    tokenizer = train_tokenizer(data.items["title"].to_pylist(), 300)
    config = {"model_type": "qwen3", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 16, "tie_word_embeddings": tied}
    model = model_from_config(config, tokenizer)
    old = len(tokenizer)
    model.resize_token_embeddings(old + 7)  # padded rows, as Qwen has: the first new tokens land on them
    before = model.get_input_embeddings().weight[:old].clone()
    texts = dict(zip(data.items["item_id"].to_pylist(), data.items["title"].to_pylist()))
    codebooks = [np.random.default_rng(level).normal(size=(6, 5)) for level in range(2)]
    extend_vocabulary(model, tokenizer, index, init, texts=texts, codebooks=codebooks)
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert len(tokenizer) <= len(inputs) == len(outputs)
    assert (inputs is outputs) == tied
    assert torch.equal(inputs[:old], before)
    new = torch.from_numpy(np.concatenate(semid_token_ids(tokenizer, index)))
    assert new.min() == old
    spread = before.std(0).norm()
    for matrix in (inputs, outputs):
        norms = (matrix[new] - matrix[:old].mean(0)).norm(dim=1)
        assert (norms > 0.2 * spread).all() and (norms < 5 * spread).all()
        assert len(torch.unique(matrix[new], dim=0)) == len(new)


def test_text_initialisation_brings_codes_of_similar_titles_together():
    data = tiny_data(num_items=18)
    index = tiny_index(data)  # level a: items 6 apart, hence of equal colour (colours repeat every 3)
    model, tokenizer = tiny_model(data, index, "text")
    rows = model.get_input_embeddings().weight[torch.from_numpy(semid_token_ids(tokenizer, index)[0])].detach()
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    cosine = rows @ rows.T
    same = torch.tensor([[i != j and i % 3 == j % 3 for j in range(6)] for i in range(6)])
    other = torch.tensor([[i % 3 != j % 3 for j in range(6)] for i in range(6)])
    assert cosine[same].min() > cosine[other].max()


def test_errors_name_what_is_missing():
    data = tiny_data()
    index = tiny_index(data)
    tokenizer = train_tokenizer(["x"], 300)
    with pytest.raises(ValueError, match="no token '<a_0>'"):
        semid_token_ids(tokenizer, index)
    model = model_from_config({"model_type": "qwen3", "hidden_size": 8, "num_hidden_layers": 1}, tokenizer)
    with pytest.raises(ValueError, match="'magic' is not one of"):
        extend_vocabulary(model, tokenizer, index, "magic")
    with pytest.raises(ValueError, match="needs the items' texts"):
        extend_vocabulary(model, tokenizer, index, "text")
    with pytest.raises(ValueError, match="codebooks"):
        extend_vocabulary(model, tokenizer, index, "codebook")
    check_plain(tokenizer, index)
    extend_vocabulary(model, tokenizer, index)
    with pytest.raises(ValueError, match="'<a_0>' already.*before it got Semantic IDs"):
        check_plain(tokenizer, index)
    with pytest.raises(ValueError, match="no field hidden_sise"):
        model_from_config({"model_type": "qwen3", "hidden_sise": 8}, tokenizer)


@pytest.mark.parametrize("init", ["mean", "text", "codebook"])
@pytest.mark.parametrize("sure", [1.0, 6.0])
def test_new_tokens_lie_below_the_text_of_a_model_that_is_sure_of_its_words(sure, init):
    data = tiny_data()
    index = tiny_index(data)
    index = type(index)(index.item_ids, index.codes, [size + 2 for size in index.codebook_sizes])  # spare codes
    tokenizer = train_tokenizer(data.items["title"].to_pylist(), 300)
    config = {"model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 16, "tie_word_embeddings": False}
    model = model_from_config(config, tokenizer)
    model.get_output_embeddings().weight.data.normal_()
    model.model.norm.weight.data.fill_(sure / 8)  # the standard deviation of the logits is `sure`
    old = len(tokenizer)
    spread = model.get_output_embeddings().weight.std(0).norm()
    texts = dict(zip(data.items["item_id"].to_pylist(), data.items["title"].to_pylist()))
    codebooks = [
        np.random.default_rng(level).normal(size=(size, 5)) for level, size in enumerate(index.codebook_sizes)
    ]
    extend_vocabulary(model, tokenizer, index, init, texts=texts, codebooks=codebooks)
    rows = model.get_output_embeddings().weight.detach()
    with torch.no_grad():
        ids = torch.tensor([tokenizer("What does a red tent cost?", add_special_tokens=False)["input_ids"]])
        mass = model(ids).logits[0].softmax(-1)[:, old:].sum(-1)
    norms = (rows[old:] - rows[:old].mean(0)).norm(dim=1)
    used = {token for row in range(len(index)) for token in index.tokens_of_row(row)}
    spare = torch.tensor([token not in used for token in index.tokens])
    if sure == 1.0:  # as an untrained model, whose words are all alike: nothing to protect
        assert mass.max() > 0.01 and norms.mean() > 0.5 * spread
        return
    assert mass.max() < 1e-2 and 0.01 * spread < norms[~spare].mean() < 0.8 * spread
    hidden = model.model(ids).last_hidden_state[0].mean(0)
    logits = rows[old:] @ hidden
    assert spare.any() and logits[spare].mean() < logits[~spare].mean() - 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "granite", "logits_scaling": 8.0},
        {"model_type": "cohere", "logit_scale": 0.0625},
        {"model_type": "gemma2", "final_logit_softcapping": 20.0},
        {"model_type": "phi"},  # its head has a bias
    ],
    ids=lambda changes: changes["model_type"],
)
@torch.no_grad()
def test_new_tokens_lie_below_the_text_of_models_that_change_what_the_head_says(changes):
    data = tiny_data()
    index = tiny_index(data)
    tokenizer = train_tokenizer(data.items["title"].to_pylist(), 300)
    config = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = model_from_config(config | {"intermediate_size": 16, "tie_word_embeddings": False} | changes, tokenizer)
    texts = [conversation(tokenizer, [{"role": "user", "content": asked}]) + answer for asked, answer in _TEXT]
    texts, old = [torch.tensor([ids]) for ids in prompt_ids(tokenizer, texts)], len(tokenizer)
    head = model.get_output_embeddings()
    head.weight.normal_()
    if head.bias is not None:
        head.bias.normal_().sub_(40)
    for _ in range(20):  # until the standard deviation of the logits is 8: a model that is sure of its words
        head.weight *= 8 / model.eval()(texts[0]).logits.std()
    model.train()  # as `from_config` leaves it; dropout is not to be heard
    extend_vocabulary(model, tokenizer, index)
    assert model.training
    model.eval()
    mass = max(model(ids).logits[0].softmax(-1)[:, old:].sum(-1).max().item() for ids in texts)
    assert mass < 1.01e-3
    head = model.get_output_embeddings()
    norms = (head.weight[old:] - head.weight[:old].mean(0)).norm(dim=1)
    assert 0.01 < norms.mean() / head.weight[:old].std(0).norm() < 0.9
    assert head.bias is None or head.bias[old:].mean().item() == pytest.approx(head.bias[:old].mean().item(), abs=1e-3)
