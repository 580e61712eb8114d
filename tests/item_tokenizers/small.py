"""Every item tokenizer, small enough for tests, and a catalogue on which all of them can be fitted."""

import numpy as np
import pyarrow as pa

# Constructor arguments by name; the properties in test_item_tokenizers.py run on every entry of TOKENIZERS.
SMALL = {
    "rq_kmeans": {"codebook_sizes": [8, 6, 4], "niter": 5},
    "pq": {"digits": 4, "codebook_size": 8, "niter": 5},
    "opq": {"digits": 4, "codebook_size": 8, "niter": 5},
    "balanced_tree": {"branching": 4},
    "cooccurrence_tree": {"clusters": 3, "max_leaf": 10},
    "category_tree": {},
    "random": {"codebook_sizes": [8, 6, 4]},
    "sequential": {"base": 8},
    "rvq": {"codebook_sizes": [8, 6, 4], "steps": 20, "batch_size": 64},
    "rq_vae": {"codebook_sizes": [8, 6, 4], "hidden": [16], "latent_dim": 6, "epochs": 4},
    "merged": {"vocabulary_size": 40, "inner": "rq_kmeans", "inner_args": {"codebook_sizes": [8, 6, 4], "niter": 5}},
    "mbgen": {"codebook_sizes": [4, 3, 40], "hidden": [16], "latent_dim": 6, "epochs": 4},
    "keywords": {"min_words": 2, "max_words": 4},
    "numbers": {},
    "tags": {"tags_column": "categories", "columns": ["title"], "max_words": 4},
    "letter": {"codebook_sizes": [8, 6, 4], "hidden": [16], "latent_dim": 6, "epochs": 4},
    "cost": {"codebook_sizes": [8, 6, 4], "hidden": [16], "latent_dim": 6, "epochs": 4},
    "etegrec": {"codebook_sizes": [8, 6, 4], "hidden": [16], "latent_dim": 6, "epochs": 4, "cycles": 1, "width": 8},
    "lm_indexer": {
        "codebook_sizes": [8, 6, 4],
        "max_words": 8,
        "width": 16,
        "num_layers": 1,
        "warmup_epochs": 1,
        "epochs": 1,
    },
    "idgenrec": {
        "min_words": 2,
        "max_words": 4,
        "max_text": 8,
        "groups": 3,
        "width": 16,
        "num_layers": 1,
        "warmup_epochs": 1,
        "rounds": 1,
        "recommender_epochs": 1,
        "generator_epochs": 1,
    },
}


def blobs(count=80, dim=12, seed=0):
    """Clustered items with some exact duplicates and a zero vector, float32 `[count, dim]`."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(6, dim))[rng.integers(0, 6, count)] + 0.3 * rng.normal(size=(count, dim))
    rows[-3:] = rows[:3]
    rows[4] = 0
    return rows.astype(np.float32)


def small_items(count=80, seed=0):
    """A catalogue with titles, brands and category paths; one item without text, one without category."""
    rng = np.random.default_rng(seed)
    kinds, colours = ["lamp", "chair", "table", "rug"], ["red", "green", "blue"]
    kind, colour = rng.integers(0, 4, count), rng.integers(0, 3, count)
    titles = [f"{colours[c]} {kinds[k]} number {i}" for i, (k, c) in enumerate(zip(kind, colour))]
    paths = [f"Home > {kinds[k].title()} > {colours[c].title()}" for k, c in zip(kind, colour)]
    titles[5], paths[6] = "", ""
    return pa.table(
        {
            "item_id": [f"i{i}" for i in range(count)],
            "title": titles,
            "description": [""] * count,
            "brand": [f"brand {b}" for b in rng.integers(0, 5, count)],
            "categories": paths,
        }
    )


def with_cold_items(features, items, copies):
    """The same catalogue, and before, between and after its items others, whose features are those of rows `copies`
    (and three times as many at random): what is learned from training sequences must not notice."""
    rng = np.random.default_rng(9)
    noise = 3 * rng.normal(size=(3 * len(copies), features.shape[1]))
    features = np.concatenate([features, features[copies], noise.astype(features.dtype)])
    cold = items.take(pa.array(np.resize(copies, 4 * len(copies))))
    ids = pa.array([f"cold {i}" for i in range(cold.num_rows)])
    items = pa.concat_tables([items, cold.set_column(cold.column_names.index("item_id"), "item_id", ids)])
    warm = np.sort(rng.choice(len(features), len(features) - cold.num_rows, replace=False))
    order = np.empty(len(features), int)
    order[warm] = np.arange(len(warm))
    order[np.setdiff1d(np.arange(len(features)), warm)] = np.arange(len(warm), len(features))
    return features[order], items.take(pa.array(order))


def small_train(items, users=60, length=7, seed=0):
    """Sequences in which neighbours in the catalogue follow each other; its last item is never seen."""
    rng = np.random.default_rng(seed)
    ids = items["item_id"].to_pylist()[:-1]
    starts = rng.integers(0, len(ids), users)
    lists = [[ids[(s + step * rng.integers(1, 3)) % len(ids)] for step in range(length)] for s in starts]
    return pa.table({"user_id": [f"u{u}" for u in range(users)], "item_ids": lists})
