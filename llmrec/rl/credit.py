"""What becomes of advantages: importance weights, dead groups, and which token of an item is to blame."""

from collections.abc import Sequence

import torch


class WeightedBeta(float):
    """The coefficient of the KL, where completions are samples without replacement: TRL's loss adds `beta *
    per_token_kl`, and each completion counts there with its importance weight, as it does in the advantages.

    `weights` (float32 [B]) are G times those that sum to 1 in a group. The KL (float [B, C]) is weighted in place, so
    that the one that TRL logs is weighted too.
    """

    weights: torch.Tensor

    def __mul__(self, per_token_kl: torch.Tensor) -> torch.Tensor:
        return per_token_kl.mul_(self.weights[:, None]) * float(self)


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


def common_prefix(one: Sequence, other: Sequence) -> int:
    """How many entries agree from the left."""
    differs = (place for place, (first, second) in enumerate(zip(one, other)) if first != second)
    return next(differs, min(len(one), len(other)))


def first_difference(
    advantages: torch.Tensor,
    completions: Sequence[Sequence[int]],
    targets: Sequence[Sequence[Sequence[int]] | None],
    mask: torch.Tensor,
) -> torch.Tensor:
    """Advantages by token (float32 [N, C]): a wrong item is blamed where it leaves the target's Semantic ID.

    Tokens before it are right and are not blamed; tokens after it follow from it and are neither blamed nor praised.
    An item whose advantage is positive keeps it on all the tokens up to there, so partial credit is credit. Of several
    Semantic IDs of a target the one counts that an item follows longest. Without a target every token counts.

    Args:
        advantages (float32 [N]), mask ([N, C]): of the completions.
        completions: token ids of each.
        targets: token ids of all Semantic IDs of each one's target (`None` where a wish has many right answers).
    """
    credit = torch.zeros(mask.shape)
    for row, (completion, right, praised) in enumerate(zip(completions, targets, (advantages > 0).tolist())):
        if right is None or list(completion) in [list(semid) for semid in right]:
            credit[row] = 1.0
            continue
        place = max(common_prefix(completion, semid) for semid in right)
        place = min(place, len(completion) - 1)  # one that ends where the target goes on is blamed for its end
        credit[row, 0 if praised else place : place + 1] = 1.0
    return advantages[:, None] * credit.to(advantages.device) * mask
