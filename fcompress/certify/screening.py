"""What is wrong with data before any work: values that are no numbers, copies across roles.

A certificate speaks of examples that nothing was chosen on. An example of the certification role
that also stands in the calibration or search data is not one of those, and a copy of another
certification example is no further evidence. Exact copies are found by a hash of what the network
would be given, near ones as `data/near_copies.py` says; crops of one picture are beyond both.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fcompress.certify.bounded_mean import examples_for_any, least_bound
from fcompress.certify.bounds import examples_needed, most_changes, upper_bound
from fcompress.data.near_copies import Floats, Near, Sketches, near_copies
from fcompress.data.roles import Examples, Roles
from fcompress.errors import DataError, ToleranceError

DIGEST_BYTES = 16
# Some data sets hold copies by nature (Fashion-MNIST and digits, measured: none). Left out, they
# cost next to nothing. Many are worth a warning; more than careless collecting explains mean that
# one set was given twice or that two sets overlap, and are refused.
MANY_SHARE, REFUSED_SHARE = 0.01, 0.05
LEAST = 3  # never called many, however small the split
FEW_CHANGES = 5  # fewer allowed, and the certificate hangs on single examples


@dataclass(frozen=True)
class Copies:
    """Copies of examples.

    Attributes:
        shared: Certification examples that also stand in the calibration or search data; left out.
        repeated: Certification examples equal to an earlier one of them; left out.
        search: Search examples that also stand in the calibration data; kept.
        test: Test examples that also stand in the data of any other role; kept.
        near_shared: Other certification examples that are nearly the same as one of the
            calibration or search data; left out.
        near_repeated: Others that are nearly the same as an earlier one of them; left out.
    """

    shared: int
    repeated: int
    search: int
    test: int
    near_shared: int = 0
    near_repeated: int = 0

    @property
    def left_out(self) -> int:
        """Certification examples that do not count."""
        return self.shared + self.repeated + self.near

    @property
    def near(self) -> int:
        """Near-copies among them."""
        return self.near_shared + self.near_repeated

    def to_dict(self) -> dict[str, int]:
        """Plain JSON values."""
        return asdict(self)


def screened(roles: Roles) -> tuple[Roles, Copies]:
    """Leave copies out of the certification examples.

    Every role is read once, batch by batch; 144 bytes an example are remembered.

    What is left is a sample of the examples that differ from all that the network was made with.
    Whether an example is left out depends on inputs alone, never on a network, so that the number
    of changed labels among the others is still binomial.

    Args:
        roles: The roles; not changed.

    Returns:
        The same roles with fewer certification examples, and what was found.

    Raises:
        DataError: An input is not finite, or so many certification examples stand in the
            calibration or search data that it is no accident.
    """
    others, asked = Sketches(), Sketches()
    calibration = set(digests(roles.calibration, "calibration", others))
    search = list(digests(roles.search, "search", others))
    seen = calibration.union(search)
    for examples in roles.unlabelled:
        seen.update(digests(examples, "further", others))
    shared = repeated = 0
    distinct: set[bytes] = set()
    keep = []
    for digest in digests(roles.certification, "certification", asked):
        if digest in seen:
            shared += 1
        elif digest in distinct:
            repeated += 1
        keep.append(digest not in seen and digest not in distinct)
        distinct.add(digest)
    if _more_than(REFUSED_SHARE, shared, len(keep)):
        raise DataError(
            f"{shared:,} of {len(keep):,} certification examples also stand in the calibration or "
            "search data, so they prove nothing; give each role examples of its own and remove "
            "copies from the data"
        )
    near = _near(others.all(), asked.all(), keep)
    known = seen | distinct
    test = () if roles.test is None else digests(roles.test, "test")
    copies = Copies(
        shared=shared,
        repeated=repeated,
        search=sum(digest in calibration for digest in search),
        test=sum(digest in known for digest in test),
        near_shared=int(near.shared.sum()),
        near_repeated=int(near.repeated.sum()),
    )
    if copies.left_out:
        roles = replace(roles, certification=roles.certification.only(torch.tensor(keep)))
    return roles, copies


def _near(others: Floats, asked: Floats, keep: list[bool]) -> Near:
    """Near-copies among the certification examples still kept, which are left out of `keep`."""
    kept = np.flatnonzero(keep)
    if not len(asked):
        return near_copies(others[:0], asked)
    found = near_copies(others, asked[kept])
    for row in kept[found.shared | found.repeated]:
        keep[row] = False
    return found


def check_reachable(
    tol: float,
    n: int,
    confidence: float,
    what: str = "certification examples",
    *,
    in_parts: bool = False,
) -> None:
    """Refuse a tolerance that so few certification examples cannot prove.

    Args:
        tol: Largest share of labels that may change.
        n: How many certification examples there are.
        confidence: Of the certificate.
        what: They are, in words.
        in_parts: Whether examples change by a share (`bounded_mean.py`).

    Raises:
        ToleranceError: Not even if no label changes.
    """
    least = least_bound(n, confidence) if in_parts else upper_bound(0, n, confidence)
    provable = f"{math.ceil(1e4 * least) / 1e4:.2%}"  # rounded up so that it can be used
    if tol == 0:
        raise ToleranceError(
            "a tolerance of 0 cannot be proven by any finite number of examples; choose one "
            f"above 0 ({n} {what} can prove {provable})"
        )
    if least > tol:
        needed = (examples_for_any if in_parts else examples_needed)(tol, confidence)
        raise ToleranceError(
            f"{n} {what} cannot prove a tolerance of {tol:g} at {confidence:.0%} "
            f"confidence even if none changes: {needed} are needed; "
            f"bring more data or choose a tolerance of at least {provable}"
        )


def weaknesses(
    roles: Roles,
    copies: Copies,
    tolerance: float | None,
    confidence: float,
    *,
    in_parts: bool = False,
) -> Iterator[str]:
    """What weakens the result of a compression, in words.

    Args:
        roles: As screened.
        copies: What the screening found.
        tolerance: Largest share of labels that may change; None where a size was asked for.
        confidence: Of the certificate.
        in_parts: Whether examples change by a share.
    """
    yield from _of_the_data(roles)
    n = len(roles.certification)
    everything = n + copies.left_out
    if _more_than(MANY_SHARE, copies.shared, everything):
        yield (
            f"{copies.shared:,} of {everything:,} certification examples also stand in the "
            "calibration or search data and were left out; the certificate speaks of examples that "
            "do not"
        )
    if _more_than(MANY_SHARE, copies.search, len(roles.search)):
        yield (
            f"{copies.search:,} of {len(roles.search):,} search examples also stand in the "
            "calibration data, so the search sees answers kept that new examples would lose; the "
            "certificate is not affected"
        )
    if _more_than(MANY_SHARE, copies.repeated, everything):
        yield (
            f"{copies.repeated:,} of {everything:,} certification examples are copies of "
            "others and were left out; the certificate speaks of the distinct ones"
        )
    if _more_than(MANY_SHARE, copies.near, everything):
        yield (
            f"{copies.near:,} of {everything:,} certification examples are nearly the same as "
            f"others ({copies.near_shared:,} as calibration or search examples) and were left out: "
            "they are no independent evidence; if they belong together, as frames of a video do, "
            "say so by groups (--groups)"
        )
    if tolerance is None:
        return
    if in_parts:
        if FEW_CHANGES / n + least_bound(n, confidence) > tolerance:
            yield (
                f"{n:,} certification examples prove a tolerance of {tolerance:g} only if less "
                f"than {max(tolerance - least_bound(n, confidence), 0):.1%} of their positions "
                "changes; more examples allow thinner networks"
            )
        return
    most = most_changes(n, tolerance, confidence)
    if 0 <= most < FEW_CHANGES:
        yield (
            f"{n:,} certification examples prove a tolerance of {tolerance:g} only if "
            f"{f'at most {most}' if most else 'none'} of them "
            f"{'changes' if most < 2 else 'change'}; more examples allow thinner networks"
        )


def _of_the_data(roles: Roles) -> Iterator[str]:
    """What is odd about data that was read into memory."""
    info = roles.info
    if not info.get("complete", True):
        yield (
            f"the data is larger than what is held in memory; the first "
            f"{sum(info['sizes'].values()):,} examples were used, so that the certificate speaks "
            "of examples like these"
        )
    if not info.get("repeats", True):
        yield (
            "the data gives other examples at each pass (random transforms or a shuffled source); "
            "those that came first were held in memory, so that the certificate holds, but the "
            "same call may not give the same network again"
        )
    if info.get("drawn_again"):
        yield (
            f"the sampler drew {info['drawn_again']:,} examples again that it had drawn before; "
            "they were left out, since an example counts once"
        )


def _more_than(share: float, count: int, of: int) -> bool:
    return count > max(LEAST, share * of)


def digests(examples: Examples, role: str, sketches: Sketches | None = None) -> Iterator[bytes]:
    """A hash of each example, in order.

    Args:
        examples: Inputs are compared as float32 or int64, whatever they come in.
        role: Named in the error.
        sketches: Takes up the examples, too.

    Raises:
        DataError: A value is not finite, or there is no example.
    """
    count = broken = 0
    for inputs, _ in examples:
        count += len(inputs)
        if inputs.is_floating_point():
            broken += int((~inputs.isfinite()).reshape(len(inputs), -1).any(1).sum())
        if sketches is not None:
            sketches.add(inputs)
        yield from _hashes(inputs)
    if broken:
        raise DataError(
            f"{broken:,} of {count:,} {role} examples hold values that are not finite; repair "
            "them or leave them out"
        )
    if not count:
        raise DataError(f"there are no {role} examples; expected some in every role")


class Once:
    """Batches with a mark on the examples that are no exact copies of ones that came before.

    16 bytes an example are kept.

    Args:
        batches: (inputs, labels or None) pairs.
    """

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        self._batches = batches
        self.examples = self.copies = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        known: set[bytes] = set()
        self.examples = self.copies = 0
        for inputs, labels in self._batches:
            new = []
            for digest in _hashes(inputs):
                new.append(digest not in known)
                known.add(digest)
            self.examples += len(new)
            self.copies += new.count(False)
            yield inputs, labels, torch.tensor(new, dtype=torch.bool)

    def said(self) -> list[str]:
        """What was found at the last pass, in words."""
        if not self.copies:
            return []
        return [
            f"{self.copies:,} of {self.examples:,} examples are copies of others; the bound holds "
            "for all of them and for the distinct ones, whichever is weaker"
        ]


def _hashes(inputs: Tensor) -> Iterable[bytes]:
    if not len(inputs):
        return
    values = inputs.detach().cpu().reshape(len(inputs), -1)
    # Adding 0 makes -0.0 what it equals.
    values = values.float() + 0.0 if values.is_floating_point() else values.long()
    for row in values.contiguous().numpy():
        yield hashlib.blake2b(row, digest_size=DIGEST_BYTES).digest()
