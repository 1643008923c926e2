"""Blocks are found by what the network computes, and dropping one is adding nothing."""

import pytest
import torch
from cases.blocks import WITH_BLOCKS, WITHOUT_BLOCKS, build, inputs

from fcompress.forward.cost import count
from fcompress.forward.predictor import Predictor
from fcompress.structure.blocks import find_blocks
from fcompress.structure.groups import find_groups
from fcompress.surgery.excision import excise
from fcompress.surgery.preparation import prepare
from fcompress.surgery.skipping import drop, without


def found_in(kind):
    x = inputs(kind)
    network = prepare(build(kind), x).eval()
    groups = find_groups(network, x, call=Predictor(network).whole).groups
    return network, groups, find_blocks(Predictor(network), x, groups), x


@pytest.mark.parametrize("kind", WITH_BLOCKS.values(), ids=WITH_BLOCKS)
def test_blocks_of_every_kind_are_found(kind):
    _, _, blocks, _ = found_in(kind)
    assert tuple(block.name for block in blocks.found) == kind.blocks
    assert not blocks.kept


@pytest.mark.parametrize("kind", WITHOUT_BLOCKS.values(), ids=WITHOUT_BLOCKS)
def test_what_cannot_be_skipped_is_kept_with_the_reason(kind):
    _, _, blocks, _ = found_in(kind)
    assert not blocks.found
    assert len(blocks.kept) == len(kind.kept)
    for wanted, reason in zip(kind.kept, blocks.kept.values(), strict=True):
        assert wanted in reason


@pytest.mark.parametrize("kind", WITH_BLOCKS.values(), ids=WITH_BLOCKS)
def test_dropping_is_adding_nothing_and_takes_the_weights_along(kind):
    network, _, blocks, x = found_in(kind)
    for block in blocks.found:
        thin = drop(network, [block]).eval()
        silent = build(kind)
        with torch.no_grad():
            end = silent.end(block.name)
            end.zero_()
            bias = dict(silent.named_parameters()).get(_bias(silent, end))
            if bias is not None:
                bias.zero_()
            given, wanted, whole = thin(x), silent(x), network(x)
        assert torch.allclose(given, wanted, atol=1e-5)
        # The control: the block does something, so that dropping it shows.
        assert not torch.allclose(whole, wanted, atol=1e-2)
        names = {name for name, _ in [*thin.named_parameters(), *thin.named_buffers()]}
        assert not names & block.tensors
        assert count(thin, x).macs < count(network, x).macs
        assert count(thin, x).params < count(network, x).params


def _bias(model, weight):
    name = next(name for name, p in model.named_parameters() if p is weight)
    return name.rpartition(".")[0] + ".bias"


@pytest.mark.parametrize("kind", WITH_BLOCKS.values(), ids=WITH_BLOCKS)
def test_units_can_still_be_excised_without_the_blocks(kind):
    network, groups, blocks, x = found_in(kind)
    for gone in ([blocks.found[0]], list(blocks.found)):
        thin = drop(network, gone)
        left = without(groups, gone)
        again = find_groups(thin, x)
        proven = {g.name for g in again.groups}
        assert {g.name for g in left} <= proven | {g.name for g in again.not_pruned}
        kept = {g.name: torch.arange(g.size - 1) for g in left}
        small = excise(thin, left, kept).eval()
        assert small(x).shape == network(x).shape
        assert not left or count(small, x).macs < count(thin, x).macs


def test_a_block_inside_another_is_one_too():
    class Nested(WITH_BLOCKS["Residual"]):
        shape = (2, 8, 8)

        def forward(self, x):
            x = self.stem(x)
            y = self.first(x)
            return self.head_of(x + (y + self.second(y)))

        def head_of(self, x):
            return self.head(self.down(x))

    network, _, blocks, x = found_in(Nested)
    # The outer branch ends in a sum of two layers, so that only the inner one can go.
    assert [block.name for block in blocks.found] == ["second"]
    assert "added up" in next(iter(blocks.kept.values()))
    assert drop(network, blocks.found)(x).shape == network(x).shape


def test_a_mask_beside_the_stream_does_not_hide_attention():
    class Masked(WITH_BLOCKS["Encoder"]):
        def forward(self, x):
            hidden = x[..., 0] > 1.0
            return self.head(self.layer(self.lift(x), src_key_padding_mask=hidden).mean(1))

    _, _, blocks, _ = found_in(Masked)
    assert [block.name for block in blocks.found] == list(Masked.blocks)
