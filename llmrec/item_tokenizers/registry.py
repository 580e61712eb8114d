"""The item tokenizers that stand alone, by name; `merged` merges the codes of any of them."""

from llmrec.item_tokenizers.lm_indexer import LMIndexer
from llmrec.item_tokenizers.none import RandomIDs, SequentialIDs
from llmrec.item_tokenizers.product import OPQ, PQ
from llmrec.item_tokenizers.protocol import ItemTokenizer
from llmrec.item_tokenizers.residual.etegrec import ETEGRec
from llmrec.item_tokenizers.residual.rq_kmeans import RQKMeans
from llmrec.item_tokenizers.residual.rq_vae import LETTER, RQVAE, CoST
from llmrec.item_tokenizers.residual.rvq import RVQ
from llmrec.item_tokenizers.trees.balanced_tree import BalancedTree
from llmrec.item_tokenizers.trees.category_tree import CategoryTree
from llmrec.item_tokenizers.trees.cooccurrence_tree import CooccurrenceTree
from llmrec.item_tokenizers.with_behaviour.mbgen import MBGen
from llmrec.item_tokenizers.words.idgenrec import IDGenRec
from llmrec.item_tokenizers.words.item_numbers import ItemNumbers
from llmrec.item_tokenizers.words.keywords import Keywords
from llmrec.item_tokenizers.words.tags import Tags

STAND_ALONE: dict[str, type[ItemTokenizer]] = {
    "rq_kmeans": RQKMeans,
    "pq": PQ,
    "opq": OPQ,
    "balanced_tree": BalancedTree,
    "cooccurrence_tree": CooccurrenceTree,
    "category_tree": CategoryTree,
    "random": RandomIDs,
    "sequential": SequentialIDs,
    "rvq": RVQ,
    "rq_vae": RQVAE,
    "mbgen": MBGen,
    "keywords": Keywords,
    "numbers": ItemNumbers,
    "tags": Tags,
    "letter": LETTER,
    "cost": CoST,
    "etegrec": ETEGRec,
    "lm_indexer": LMIndexer,
    "idgenrec": IDGenRec,
}
