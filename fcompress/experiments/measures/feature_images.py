"""Images that maximise the activation of a unit (paper section 5; docs/protocol.md section 7).

As in Olah, Mordvintsev and Schubert, "Feature Visualization" (Distill 2017): an image is a Fourier
spectrum divided by its frequency, so that all frequencies are learned equally fast; colours are
decorrelated; each step sees the images shifted, scaled and turned at random, so that only what
survives it is drawn.

Maximised is the mean over positions of what the unit's ReLU is given, or of its output where the
layer does not end with one. After the ReLU, pixels that leave the unit off at their position would
have no gradient: they would stay as they are by chance, edges that no unit asks for and that count
in the total variation, and a unit that is off on the whole first image would never be drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcompress.errors import FcompressError
from fcompress.forward.predictor import Predictor
from fcompress.measure.hooks import before_relu, observe
from fcompress.measure.layers import redundancy_layers

STEPS = 256
RATE = 0.05  # of Adam, as in Lucid
# Half ranges of the random shift (share of the image), the scale (share) and the angle (degrees):
# those of Lucid's standard transformations, whose images are 128 pixels wide.
SHIFT, SCALE, ANGLE = 1 / 16, 0.1, 10.0
START_DEVIATION = 0.01  # of the spectrum at the start, as in Lucid
# Square root of the correlation of the colours of ImageNet (published in Lucid,
# lucid/optvis/param/color.py). Lucid divides it by its largest column norm.
COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))


@dataclass(frozen=True, eq=False)
class FeatureImages:
    """One image for each of some units of a layer.

    Attributes:
        units: Their indices.
        images: [units, C, H, W], float32 on the CPU, between 0 (lowest) and 1 (highest value).
        before: [units], mean over positions of the unit's output on the image at the start.
        after: [units], the same on the image at the end, neither of them shifted or turned.
        dead: [units], bool: the output is exactly 0 at every position at the end; the image of
            such a unit shows nothing.
    """

    units: tuple[int, ...]
    images: Tensor
    before: Tensor
    after: Tensor
    dead: Tensor


def feature_images(
    model: nn.Module,
    layer: str,
    units: Sequence[int],
    *,
    shape: Sequence[int],
    low: Tensor,
    high: Tensor,
    steps: int = STEPS,
    lr: float = RATE,
    seed: int = 0,
) -> FeatureImages:
    """Find images that activate units of a layer, all of them at once.

    Args:
        model: The network; comes back as it was.
        layer: Address of the layer (`capture`), not the output.
        units: Indices of neurons or feature maps; the same may occur several times.
        shape: (C, H, W) of the images.
        low: [C] or [1], what the lowest value of a pixel is for the network (standardised).
        high: Likewise the highest.
        steps: Steps of Adam.
        lr: Its learning rate.
        seed: Decides the first images and the transformations.

    Raises:
        FcompressError: The shape is not that of images, there is no such unit, or the unit's
            output is not finite.
        UnsupportedNetworkError: There is no such layer.
    """
    if len(shape) != 3 or min(shape, default=0) < 1:
        raise FcompressError(
            f"images of shape {list(shape)} cannot be drawn: expected [channels, height, width]; "
            "choose image data"
        )
    if steps < 1 or not lr > 0:
        raise FcompressError(f"steps {steps} and lr {lr}: expected at least 1 and above 0")
    generator = torch.Generator().manual_seed(seed)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    low, high = (t.to(device, torch.float32).view(-1, 1, 1) for t in (low, high))
    painter = _Painter(len(units), shape, generator, device)

    def seen(images: Tensor) -> Tensor:
        dtype = next((p.dtype for p in model.parameters()), torch.float32)
        return (low + (high - low) * images).to(dtype)

    with Predictor(model).evaluating():
        axis = _axis(model, layer, units, seen(torch.rand(2, *shape, device=device)))
        index = torch.tensor(units, device=device)

        def own(output: Tensor) -> Tensor:
            """[units, positions]: the values of each image's own unit."""
            maps = output.movedim(axis + 1, 1)
            return maps.reshape(*maps.shape[:2], -1)[torch.arange(len(index)), index]

        with observe(model, [layer]) as outputs, before_relu(model) as given:
            model(seen(painter.images()))
            first = own(outputs[layer])
            with torch.enable_grad():
                spectrum = painter.spectrum.requires_grad_()
                adam = torch.optim.Adam([spectrum], lr)
                for _ in range(steps):
                    model(seen(transformed(painter.canvases(), shape, generator)))
                    # The images do not touch each other: the gradient of the sum is that of each.
                    loss = -own(given(outputs[layer])).mean(1).sum()
                    if not torch.isfinite(loss):
                        raise FcompressError(
                            f"layer {layer} gives values that are not finite; the network cannot "
                            "be visualised"
                        )
                    (spectrum.grad,) = torch.autograd.grad(loss, [spectrum])
                    adam.step()
            images = painter.images()
            model(seen(images))
            last = own(outputs[layer])
    return FeatureImages(
        units=tuple(units),
        images=images.detach().float().cpu(),
        before=first.mean(1).double().cpu(),
        after=last.mean(1).double().cpu(),
        dead=(last == 0).all(1).cpu(),
    )


def unit_means(output: Tensor, axis: int) -> Tensor:
    """Mean over positions of each unit's output, the activation that is reported.

    Args:
        output: [n, ...], of a layer.
        axis: Dimension of the units, the batch not counted.

    Returns:
        [n, units].
    """
    maps = output.movedim(axis + 1, 1)
    return maps.reshape(*maps.shape[:2], -1).mean(2)


def margins(height: int, width: int) -> tuple[int, int]:
    """Rows and columns that a canvas has on either side of an image.

    `transformed` looks at no point beyond: half the image, scaled and turned, and shifted.
    """
    cos, sin = math.cos(math.radians(ANGLE)), math.sin(math.radians(ANGLE))

    def beyond(side: int, other: int) -> int:
        reach = (1 + SCALE) * (cos * side + sin * other) / 2
        return math.ceil(reach - side / 2 + max(1.0, SHIFT * side))

    return beyond(height, width), beyond(width, height)


def transformed(canvases: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Look at the middle of each canvas, shifted, scaled and turned at random; differentiable.

    Args:
        canvases: [n, C, H, W] and the `margins` on either side.
        shape: (C, H, W) of the images.
        generator: On the CPU; its draws do not depend on the device.

    Returns:
        [n, C, H, W].
    """
    count, channels, *canvas = canvases.shape
    _, height, width = shape
    draws = 2 * torch.rand(4, count, generator=generator) - 1
    # A shift of less than a pixel would change nothing in a tiny image.
    down, right = (max(1.0, SHIFT * height) * draws[0], max(1.0, SHIFT * width) * draws[1])
    scale, angle = 1 + SCALE * draws[2], torch.deg2rad(ANGLE * draws[3])
    cos, sin = scale * angle.cos(), scale * angle.sin()
    # Coordinates run from -1 to 1 along each side, of the image as of the canvas.
    across = torch.stack([cos * width, -sin * height, 2 * right], dim=1) / canvas[1]
    along = torch.stack([sin * width, cos * height, 2 * down], dim=1) / canvas[0]
    matrix = torch.stack([across, along], dim=1).to(canvases)
    grid = F.affine_grid(matrix, [count, channels, height, width], align_corners=False)
    return F.grid_sample(canvases, grid, align_corners=False)


class _Painter:
    """Images and the spectrum that they are made of.

    They are the middle of larger canvases: what the transformations bring in from beyond an
    image's borders is drawn as well. Grey or a mirror image there would be part of what the unit
    sees, and draws borders and corners of its own, which in small images are much of the total
    variation.

    Args:
        count: How many images.
        shape: (C, H, W) of one.
        generator: Draws the first spectrum.
        device: Where they lie.
    """

    def __init__(
        self,
        count: int,
        shape: Sequence[int],
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        channels, *sides = shape
        self._margins = margins(*sides)
        self._sides = [side + 2 * m for side, m in zip(sides, self._margins, strict=True)]
        down = torch.fft.fftfreq(self._sides[0])[:, None]
        right = torch.fft.rfftfreq(self._sides[1])[None]
        frequency = (down.square() + right.square()).sqrt()
        # The mean has frequency 0; it counts like the lowest other one.
        lowest = 1.0 / max(self._sides)
        self._scale = (1.0 / frequency.clamp_min(lowest)).to(device)
        size = (count, channels, self._sides[0], self._sides[1] // 2 + 1, 2)
        start = START_DEVIATION * torch.randn(size, generator=generator)
        self.spectrum = start.to(device)
        self._colours = None
        if channels == 3:
            colours = torch.tensor(COLOURS, device=device)
            self._colours = colours / colours.norm(dim=0).max()

    def images(self) -> Tensor:
        """[count, C, H, W], between 0 and 1."""
        (top, left), canvases = self._margins, self.canvases()
        return canvases[..., top : self._sides[0] - top, left : self._sides[1] - left]

    def canvases(self) -> Tensor:
        """[count, C, H, W] and the `margins` on either side, between 0 and 1."""
        spectrum = torch.view_as_complex(self.spectrum) * self._scale
        # Lucid divides by 4 as well, so that its learning rate suits both its ways to draw.
        images = torch.fft.irfft2(spectrum, s=self._sides, norm="ortho") / 4
        if self._colours is not None:
            images = torch.einsum("kc,ncij->nkij", self._colours, images)
        return images.sigmoid()


def _axis(model: nn.Module, layer: str, units: Sequence[int], inputs: Tensor) -> int:
    """Dimension of the units in the layer's output; checks that the units exist."""
    found = redundancy_layers(model, inputs, [layer]).measured[0]
    wrong = [unit for unit in units if not 0 <= unit < found.maps]
    if wrong or not units:
        raise FcompressError(
            f"layer {layer} has units 0 to {found.maps - 1}, not {wrong}; name at least one of them"
        )
    return found.axis
