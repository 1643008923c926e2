"""How many examples each step takes."""

from __future__ import annotations

from dataclasses import replace

from fcompress.certify.screening import check_reachable
from fcompress.compress.options import ShrinkOptions
from fcompress.data.roles import Roles
from fcompress.forward.predictor import Predictor
from fcompress.forward.recording import Recording, frontier_bytes

# Calibration examples: as many as this many multiply-adds allow, within bounds.
CALIBRATION_MACS = 6e10
CALIBRATION_LEAST, CALIBRATION_MOST = 1024, 8192
# Refitting holds the activations between two layers for all of them: no more than so many bytes,
# unless that leaves too few examples.
CALIBRATION_BYTES, CALIBRATION_FEWEST = 2 << 30, 64
# Search and certification examples: all that there are, of costly networks as many as so many
# multiply-adds allow. Every candidate meets the search split, a few the certificate. Work decides
# and never the tolerance, so that a looser one is searched and certified on the same examples.
SEARCH_MACS, SEARCH_LEAST = 6e11, 2000
CERTIFICATION_MACS, CERTIFICATION_LEAST = 6e12, 10_000


def check_enough(roles: Roles, options: ShrinkOptions, in_parts: bool) -> None:
    """See that there are enough certification examples for the tolerance, if one was given.

    Raises:
        ToleranceError: There are too few.
    """
    if options.tolerance is not None:
        what = f"certification {'groups' if 'groups' in roles.info else 'examples'}"
        count = len(roles.certification)
        check_reachable(options.tolerance, count, options.confidence, what, in_parts=in_parts)


def used(roles: Roles, macs: int) -> Roles:
    """The roles with as many search and certification examples as the work for each allows."""
    search = max(int(SEARCH_MACS / max(macs, 1)), SEARCH_LEAST)
    certification = max(int(CERTIFICATION_MACS / max(macs, 1)), CERTIFICATION_LEAST)
    return replace(
        roles,
        search=roles.search.most(search),
        certification=roles.certification.most(certification),
    )


def affordable(
    original: Predictor, roles: Roles, macs: int, recordings: dict[int, Recording]
) -> int:
    """How many calibration examples to use where the caller does not say."""
    example = original.place(roles.calibration.first(1))
    wanted = min(max(CALIBRATION_MACS / max(macs, 1), CALIBRATION_LEAST), CALIBRATION_MOST)
    held = CALIBRATION_BYTES / max(frontier_bytes(original, example, recordings), 1)
    return int(max(min(wanted, held), CALIBRATION_FEWEST))
