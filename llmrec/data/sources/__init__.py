"""Where data comes from: every loader returns `(interactions, items)` in the columns of `llmrec.data.validate`."""

from llmrec.data.sources.amazon import load_amazon2014, load_amazon2018, load_amazon2023
from llmrec.data.sources.compact import load_compact, write_compact
from llmrec.data.sources.hub import load_hub
from llmrec.data.sources.lcrec import load_lcrec, load_minionerec
from llmrec.data.sources.movielens import load_movielens
from llmrec.data.sources.tables import load_tables
from llmrec.data.synthetic import generate_store

SOURCES = {
    "table": load_tables,
    "hub": load_hub,
    "amazon2014": load_amazon2014,
    "amazon2018": load_amazon2018,
    "amazon2023": load_amazon2023,
    "movielens": load_movielens,
    "lcrec": load_lcrec,
    "minionerec": load_minionerec,
    "compact": load_compact,
    "synthetic": generate_store,
}

__all__ = ["SOURCES", "write_compact"]
