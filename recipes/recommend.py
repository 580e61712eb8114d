"""Recommends for some users of the prepared data and prints it readably: history titles → recommended titles.

    python recipes/recommend.py --config recipes/configs/quickstart/recommend.yaml
    python recipes/recommend.py --model out/quickstart/model --data_dir out/quickstart/data --num_users 1 --k 5 \
        --where '[["price", "<", 30]]'
"""

import json
from dataclasses import dataclass, field

from llmrec.arguments import at_least
from llmrec.catalogue.filters import Filter
from llmrec.commands import run_script
from llmrec.data import PreparedData
from llmrec.instructions.render import item_of
from llmrec.recommenders import LLMRecommender
from llmrec.recommenders.protocol import requests_of


@dataclass
class RecommendArguments:
    model: str = field(metadata={"help": "Model folder or Hub model."})
    data_dir: str = field(metadata={"help": "Prepared data, for the users' histories."})
    users: list[str] = field(default_factory=list, metadata={"help": "User ids; the first test users by default."})
    num_users: int = field(default=2, metadata={"help": "How many users where none are named."})
    k: int = field(default=5, metadata={"help": "How many items."})
    exclude_seen: bool = field(default=False, metadata={"help": "Leave out the items of the history."})
    where: str | None = field(default=None, metadata={"help": 'JSON conditions, e.g. [["price", "<", 30]].'})


def main(args: RecommendArguments) -> None:
    at_least(args, num_users=1, k=1)
    try:
        where = None if args.where is None else json.loads(args.where)
    except json.JSONDecodeError as error:
        example = '[["price", "<", 30]]'
        raise ValueError(f"--where {args.where!r} is no JSON ({error}); write '{example}'") from error
    data = PreparedData.load(args.data_dir)
    known = data.test["user_id"].to_pylist()
    users = args.users or list(dict.fromkeys(known))[: args.num_users]
    unknown = next((user for user in users if user not in set(known)), None)
    if unknown is not None:
        raise ValueError(f"--users: {unknown!r} has no row in {args.data_dir}/test.parquet")
    rows = [known.index(user) for user in users]
    recommender = LLMRecommender.from_pretrained(args.model)
    recommender.config.check_catalogue(data.items, args.model)
    histories, wishes = requests_of(recommender, data.test.take(rows))
    lists = recommender.recommend(histories, args.k, Filter(exclude_seen=args.exclude_seen, where=where), **wishes)
    titles = dict(zip(data.items["item_id"].to_pylist(), data.items["title"].to_pylist()))
    for user, row, history, items in zip(users, rows, histories, lists):
        print(f"\nUser {user} chose, oldest first:")
        for entry in history[-8:]:
            kind = "" if isinstance(entry, str) else f"{entry[1]}: "
            print(f"    {kind}{titles[item_of(entry)][:90]}")
        print("Recommended (log-probability, Semantic ID, title; * is what came next):")
        for item in items:
            mark = "*" if item.item_id == data.test["target"][row].as_py() else " "
            print(f"  {mark} {item.score:7.2f}  {recommender.index.encode(item.item_id):24} {item.title[:80]}")


if __name__ == "__main__":
    run_script(main, RecommendArguments)
