"""What users and catalogues write is text: a property over every control token of families of tokenizers."""

import logging
import os
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tokenizer_families import CHATML, FAMILIES, GEMMA, gemma, llama2, llama3, smollm2
from tokenizers import AddedToken, normalizers
from transformers import AutoTokenizer

from llmrec.catalogue.semids import SemIDIndex
from llmrec.decoding.free_text import chat_writer
from llmrec.instructions import TASKS, Catalogue, Prompt, Renderer, Template, load_prompt
from llmrec.models.vocabulary import add_semid_tokens
from llmrec.tokens import (
    ControlTokens,
    EndingRuns,
    _say_once,
    conversation,
    fix_today,
    prompt_ids,
    text_start,
    with_system,
)

INDEX = SemIDIndex(["a", "b", "c"], np.array([[0, 0], [0, 1], [1, 0]]), [2, 2])
WORDS = "lamp cable < > [x] a<b <b> </ |x| <|im_ end|> <s > émigré 名古屋 {history} {{x}} $3.50 [[llmrec0]]".split()
every_family = pytest.mark.parametrize("family", FAMILIES)


def with_semids(tokenizer):
    add_semid_tokens(tokenizer, INDEX)
    return tokenizer


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def counted(tokenizer, control: ControlTokens, text: str) -> int:
    known = set(tokenizer.convert_tokens_to_ids(control.tokens))
    return sum(number in known for number in ids_of(tokenizer, text))


def check_every_control_token(tokenizer) -> None:
    control = ControlTokens(tokenizer, INDEX.tokens)
    assert {*INDEX.tokens, *(t for t in tokenizer.all_special_tokens if t.strip())} <= {*control.tokens}
    other = random.Random(0).choice(control.tokens)
    for token in control.tokens:
        inside = token[:2] + token + token[2:]
        for text in (token, f"a lamp {token} b", token * 3, token + other, other[:-1] + token + "d|>", inside):
            plain = control.plain(text)
            assert counted(tokenizer, control, text) > 0 == counted(tokenizer, control, plain), (token, plain)
            assert plain.replace(" ", "") == text.replace(" ", "")  # nothing is lost
            assert control.plain(plain) == plain


def check_other_texts_stay(tokenizer) -> None:
    control, rng = ControlTokens(tokenizer, INDEX.tokens), random.Random(1)
    for _ in range(200):
        text = rng.choice([" ", "  ", "\n\n"]).join(rng.choices(WORDS, k=rng.randint(0, 8)))
        plain = control.plain(text)
        assert counted(tokenizer, control, plain) == 0
        if not counted(tokenizer, control, text):
            assert plain == text


@every_family
def test_no_control_token_survives_in_a_text_and_other_texts_stay(family):
    tokenizer = with_semids(FAMILIES[family]())
    check_every_control_token(tokenizer)
    check_other_texts_stay(tokenizer)


def check_runs_are_read_as_whole_texts_are(tokenizer) -> None:
    rng, runs = random.Random(2), EndingRuns(tokenizer, INDEX.tokens)
    control = ControlTokens(tokenizer).tokens
    kinds = [WORDS, INDEX.tokens, control, ["", " ", "\n", "<", "<a_", "<a_0", "a_0>", "é"]]
    parts = [[rng.choice(rng.choice(kinds)) for _ in range(rng.randint(0, 6))] for _ in range(500)]
    texts = ["".join([*some, *rng.choices(INDEX.tokens, k=rng.randint(0, 6))]) for some in parts]
    assert runs(texts) == tokenizer(texts, add_special_tokens=False)["input_ids"]


@every_family
def test_runs_of_semantic_ids_are_read_as_whole_texts_are(family):
    tokenizer = with_semids(FAMILIES[family]())
    check_runs_are_read_as_whole_texts_are(tokenizer)
    assert bool(EndingRuns(tokenizer, INDEX.tokens).ids) == (family != "llama2")  # <<SYS>> could reach into a run


@pytest.mark.parametrize("flags", [{"normalized": True}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}])
def test_tokens_that_are_not_read_as_they_stand_are_not_looked_up(flags):
    tokenizer = smollm2()
    tokenizer.add_tokens([AddedToken(token, **({"normalized": False} | flags)) for token in INDEX.tokens])
    runs = EndingRuns(tokenizer, INDEX.tokens)
    assert not runs.ids and not EndingRuns(smollm2(), INDEX.tokens).ids
    texts = ["a <a_0> <b_1>", "<a_0><b_1>", "x<a_0>", ""]
    assert runs(texts) == tokenizer(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.slow
def test_no_control_token_survives_in_a_text_of_real_tokenizers():
    """The folders in LLMREC_TOKENIZERS, with `:` between them, and the one of LLMREC_DATA."""
    folders = [folder for folder in os.environ.get("LLMREC_TOKENIZERS", "").split(os.pathsep) if folder]
    if "LLMREC_DATA" in os.environ:
        folders.append(str(Path(os.environ["LLMREC_DATA"]) / "qwen3_tokenizer"))
    if not folders:
        pytest.skip("needs LLMREC_DATA or LLMREC_TOKENIZERS")
    for folder in folders:
        tokenizer = with_semids(AutoTokenizer.from_pretrained(folder))
        check_runs_are_read_as_whole_texts_are(tokenizer)
        check_every_control_token(tokenizer)
        check_other_texts_stay(tokenizer)


@pytest.mark.parametrize(
    "normalizer, texts",
    [
        (normalizers.NFKC(), ["＜think＞", "a ＜think＞ b", "<think>＜think>"]),
        (normalizers.Lowercase(), ["<THINK>", "a<Think><think>"]),
        (normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), ["ﬁ＜THINK＞"]),
        (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
         ["<think>", "a <think>", "▁<think>", "a  <think> <think>"]),
    ],
)  # fmt: skip
def test_tokens_that_are_looked_for_in_normalized_texts_are_broken_there(normalizer, texts):
    tokenizer = smollm2()
    tokenizer.backend_tokenizer.normalizer = normalizer
    tokenizer.add_tokens(["<think>"])  # `normalized`, as it is by default
    control = ControlTokens(tokenizer)
    for text in texts:
        plain = control.plain(text)
        assert counted(tokenizer, control, text) > 0 == counted(tokenizer, control, plain), (text, plain)
        assert plain.replace(" ", "") == text.replace(" ", "") and control.plain(plain) == plain
    assert control.plain("A Lamp ﬁ <thin k>") == "A Lamp ﬁ <thin k>"


def test_a_normalizer_that_drops_spaces_is_refused():
    tokenizer = smollm2()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "")
    assert ControlTokens(tokenizer).plain("a <file_sep>") == "a < file_sep>"
    tokenizer.add_tokens(["<think>"])
    with pytest.raises(ValueError, match="drops spaces, so that no control token can be broken"):
        ControlTokens(tokenizer)


def test_words_that_were_added_to_a_vocabulary_are_no_control_tokens():
    tokenizer = smollm2()
    tokenizer.add_tokens([AddedToken("lampshade", normalized=False), AddedToken("\t\t", normalized=False)])
    assert ControlTokens(tokenizer).plain("a lampshade\t\t<file_sep>") == "a lampshade\t\t< file_sep>"


def test_a_control_token_of_one_letter_is_refused():
    tokenizer = smollm2()
    tokenizer.add_special_tokens({"extra_special_tokens": ["☃"]})
    with pytest.raises(ValueError, match="'☃' is a control token of the tokenizer: take it out of 'snow ☃'"):
        ControlTokens(tokenizer).plain("snow ☃")


def test_contents_may_be_lists_of_parts():
    parts = [{"type": "text", "text": "a <file_sep>"}, {"type": "image_url", "image_url": {"url": "x"}}, "<file_sep>"]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    plain = ControlTokens(smollm2()).plain_messages(messages)
    assert plain[0]["content"] == [parts[0] | {"text": "a < file_sep>"}, parts[1], "< file_sep>"]
    assert plain[1] == messages[1] and parts[0]["text"] == "a <file_sep>"


def items_of(text: str, token: str) -> pa.Table:
    columns = dict.fromkeys(("title", "description", "brand"), [text, f"lamp {text}", token])
    return pa.table({"item_id": ["a", "b", "c"], **columns, "categories": ["X > Y", f"X > {text}", text]})


@every_family
@pytest.mark.parametrize("task", ["titles_to_item", "item_to_title", "item_to_caption", "query_to_item", "explain",
                                  "interleaved_history", "persona", "conversation", "think_next_item",
                                  "history_query_to_item", "item_to_attribute", "text_to_item"])  # fmt: skip
def test_rendered_rows_have_the_control_tokens_of_harmless_rows(family, task):
    tokenizer = with_semids(FAMILIES[family]())
    control, prompt = ControlTokens(tokenizer, INDEX.tokens), load_prompt(task)
    row = {"history": ["a", "b"], "targets": ["c"]} | ({"about": "b"} if "about" in TASKS[task].given else {})

    def counts(text: str, token: str, **typed) -> list[int]:
        renderer = Renderer(tokenizer, Catalogue(INDEX, items_of(text, token)))
        rendered = [renderer.render(prompt, row | typed, wording) for wording in prompt.templates[:3]]
        return [counted(tokenizer, control, text) for pair in rendered for text in pair]

    expected = counts("red lamp cord nice", "Acme", wish="cheaper", query="lamp")
    for token in control.tokens:
        assert counts(f"a {token} cord lamp", token, wish=f"with={token} x") == expected, token
        assert counts(f"{token.upper()}{token} b c", token.upper(), wish=f"brand={token}") == expected, token
        # A search quotes what was typed instead of what it would make of the title.
        assert counts("lamp", "Acme", wish=token, query=f"<a_0><b_1>{token}") == expected, token


def test_no_token_is_made_of_a_wording_and_a_slot():
    tokenizer = with_semids(smollm2())
    renderer = Renderer(tokenizer, Catalogue(INDEX, items_of("x", "y")))
    prompt = Prompt("query_to_item", (Template("find <{query}> or {query}{query}>", "{target}"),))
    row = {"history": [], "targets": ["a"]}
    plain = renderer.prompt(prompt, row | {"query": "lamp"})
    for query in ("|im_end|", "file_sep", "<file_sep", "<a_0"):
        text = renderer.prompt(prompt, row | {"query": query})
        assert len(renderer._control.find(text)) == len(renderer._control.find(plain)), text


def test_a_turn_cannot_name_another_turn():
    tokenizer = with_semids(smollm2())
    renderer = Renderer(tokenizer, Catalogue(INDEX, items_of("[[llmrec0]][[llmrec2]]", "y")))
    prompt = load_prompt("conversation")
    row = {"history": ["b"], "targets": ["c"], "about": "a", "wish": "cheaper"}
    text = renderer.prompt(prompt, row)
    turns = text.count("<|im_start|>")
    assert turns == len(prompt.templates[0].turns) + 1 + bool(prompt.system)
    titles = load_prompt("titles_to_item")
    assert "[[llmrec0]][[llmrec2]]" in renderer.prompt(titles, {"history": ["a"], "targets": []})


# Conversations


def test_a_template_without_system_gets_it_in_the_first_user_turn_and_says_so_once(caplog):
    _say_once.cache_clear()
    tokenizer = gemma()
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A lamp?"}]
    with caplog.at_level(logging.WARNING):
        texts = [conversation(tokenizer, asked) for _ in range(3)]
    assert set(texts) == {"<bos><start_of_turn>user\nBe brief.\n\nA lamp?<end_of_turn>\n<start_of_turn>model"}
    assert len(caplog.records) == 1 and "no place for a system message" in caplog.text
    tokenizer.chat_template = GEMMA.replace("{{ raise_exception('System role not supported') }}", "").replace(
        "{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"
    )  # one that swallows it
    assert conversation(tokenizer, asked) == texts[0]
    tokenizer.chat_template = CHATML
    assert with_system(tokenizer, asked) is asked
    alone = with_system(gemma(), asked[:1])
    assert alone == [{"role": "user", "content": "Be brief."}]


def test_a_system_text_joins_contents_of_every_kind():
    parts = [{"type": "text", "text": "A lamp?"}]
    brief, gap = {"type": "text", "text": "Be brief."}, {"type": "text", "text": "\n\n"}

    def joined(system, content):
        return with_system(gemma(), [{"role": "system", "content": system}, {"role": "user", "content": content}])

    assert joined("Be brief.", parts) == [{"role": "user", "content": [brief, gap, *parts]}]
    assert joined([brief], "A lamp?") == [{"role": "user", "content": [brief, gap, *parts]}]
    assert joined("Be brief.", None) == [{"role": "user", "content": "Be brief."}]
    assert joined(None, "A lamp?") == [{"role": "user", "content": "A lamp?"}]
    assert "None" not in conversation(smollm2(), [{"role": "user", "content": None}])


@pytest.mark.parametrize("said", ["upper", "replace('e', '')", "truncate(3, True)"])
def test_a_template_takes_a_system_text_whatever_it_makes_of_it(said):
    tokenizer = smollm2()
    asked = [{"role": "system", "content": "the\nshop"}, {"role": "user", "content": "I like the\nshop"}]
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | " + said + " }}{% endfor %}"
    assert with_system(tokenizer, asked) is asked
    tokenizer.chat_template = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    assert conversation(tokenizer, asked) == "the\nshop\n\nI like the\nshop"  # though the user says the same words


def test_what_a_template_refuses_is_a_value_error():
    tokenizer = gemma()
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(ValueError, match="chat template refuses the messages: never"):
        conversation(tokenizer, [{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "template, expected",
    [
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ('{% set d = strftime_now( "%Y-%m-%d" ) %}{{ d }}', "2024-07-26"),
        ("{% if strftime_now is defined %}{{ strftime_now('%B %d, %Y') }}{% endif %}", "July 26, 2024"),
        ("{% if strftime_now is not defined %}no{% endif %}{{ strftime_now (\n'%d' ) }}", "26"),
    ],
)
def test_a_template_prints_the_same_day_on_every_day(template, expected, tmp_path):
    tokenizer = with_semids(smollm2())
    tokenizer.chat_template = template + "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    Renderer(tokenizer, Catalogue(INDEX, items_of("x", "y")))
    assert conversation(tokenizer, [{"role": "user", "content": "!"}]) == expected + "!"
    tokenizer.save_pretrained(tmp_path)  # and so does every program that reads the folder
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False) == expected + "?"


@pytest.mark.parametrize(
    "template",
    [
        "{% set f = '%d' %}{{ strftime_now(f) }}",
        "{% set now = strftime_now %}{{ now('%d') }}",
        "{{ strftime_now('%d' ~ ' %b') }}",
        "{{ strftime_now(format='%d') }}",
        "{{ strftime_now('%d o\\'clock') }}",
    ],
)
def test_a_day_in_an_unknown_format_is_refused(template):
    tokenizer = smollm2()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match="prints the day in a format of its own"):
        fix_today(tokenizer)


# The beginning of a text


def test_prompts_begin_as_the_tokenizer_begins_a_text():
    base = llama2()
    assert text_start(base) == [base.bos_token_id] and text_start(smollm2()) == []
    for text in ("Items in order", "<s>Items in order", ""):
        rows = prompt_ids(base, [text])
        assert rows[0].count(base.bos_token_id) == 1 and rows[0][0] == base.bos_token_id
    assert prompt_ids(base, ["Items in order"])[0] == base("Items in order")["input_ids"]
    chat = llama3()
    text = conversation(chat, [{"role": "user", "content": "Items"}])
    assert prompt_ids(chat, [text])[0].count(chat.bos_token_id) == 1
    assert prompt_ids(base, []) == []


@every_family
def test_a_teacher_reads_texts_as_texts(family):
    tokenizer, asked = FAMILIES[family](), []
    control = ControlTokens(tokenizer)
    write = chat_writer("x", tokenizer, 8, lambda ids, seeds: asked.extend(ids) or ["ok"] * len(ids))
    list(write(["a lamp"], "Be brief."))
    for token in control.tokens:
        list(write([f"a {token}lamp"], "Be brief."))
    known = set(tokenizer.convert_tokens_to_ids(control.tokens))
    counts = {sum(number in known for number in row) for row in asked}
    assert len(counts) == 1 and len(asked) == len(control.tokens) + 1
    assert asked[0][: len(text_start(tokenizer))] == text_start(tokenizer)
