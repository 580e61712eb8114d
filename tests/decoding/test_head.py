"""Logits of the tokens that stand after a node, multiplied node by node."""

import pytest
import torch

from llmrec.decoding.head import LevelHeads

NODES = torch.tensor([3, 0, 3, 1, 3, 0, 3, 1, 3])
COLUMNS = torch.arange(40).view(4, 10)[NODES]
IDS = [torch.arange(2), torch.arange(2, 42)]


def gradients(head, found, hidden):
    return torch.autograd.grad(found.square().sum(), [hidden, *head.parameters()])


@pytest.mark.parametrize("bias", [True, False])
def test_children_are_scored_as_among_all_tokens(monkeypatch, bias):
    head, hidden = (
        torch.nn.Linear(6, 50, bias=bias).double(),
        torch.randn(9, 6, dtype=torch.double, requires_grad=True),
    )
    heads = LevelHeads(head, IDS)
    expected = heads(1, hidden).gather(-1, COLUMNS)
    wanted = gradients(head, expected, hidden)
    with monkeypatch.context() as patch:
        patch.setattr(LevelHeads, "__call__", None)  # all tokens of the level are not multiplied
        found = LevelHeads(head, IDS).of_children(1, hidden, NODES, COLUMNS)
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(head, found, hidden), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)  # logits are float32


def test_wide_nodes_few_states_and_unknown_heads_are_read_whole():
    class Scaled(torch.nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    for head in (torch.nn.Linear(6, 50), Scaled(6, 50)):
        heads, hidden = LevelHeads(head, IDS), torch.randn(9, 6)
        columns = torch.arange(40).expand(9, 40)
        torch.testing.assert_close(heads.of_children(1, hidden, NODES, columns), head(hidden)[:, 2:42])
        torch.testing.assert_close(
            heads.of_children(1, hidden, NODES, COLUMNS), head(hidden)[:, 2:42].gather(1, COLUMNS)
        )
        assert heads.of_children(1, hidden[:0], NODES[:0], COLUMNS[:0]).shape == (0, 10)
