"""The kinds of datasets that a spec can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fcompress.data.examples import Raw, Request
from fcompress.data.readers.arrays import read_file
from fcompress.data.readers.folders import read_folder, read_imagenet
from fcompress.data.readers.gaussian import read_gaussian
from fcompress.data.readers.public import read_cifar10, read_digits, read_fashion
from fcompress.data.readers.texts import read_texts


@dataclass(frozen=True)
class Dataset:
    """A kind of dataset that a spec can name.

    Attributes:
        name: The word before the colon.
        form: How a spec is written.
        summary: What it is, in a line.
        splits: How it is cut.
        options: Option -> what it does.
        find: Where it comes from.
        read: Reads it.
    """

    name: str
    form: str
    summary: str
    splits: str
    find: str
    read: Callable[[Request], Raw] = field(repr=False)
    options: Mapping[str, str] = field(default_factory=dict)


# Kinds of data of the user's own, named by a path.
OWN = ("folder", "file", "text")
_HOLDOUT = {
    "holdout": "0: train on the whole official training set, no other splits but test",
    "train": "use only the first so many examples of the training split; the others stay whole",
}
_OFFICIAL = "official training set: calibration 8192, search 2000, certification 2000, rest train"
_OWN = (
    "train 40%, calibration 20%, search 10%, certification 15%, test 15%; "
    "for compression only: calibration 50%, search 20%, certification 30%"
)


def datasets() -> dict[str, Dataset]:
    """Every kind of dataset, by name."""
    kinds = (
        Dataset(
            "digits",
            "digits",
            "UCI optical digits: 1,797 grey images of 8x8, 10 classes",
            "train 797, calibration 300, search 200, certification 300, test 200",
            "embedded",
            read_digits,
        ),
        Dataset(
            "fashion-mnist",
            "fashion-mnist",
            "Fashion-MNIST: 60,000 + 10,000 grey images of 28x28, 10 classes",
            _OFFICIAL,
            "--data-root, the Debian package dataset-fashion-mnist, or --download",
            read_fashion,
            {"size": "side that images are brought to, 28", **_HOLDOUT},
        ),
        Dataset(
            "cifar10",
            "cifar10",
            "CIFAR-10: 50,000 + 10,000 colour images of 32x32, 10 classes",
            _OFFICIAL,
            "--data-root (torchvision's layout), or --download",
            read_cifar10,
            {"crop": "side of the window seen of each image; the paper: 28", **_HOLDOUT},
        ),
        Dataset(
            "imagenet",
            "imagenet",
            "ImageNet: 1.28 M + 50,000 colour images, 1,000 classes, read from disk as needed",
            _OFFICIAL,
            "--data-root (torchvision's layout: train/CLASS/, val/CLASS/)",
            read_imagenet,
            {"size": "side of the images, 224; Inception-v3: 299", **_HOLDOUT},
        ),
        Dataset(
            "gaussian",
            "gaussian:DIM",
            "Standard Gaussian points labelled 0 or 1 by a random teacher network",
            "train n, test n, calibration, search and certification 1000 each",
            "made from the seed",
            read_gaussian,
            {"n": "training and test points, 1000", "seed": "of points and teacher, 0"},
        ),
        Dataset(
            "folder",
            "folder:PATH",
            "Your images: one folder a class, or one flat folder without labels",
            _OWN,
            "PATH",
            read_folder,
            {
                "size": "side that images are brought to, if theirs differ",
                "channels": "1 (grey) or 3 (RGB)",
                "labels": "0: ignore class folders",
            },
        ),
        Dataset(
            "file",
            "file:PATH",
            "Your tensors in an .npz (x, y), .npy or .pt file; labels optional",
            _OWN,
            "PATH",
            read_file,
            {
                "raw": "1: hand values to the network as they are, not standardised; without x, "
                "each array by its name"
            },
        ),
        Dataset(
            "text",
            "text:PATH",
            "Your texts, one a line of a .txt or .jsonl file; labels optional",
            _OWN,
            "PATH",
            read_texts,
            {
                "tokenizer": "folder with tokenizer.json; of --arch hf:DIR its own",
                "length": "tokens of an example; the longest, at most 512",
                "mask": "percent of tokens replaced by the mask token, 0",
            },
        ),
    )
    return {kind.name: kind for kind in kinds}
