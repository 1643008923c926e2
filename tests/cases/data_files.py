"""What tests of data have in common."""

import numpy as np
import pytest
import torch
from PIL import Image


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) > 20
    return text


def all_rows(splits) -> list[torch.Tensor]:
    return [split.rows for split in splits.present().values()]


def png(path, size=(8, 6), seed=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) + ((3,) if mode == "RGB" else ())
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels
