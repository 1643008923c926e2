"""What is wrong with data before any work: values that are no numbers, copies across roles.

A certificate speaks of examples that nothing was chosen on. An example of the certification role
that also stands in the calibration or search data is not one of those, and a copy of another
certification example is no further evidence. Copies are exact ones, found by a hash of what the
network would be given; crops or recompressions of one picture are beyond it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from fcompress.certify.bounds import examples_needed, most_changes, upper_bound
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
    """Exact copies of examples.

    Attributes:
        shared: Certification examples that also stand in the calibration or search data; left out.
        repeated: Certification examples equal to an earlier one of them; left out.
        search: Search examples that also stand in the calibration data; kept.
        test: Test examples that also stand in the data of any other role; kept.
    """

    shared: int
    repeated: int
    search: int
    test: int

    @property
    def left_out(self) -> int:
        """Certification examples that do not count."""
        return self.shared + self.repeated

    def to_dict(self) -> dict[str, int]:
        """Plain JSON values."""
        return asdict(self)


def screened(roles: Roles) -> tuple[Roles, Copies]:
    """Leave copies out of the certification examples.

    Every role is read once, batch by batch; 16 bytes an example are remembered.

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
    calibration = set(digests(roles.calibration, "calibration"))
    search = list(digests(roles.search, "search"))
    seen = calibration.union(search)
    shared = repeated = 0
    distinct: set[bytes] = set()
    keep = []
    for digest in digests(roles.certification, "certification"):
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
    known = seen | distinct
    test = () if roles.test is None else digests(roles.test, "test")
    copies = Copies(
        shared=shared,
        repeated=repeated,
        search=sum(digest in calibration for digest in search),
        test=sum(digest in known for digest in test),
    )
    if copies.left_out:
        roles = replace(roles, certification=roles.certification.only(torch.tensor(keep)))
    return roles, copies


def check_reachable(tol: float, n: int, confidence: float) -> None:
    """Refuse a tolerance that so few certification examples cannot prove.

    Raises:
        ToleranceError: Not even if no label changes.
    """
    if tol == 0:
        raise ToleranceError(
            "a tolerance of 0 cannot be proven by any finite number of examples; choose one "
            f"above 0 ({n} certification examples can prove {_provable(n, confidence)})"
        )
    if most_changes(n, tol, confidence) < 0:
        raise ToleranceError(
            f"{n} certification examples cannot prove a tolerance of {tol:g} at {confidence:.0%} "
            f"confidence even if no label changes: {examples_needed(tol, confidence)} are needed; "
            f"bring more data or choose a tolerance of at least {_provable(n, confidence)}"
        )


def _provable(n: int, confidence: float) -> str:
    """The smallest tolerance that n examples can prove, rounded up so that it can be used."""
    return f"{math.ceil(1e4 * upper_bound(0, n, confidence)) / 1e4:.2%}"


def weaknesses(
    roles: Roles, copies: Copies, tolerance: float | None, confidence: float
) -> Iterator[str]:
    """What weakens the result of a compression, in words.

    Args:
        roles: As screened.
        copies: What the screening found.
        tolerance: Largest share of labels that may change; None where a size was asked for.
        confidence: Of the certificate.
    """
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
            "calibration data, so the search sees labels kept that new examples would lose; the "
            "certificate is not affected"
        )
    if _more_than(MANY_SHARE, copies.repeated, everything):
        yield (
            f"{copies.repeated:,} of {everything:,} certification examples are copies of "
            "others and were left out; the certificate speaks of the distinct ones"
        )
    most = -1 if tolerance is None else most_changes(n, tolerance, confidence)
    if 0 <= most < FEW_CHANGES:
        yield (
            f"{n:,} certification examples prove a tolerance of {tolerance:g} only if "
            f"{f'at most {most}' if most else 'none'} of their labels "
            f"{'changes' if most < 2 else 'change'}; more examples allow thinner networks"
        )


def _more_than(share: float, count: int, of: int) -> bool:
    return count > max(LEAST, share * of)


def digests(examples: Examples, role: str) -> Iterator[bytes]:
    """A hash of each example, in order.

    Args:
        examples: Inputs are compared as float32 or int64, whatever they come in.
        role: Named in the error.

    Raises:
        DataError: A value is not finite, or there is no example.
    """
    count = broken = 0
    for inputs, _ in examples:
        count += len(inputs)
        if inputs.is_floating_point():
            broken += int((~inputs.isfinite()).reshape(len(inputs), -1).any(1).sum())
        yield from _hashes(inputs)
    if broken:
        raise DataError(
            f"{broken:,} of {count:,} {role} examples hold values that are not finite; repair "
            "them or leave them out"
        )
    if not count:
        raise DataError(f"there are no {role} examples; expected some in every role")


def _hashes(inputs: Tensor) -> Iterable[bytes]:
    if not len(inputs):
        return
    values = inputs.detach().cpu().reshape(len(inputs), -1)
    # Adding 0 makes -0.0 what it equals.
    values = values.float() + 0.0 if values.is_floating_point() else values.long()
    for row in values.contiguous().numpy():
        yield hashlib.blake2b(row, digest_size=DIGEST_BYTES).digest()
