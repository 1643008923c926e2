"""A small language model, trained on the text of Python's own manual, by characters."""

from functools import cache
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn import functional as F

LENGTH = 32
PAD = 0  # stands for no character


class Block(nn.Module):
    """Causal attention and an MLP, each beside what goes past it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.join = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        n, length, _ = x.shape
        normed = self.before(x)
        q, k, v = (
            part(normed).view(n, length, self.heads, -1).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.join(seen.transpose(1, 2).reshape(n, length, -1))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Language(nn.Module):
    """Token ids [n, positions] to logits [n, positions, vocabulary]."""

    def __init__(self, vocabulary: int, width: int = 40, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.zeros(LENGTH, width))
        self.blocks = nn.Sequential(Block(width, heads), Block(width, heads))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, input_ids, attention_mask=None):
        """A causal network needs no mask for padding at the end; it is there to be read."""
        x = self.tokens(input_ids) + self.places[: input_ids.shape[1]]
        return self.head(self.norm(self.blocks(x)))


@cache
def pieces(count: int = 6000) -> tuple[torch.Tensor, int]:
    """Pieces of the text as ids [count, LENGTH + 1], in a random order, and how many ids there are.

    The text is the manual of the language that comes with Python (`help("while")` shows a page).
    """
    text = " ".join(" ".join(page for _, page in sorted(topics.items())).split()).lower()
    known = {c: i for i, c in enumerate(sorted(set(text)), PAD + 1)}
    ids = torch.tensor([known[c] for c in text])
    rows = ids[: len(ids) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    generator = torch.Generator().manual_seed(0)
    return rows[torch.randperm(len(rows), generator=generator)[:count]], len(known) + 1


@cache
def trained_language(steps: int = 250) -> Language:
    """The model, trained for some seconds on the first half of the pieces."""
    rows, vocabulary = pieces()
    rows = rows[: len(rows) // 2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Language(vocabulary)
        optimizer = torch.optim.Adam(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
        for _ in range(steps):
            some = rows[torch.randint(len(rows), (32,))]
            logits = model(some[:, :-1])
            optimizer.zero_grad()
            F.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten()).backward()
            optimizer.step()
            schedule.step()
    return model.eval()
