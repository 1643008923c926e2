"""Networks whose forward writes into what it is given."""

import pytest
import torch
from cases.trained import examples
from torch import nn

import fcompress
from fcompress.structure.groups import find_groups


class Into(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what
        self.body = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, x):
        self.what(x)
        return self.body(x)


def first_to_zero(x):
    x[:, 0] = 0


WAYS = [
    lambda x: x.mul_(0.5).add_(1),
    first_to_zero,
    lambda x: x.relu_(),
    lambda x: x.view(-1).clamp_(-1, 1),
    lambda x: x.sub_(x.mean(0)) if len(x) > 5000 else x.neg_(),
]


@pytest.mark.parametrize("what", WAYS)
def test_groups_are_proven_and_inputs_stay(what):
    x = torch.randn(4, 6, dtype=torch.float64)
    before = x.clone()
    structure = find_groups(Into(what).double(), x)
    assert [(g.name, g.size) for g in structure.groups] == [("body.0", 24)]
    assert torch.equal(x, before)


@pytest.mark.parametrize("what", WAYS[:2])
def test_it_is_shrunk_and_the_data_is_left(what):
    torch.manual_seed(0)
    x, _ = examples(600)
    before = x.clone()
    result = fcompress.shrink(Into(what).eval(), x, tol=0.2)
    assert torch.equal(x, before)
    assert result.macs["after"] < result.macs["before"]
    # The certificate is about one pass over the data as it is.
    again = fcompress.verify(Into(what).eval(), Into(what).eval(), x)
    assert again.n == 600 and torch.equal(x, before)
