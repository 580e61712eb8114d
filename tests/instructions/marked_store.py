"""A generated store whose evaluation items are marked: each stands in one user's evaluation and in no training row."""

import numpy as np
import pyarrow as pa

from llmrec.catalogue.semids import SemIDIndex
from llmrec.data import prepare
from llmrec.data.synthetic import generate_store
from llmrec.instructions import Catalogue, Renderer
from llmrec.instructions.item_words import category_path
from llmrec.models.from_scratch import train_tokenizer
from llmrec.models.vocabulary import add_semid_tokens

KINDS = ["view", "cart", "buy"]
USERS = 12


def marked_data():
    """The generated store with kinds and a domain; every user ends with two items that nobody else has.

    They are validation and test. Each reads like the last item of the user's training sequence, so that tasks which
    look for similar items find it.
    """
    interactions, items = generate_store(3, 120, USERS, behaviours=True)
    events = interactions.to_pylist()
    last = {event["user_id"]: event for event in events}
    known = {item["item_id"]: item for item in items.to_pylist()}
    rows = items.to_pylist()
    for user, event in sorted(last.items()):
        for number in range(2):
            item = known[event["item_id"]] | {"item_id": f"{user}-evaluated-{number}"}
            rows.append(item | {"title": f"{item['title']} Mark{len(rows)}", "price": 1.0 + number})
            time = event["timestamp"] + 60 + number
            events.append({"user_id": user, "item_id": item["item_id"], "timestamp": time, "behaviour": "buy"})
    items = pa.Table.from_pylist(rows)
    domains = [category_path(categories)[0].lower() for categories in items["categories"].to_pylist()]
    items = items.append_column("domain", pa.array(domains))
    return prepare(pa.Table.from_pylist(events), items, behaviours=KINDS, keep_all_items=True, name="marked")


def index_of(data):
    number = np.arange(data.items.num_rows)
    index = SemIDIndex(data.items["item_id"].to_pylist(), np.stack([number // 16, number % 16], 1), [16, 16])
    return index.with_behaviours(data.behaviours)


def marked_setting():
    """`(data, index, tokenizer, renderer)`"""
    data = marked_data()
    index = index_of(data)
    tokenizer = train_tokenizer(data.items["title"].to_pylist(), 600)
    add_semid_tokens(tokenizer, index)
    return data, index, tokenizer, Renderer(tokenizer, Catalogue(index, data.items))
