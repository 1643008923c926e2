"""Gaussian points labelled by a random teacher network (paper section 4, "MLPs")."""

import torch
from torch import Tensor

from fcompress.arguments.numbers import short, whole, whole_text
from fcompress.data.examples import Raw, Request, Stored, sha256_of
from fcompress.errors import DataError
from fcompress.formats.limits import check_memory

TEACHER_UNITS = 32
LEAST_SHARE = 0.4
HELD_OUT = 1000
MAX_TEACHERS = 10_000
# Inputs of 10,000 dimensions are gigabytes; the teacher sees them in pieces.
ROWS_AT_ONCE = 1024


def read_gaussian(request: Request) -> Raw:
    """Draw the dataset `gaussian:DIM,n=1000,seed=0`.

    `n` training and `n` test points plus 1,000 each for calibration, search and certification,
    all labelled by one teacher, which labels between 40% and 60% of them with each class.
    """
    try:
        dimensions = whole("dimensions", whole_text(request.argument), 1, 2**31 - 1)
    except ValueError as error:
        raise DataError(
            f"gaussian:{short(request.argument)}: expected the number of dimensions, as in "
            "gaussian:10"
        ) from error
    n = request.number("n", 1000, least=1)
    points = 2 * n + 3 * HELD_OUT
    check_memory(
        # The values, and a copy of some of them as they are hashed.
        4.0 * points * dimensions + 16.0 * ROWS_AT_ONCE * dimensions,
        f"gaussian:{request.argument},n={n}",
        "ask for fewer points (n=) or dimensions",
        DataError,
    )
    generator = torch.Generator().manual_seed(request.number("seed", 0))
    inputs = torch.randn(points, dimensions, generator=generator)
    labels = teacher_labels(inputs, generator)
    held_out = dict.fromkeys(("calibration", "search", "certification"), HELD_OUT)
    return Raw(
        examples=Stored(inputs),
        labels=labels,
        classes=2,
        sizes={"train": n, **held_out},
        official_test=n,
        sha256=sha256_of([inputs, labels]),
        statistics=([0.0], [1.0]),
    )


def teacher_labels(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Label points by the first random teacher that is balanced on them.

    The teacher is the paper's 1/4x network: 32 hidden ReLU units, 2 classes, normal weights, no
    biases. The standard deviations of its weights do not matter: with ReLU and without biases
    they scale both outputs alike.

    Args:
        inputs: [N, D], float32.
        generator: Draws the teachers.

    Returns:
        [N], int64, of 0 and 1, each between 40% and 60%.

    Raises:
        DataError: No teacher was balanced (too few points for any to be).
    """
    for _ in range(MAX_TEACHERS):
        hidden = torch.randn(inputs.shape[1], TEACHER_UNITS, generator=generator).double()
        output = torch.randn(TEACHER_UNITS, 2, generator=generator).double()
        # float64, so that no machine's order of summation turns a label (and the data's hash).
        pieces = (part.double() for part in inputs.split(ROWS_AT_ONCE))
        labels = torch.cat([((piece @ hidden).relu() @ output).argmax(1) for piece in pieces])
        if LEAST_SHARE <= float(labels.double().mean()) <= 1 - LEAST_SHARE:
            return labels
    raise DataError(
        f"none of {MAX_TEACHERS:,} random teachers labels 40-60% of {len(inputs)} points with "
        "each class; ask for more points (n=)"
    )
