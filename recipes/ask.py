"""Talks to a model that learned several tasks: what comes next and why, searches, wishes, and plain questions.

    python recipes/ask.py --config recipes/configs/pretrained/ask.yaml

Tasks are asked in the first wording of their prompt, so give the prompts that the model was trained with.
"""

from dataclasses import dataclass, field

from llmrec.arguments import at_least
from llmrec.catalogue.filters import Filter
from llmrec.commands import run_script
from llmrec.data import PreparedData
from llmrec.recommenders import LLMRecommender, Recommendation
from llmrec.tokens import conversation


@dataclass
class AskArguments:
    model: str = field(metadata={"help": "Model folder or Hub model."})
    data_dir: str = field(metadata={"help": "Prepared data, for a user's history."})
    user: str | None = field(default=None, metadata={"help": "Whose; the first test user by default."})
    queries: list[str] = field(default_factory=list, metadata={"help": "Searches, in anybody's words."})
    wishes: list[str] = field(default_factory=list, metadata={"help": "cheaper, other_brand, ... (docs/tasks.md)."})
    questions: list[str] = field(default_factory=list, metadata={"help": "What has nothing to do with the shop."})
    search: str = field(default="query_to_item", metadata={"help": "The prompt of searches."})
    like_but: str = field(default="like_but", metadata={"help": "The prompt of wishes."})
    explain: str = field(default="explain", metadata={"help": "The prompt that asks for a reason."})
    k: int = field(default=3, metadata={"help": "How many items."})
    max_new_tokens: int = field(default=60, metadata={"help": "Of an answer in words."})


def main(args: AskArguments) -> None:
    at_least(args, k=1, max_new_tokens=1)
    data = PreparedData.load(args.data_dir)
    users = data.test["user_id"].to_pylist()
    user = users[0] if args.user is None else args.user
    if user not in users:
        raise ValueError(f"--user: {user!r} has no row in {args.data_dir}/test.parquet")
    history, target = (data.test[name][users.index(user)].as_py() for name in ("history", "target"))
    recommender = LLMRecommender.from_pretrained(args.model)
    recommender.config.check_catalogue(data.items, args.model)
    catalogue = recommender.renderer.catalogue

    def name(item: str) -> str:
        price = catalogue.facts(item).price
        return catalogue.title(item) + (f" ({price})" if price else "")

    def show(items: list[Recommendation], remarks: dict[str, str]) -> None:
        for place, item in enumerate(items, 1):
            print(f"  {place}. {name(item.item_id)}{remarks.get(item.item_id, '')}")

    print(f"\n— {user} bought, oldest first —")
    for item in history[-6:]:
        print(f"  {name(item)}")
    [items] = recommender.recommend([history], args.k, Filter(exclude_seen=True))
    print("— and gets recommended —")
    show(items, {target: "   <- what came next"})

    best = items[0].item_id
    [reason] = recommender.generate_text(args.explain, [{"history": history, "about": best}], args.max_new_tokens)
    print(f"— Why the first? —\n  {reason}")

    for query, found in zip(args.queries, recommender.ask(args.search, [{"query": q} for q in args.queries], args.k)):
        print(f'\n— Search: "{query}" —')
        show(found, {})

    near = [*(item.item_id for item in items), *reversed(history)]
    for wish in args.wishes:  # about the first item near the user for which the shop has an answer
        about = next((item for item in near if len(catalogue.wishes.satisfying(wish, item))), best)
        [found] = recommender.ask(args.like_but, [{"about": about, "wish": wish}], args.k)
        print(f"\n— Like {name(about)}, but: {wish.replace('_', ' ')} —")
        missed = {item.item_id for item in found if not catalogue.wishes.satisfies(item.item_id, wish, about)}
        show(found, dict.fromkeys(missed, "   (not what was wished)"))

    chats = [conversation(recommender.tokenizer, [{"role": "user", "content": text}]) for text in args.questions]
    for question, answer in zip(args.questions, recommender.write(recommender.token_ids(chats), args.max_new_tokens)):
        print(f"\n— {question} —\n  {answer.strip()}")


if __name__ == "__main__":
    run_script(main, AskArguments)
