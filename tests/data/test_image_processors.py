"""Image processors of folders of transformers, as preprocessing."""

import json

import pytest

from fcompress.data.preprocess import of_name
from fcompress.errors import DataError

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}


def read(folder, **said):
    (folder / "preprocessor_config.json").write_text(json.dumps({**HALF, **said}))
    return of_name(f"hf:{folder}")


@pytest.mark.parametrize(
    ("said", "size", "resize"),
    [
        ({"size": {"height": 64, "width": 48}}, (64, 48), (64, 48)),
        ({"size": 64}, (64, 64), (64, 64)),
        ({"size": 72, "do_center_crop": True, "crop_size": 64}, (64, 64), (72,)),
        (
            {"size": {"shortest_edge": 72}, "do_center_crop": True, "crop_size": 64},
            (64, 64),
            (72,),
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (224, 224), (256,)),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (384, 384), (384, 384)),
        ({"do_resize": False}, None, ()),
    ],
)
def test_sizes(tmp_path, said, size, resize):
    found = read(tmp_path, resample=3, **said)
    assert (found.size, found.resize, found.interpolation) == (size, resize, "bicubic")
    assert (found.channels, found.mean, found.std) == (3, (0.5,) * 3, (0.25,) * 3)


def test_without_normalisation_pixels_are_from_0_to_1(tmp_path):
    found = read(tmp_path, size=8, do_normalize=False)
    assert (found.mean, found.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"size": 8, "rescale_factor": 1.0}, "scales images in another way"),
        ({"size": 8, "do_rescale": False}, "scales images in another way"),
        ({"size": {"height": "8", "width": 8}}, "give --size"),
        ({"size": 8, "image_mean": "0.5"}, "give --mean and --std"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path, said, why):
    with pytest.raises(DataError, match=why):
        read(tmp_path, **said)


def test_a_folder_without_a_processor(tmp_path):
    with pytest.raises(DataError, match="preprocessor_config"):
        of_name(f"hf:{tmp_path}")
