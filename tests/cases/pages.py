"""Results of networks of any depth, made up, for their pages."""

from typing import Any

import torch
from cases.shrunk import agreement, shrunk

from fcompress.certify.per_label import LabelCounts
from fcompress.compress.evidence import (
    ChangedExample,
    ChangedExamples,
    Evidence,
    Flow,
    JoinedUnits,
    LayerCosts,
    unit_map,
)
from fcompress.compress.result import LayerChange, ShrinkResult

HOSTILE = "<script>alert('layer')</script>&\"'"
LONG = "encoder." + "very_long_name_of_a_layer" * 12


def deep(count: int, name: str = "stage{}.conv{}", **changes: Any) -> ShrinkResult:
    """A network of `count` layers, every second of which is joined to the one two before it."""
    layers = []
    for i in range(count):
        before = 16 * (1 + i * 4 // count)
        after = max(1, before * (i % 5) // 5)
        layers.append(
            LayerCosts(
                name.format(i // 10, i), f"w{i}", "conv" if i < count - 1 else "linear",
                before, after, before, after, 1000 * before + i, 900 * after + i,
                0.5 + 0.01 * i, 0.2 + 0.01 * (i * 7 % 13),
            )
        )  # fmt: skip
    writers = tuple(f"w{i}" for i in range(0, count, 2))
    groups = (
        JoinedUnits("stream", 16, 8, writers, writers[1:], None),
        JoinedUnits("branch", 16, 8, ("w0",), ("w1", f"w{count - 1}"), None),
    )
    macs = {
        "before": sum(one.macs_before for one in layers),
        "after": sum(one.macs_after for one in layers),
    }
    candidates = tuple(
        {"removed": 10 * i, "distilled": i == 3, "macs": int(macs["before"] * 0.7**i),
         "changed": i * i, "n": 200, "certification": (None, "passed", "failed")[i % 3]}
        for i in range(1, 8)
    )  # fmt: skip
    found: dict[str, Any] = {
        "macs": macs,
        "params": {"before": 123_456, "after": 7_890},
        "bytes": {"before": 493_824, "after": 31_560},
        "layers": tuple(
            LayerChange(one.name, one.units_before, one.units_after, None) for one in layers
        ),
        "candidates": candidates,
        "evidence": Evidence(
            Flow(tuple(layers), groups, 64, None), maps(3, 40), examples(), {"ablation": "curves"}
        ),
        "versions": {"fcompress": "0.1.0"},
    }
    return shrunk(**{**found, **changes})


def maps(groups: int, units: int) -> tuple[Any, ...]:
    """Maps of made-up groups."""
    found = []
    for seed in range(groups):
        x = torch.randn(200, units + seed, generator=torch.Generator().manual_seed(seed)).double()
        x[:, 1] = x[:, 0]
        size = units + seed
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        one = unit_map(f"stage{seed}", [x.T.cov()], [torch.eye(size).double()], order)
        one = one.with_cost(torch.linspace(3, 0, size).double())
        found.append(type(one)(**{**vars(one), "kept": size // 4}))
    return tuple(found)


def examples() -> ChangedExamples:
    """An image, a text and a table of numbers."""
    kinds = {
        "image": ((1, 8, 8), torch.arange(64, dtype=torch.uint8).view(8, 8, 1)),
        "tokens": ((100,), torch.arange(64)),
        "numbers": ((5,), torch.randn(5)),
    }
    return ChangedExamples(
        "test",
        300,
        tuple(
            ChangedExample(i, "cat", f"dog {i}", "", "cat", 0.5, 0.25, 1.0, kind, *values)
            for i, (kind, values) in enumerate(kinds.items())
        ),
    )


def labelled(counts: dict[int, tuple[int, int]]) -> Any:
    """How labels fare: label -> (examples, changed)."""
    ours = torch.cat([torch.full((n,), label) for label, (n, _) in counts.items()])
    theirs = ours.clone()
    for label, (_, changed) in counts.items():
        theirs[(ours == label).nonzero().flatten()[:changed]] = label + 1
    tally = LabelCounts()
    tally.add("classes", ours[:, None], theirs[:, None], max(counts) + 2, 0)
    n, changed = len(ours), sum(c for _, c in counts.values())
    return agreement(changed, n, 0.049, by_label=tally.result(0.95))
