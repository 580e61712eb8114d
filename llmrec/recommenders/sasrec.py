"""`SASRec`: the network of `llmrec.features.sasrec_network` as a recommender."""

from llmrec.features.sasrec_network import SASRecConfig, SASRecModel, train_sasrec
from llmrec.recommenders.network import NetworkRanker


class SASRec(NetworkRanker):
    """A trained SASRec; `SASRec.fit(data)` makes one."""

    kind, config_class, network, train = "sasrec", SASRecConfig, SASRecModel, staticmethod(train_sasrec)
