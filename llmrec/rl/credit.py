"""What becomes of advantages: importance weights, dead groups, and which token of an item is to blame."""

from collections.abc import Sequence

import torch


def weighted(advantages: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Advantages of samples without replacement: those of a mean over the distribution instead of over the sample.

    All are float32 [N, G]. Given are those that are centred on the plain mean of a group, and importance weights that
    sum to 1 in a group; returned are those centred on the weighted mean and times G x weight, so that their plain mean
    is the estimate.
    """
    relative = advantages - advantages[:, :1]  # exactly 0 in a group of equal rewards, whose mean may be rounded
    centred = relative - (weights * relative).sum(1, keepdim=True)
    return centred * weights * weights.shape[1]


def live_groups(advantages: torch.Tensor) -> torch.Tensor:
    """bool [N]: whether the advantages (float32 [N, G]) of a group differ; rounding may leave equal ones beside 0."""
    return (advantages != advantages[:, :1]).any(1)


def skip_dead(advantages: torch.Tensor, accelerator) -> torch.Tensor:
    """Advantages (float32 [N, G]) as if dead groups were not in the batch: the others count for them."""
    alive = live_groups(advantages)[:, None].float()
    share = accelerator.reduce(alive.mean(), "mean").clamp(min=1e-8)
    return advantages * alive / share


def first_difference(
    advantages: torch.Tensor,
    completions: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int] | None],
    mask: torch.Tensor,
) -> torch.Tensor:
    """Advantages by token (float32 [N, C]): a wrong item is blamed where it leaves the target's Semantic ID.

    Tokens before it are right and are not blamed; tokens after it follow from it and are neither blamed nor praised.
    An item whose advantage is positive keeps it on all the tokens up to there, so partial credit is credit. Without a
    target every token counts.

    Args:
        advantages (float32 [N]), mask ([N, C]): of the completions.
        completions, targets: token ids of each completion and of its target (`None` where a wish has many).
    """
    credit = torch.zeros(mask.shape)
    for row, (completion, target, praised) in enumerate(zip(completions, targets, (advantages > 0).tolist())):
        if target is None or list(completion) == list(target):
            credit[row] = 1.0
            continue
        differs = (place for place, (one, other) in enumerate(zip(completion, target)) if one != other)
        place = next(differs, min(len(completion), len(target)))
        place = min(place, len(completion) - 1)  # one that ends where the target goes on is blamed for its end
        credit[row, 0 if praised else place : place + 1] = 1.0
    return advantages[:, None] * credit.to(advantages.device) * mask
