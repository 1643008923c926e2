"""A small classifier, trained on the spot, and its data."""

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 4


def examples(count: int = 1200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs [count, 6] and labels that three hidden directions decide."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    return x, (x[:, :2] > 0).long() @ torch.tensor([1, 2])


def trained(seed: int = 0, width: int = 24) -> nn.Sequential:
    """A wide network that has learned them, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(6, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(width, CLASSES),
        )
        x, y = examples(seed=seed + 50)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def weights_of(model: nn.Module) -> str:
    """A fingerprint of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
