"""A small detector of torchvision's parts, its own SSDlite, and drawn shapes that they find."""

import warnings

import torch
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDHead

SIDE = 32


class Backbone(nn.Module):
    """Two levels of features, of 32 and 64 channels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(_layer(3, 16, 2), _layer(16, 32, 2), _layer(32, 32, 1))
        self.deep = nn.Sequential(_layer(32, 64, 2), _layer(64, 64, 1))

    def forward(self, x):
        first = self.stem(x)
        return {"0": first, "1": self.deep(first)}


def _layer(inputs: int, outputs: int, stride: int) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


def small_ssd() -> nn.Module:
    """An SSD for images of 32 by 32 with three classes beside the background."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        anchors = DefaultBoxGenerator([[2], [2]], scales=[0.25, 0.45, 0.6])
        head = SSDHead([32, 64], anchors.num_anchors_per_location(), 4)
        size = (SIDE, SIDE)
        mean, std = [0.5] * 3, [0.25] * 3
        return SSD(Backbone(), anchors, size, 4, head=head, image_mean=mean, image_std=std).eval()


def ssdlite() -> nn.Module:
    """Torchvision's SSDlite with a MobileNetV3 of half the width, for images of 128 by 128.

    It finds three classes; images of any size are brought to its own.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        network = ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=4, width_mult=0.5
        )
    network.transform.fixed_size = (128, 128)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # few steps have to do for its statistics
    return network.eval()


def shapes(count: int, seed: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Images [count, 3, 32, 32] with a square, a disc or a triangle or two, and their boxes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    images, targets = 0.2 * draw(count, 3, SIDE, SIDE), []
    y, x = torch.meshgrid(*[torch.arange(SIDE) + 0.5] * 2, indexing="ij")
    for image in images:
        boxes: list[Tensor] = []
        labels: list[int] = []
        for _ in range(1 + int(2 * draw(1))):
            radius = 5 + 3 * draw(1)
            center = radius + draw(2) * (SIDE - 2 * radius)
            box = torch.cat([center - radius, center + radius])
            middles = ((other[:2] + other[2:]) / 2 for other in boxes)
            if any(float((middle - center).abs().sum()) < 14 for middle in middles):
                continue
            across, down = x - center[0], y - center[1]
            kind = int(3 * draw(1))
            inside = (
                torch.maximum(across.abs(), down.abs()) < radius,
                across**2 + down**2 < radius**2,
                (down.abs() < radius) & (across.abs() < (down + radius) / 2),
            )[kind]
            image[:] = torch.where(inside, (0.5 + 0.5 * draw(3))[:, None, None], image)
            boxes.append(box)
            labels.append(kind + 1)
        targets.append({"boxes": torch.stack(boxes), "labels": torch.tensor(labels)})
    return images, targets


def trained(network: nn.Module, steps: int, batch: int = 32, warming: bool = False) -> nn.Module:
    """A detector after some steps of Adam on drawn shapes.

    Args:
        network: The detector.
        steps: How many.
        batch: Images of a step.
        warming: Whether the rate first rises and then falls, which deep ones need.
    """
    images, targets = shapes(2000 if warming else 1500, 1)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    rates = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    if warming:
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.2)
    generator = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(steps):
        rows = torch.randint(len(images), (batch,), generator=generator).tolist()
        losses = network(list(images[rows]), [targets[row] for row in rows])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        rates.step()
    return network.eval()
