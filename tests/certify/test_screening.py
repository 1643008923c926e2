"""Copies of examples across the roles, and data that is no data."""

import contextlib
import copy
import dataclasses
import json
import warnings

import pytest
import torch
from cases.trained import examples, trained, weights_of
from click.testing import CliRunner
from torch.utils.data import DataLoader, TensorDataset

from fcompress.certify.bounds import most_changes
from fcompress.certify.screening import Copies, digests, screened, weaknesses
from fcompress.checkpoints.checkpoint import save
from fcompress.cli import main
from fcompress.compress.pipeline import shrink
from fcompress.data import Split, load_data
from fcompress.data.roles import Examples, Roles, roles_of
from fcompress.errors import DataError, ResultWarning, ToleranceError
from fcompress.models import build
from fcompress.training.loop import TrainConfig, train


def _roles(calibration, search, certification, test=None, labels=None):
    return Roles(
        calibration=Examples(calibration, None),
        search=Examples(search, None),
        certification=Examples(certification, labels),
        test=None if test is None else Examples(test, None),
        info={},
    )


def _numbers(start, stop):
    return torch.arange(start, stop).float()[:, None].repeat(1, 3)


def _read(examples):
    return torch.cat([inputs[:, 0] for inputs, _ in examples]).long().tolist()


def test_without_copies_nothing_is_left_out():
    roles = _roles(_numbers(0, 500), _numbers(500, 700), _numbers(700, 1000), _numbers(1000, 1100))
    same, copies = screened(roles)
    assert same == roles
    assert copies == Copies(shared=0, repeated=0, search=0, test=0)


def test_copies_are_counted_where_they_are_and_left_out_of_the_certificate():
    certification = _numbers(700, 1000)
    certification[5] = 3.0  # also in calibration
    certification[290] = 600.0  # also in search
    certification[[11, 280, 299]] = 710.0  # a copy of one of its own
    search = _numbers(500, 700)
    search[:4] = 7.0
    test = torch.cat([_numbers(1000, 1100), _numbers(0, 2), _numbers(698, 703)])
    labels = torch.arange(300)
    roles, copies = screened(_roles(_numbers(0, 500), search, certification, test, labels))
    assert copies == Copies(shared=2, repeated=3, search=4, test=7)
    assert copies.left_out == 5
    kept = [i for i in range(300) if i not in (5, 290, 11, 280, 299)]
    assert len(roles.certification) == 295
    assert _read(roles.certification) == [700 + i for i in kept]
    # The labels belong to the inputs that are left.
    assert torch.cat([y for _, y in roles.certification]).tolist() == kept
    assert _read(roles.certification) == _read(roles.certification)
    assert len(roles.test) == 107
    assert (len(roles.calibration), len(roles.search)) == (500, 200)


@pytest.mark.parametrize("shared", [3, 4, 15, 16, 300])
def test_many_shared_examples_are_an_error_some_a_warning(shared):
    certification = _numbers(700, 1000)
    certification[:shared] = _numbers(0, shared)
    roles = _roles(_numbers(0, 500), _numbers(500, 700), certification)
    if shared <= 15:  # 5%
        found, copies = screened(roles)
        assert copies.shared == shared
        said = list(weaknesses(found, copies, 0.3, 0.95))
        assert len(said) == (shared > 3)  # 1%
        assert all(f"{shared} of 300 certification examples also stand" in line for line in said)
        return
    with pytest.raises(DataError, match=rf"^{shared} of 300 certification examples also stand"):
        screened(roles)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.double(),
        lambda x: x.clone(),
        lambda x: x.repeat(1, 2)[:, :3],
        lambda x: x.neg().neg(),
        lambda x: torch.where(x == 0, -0.0, x),
    ],
    ids=["double", "clone", "view", "negated twice", "negative zero"],
)
def test_a_copy_is_a_copy_whatever_it_is_stored_as(change):
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).round()
    assert list(digests(Examples(change(x), None), "a")) == list(digests(Examples(x, None), "a"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool])
def test_whole_numbers_are_compared_too(dtype):
    x = torch.arange(48).reshape(16, 3) % 2
    found = list(digests(Examples(x.to(dtype), None), "a"))
    assert len(set(found)) == 2
    assert len(found[0]) == 16


def test_a_difference_in_one_value_is_a_difference():
    x = torch.randn(40, 5)
    other = x.clone()
    other[:, 2] = torch.nextafter(other[:, 2], torch.tensor(torch.inf))
    assert not set(digests(Examples(x, None), "a")) & set(digests(Examples(other, None), "a"))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("role", ["calibration", "search", "certification", "test"])
def test_values_that_are_no_numbers_are_refused_in_every_role(role, value):
    parts = [_numbers(100 * i, 100 * i + 90) for i in range(4)]
    parts[["calibration", "search", "certification", "test"].index(role)][::45, 1] = value
    with pytest.raises(DataError, match=f"2 of 90 {role} examples hold values that are not"):
        screened(_roles(*parts))


@pytest.mark.parametrize("role", ["calibration", "search", "certification", "test"])
def test_an_empty_role_is_refused(role):
    parts = [_numbers(100 * i, 100 * i + 90) for i in range(4)]
    parts[["calibration", "search", "certification", "test"].index(role)] = _numbers(0, 0)
    with pytest.raises(DataError, match=f"there are no {role} examples"):
        screened(_roles(*parts))


def test_one_example_given_many_times_is_no_evidence():
    with pytest.raises(DataError, match="300 of 300 certification examples also stand"):
        shrink(trained(), [torch.randn(1, 6).repeat(1000, 1)], tol=0.1)


@pytest.mark.parametrize("kind", ["loader", "tensor", "pairs"])
def test_data_that_is_given_twice_is_refused(kind):
    x, y = examples()
    twice = torch.cat([x, x])
    data = {
        "loader": DataLoader(TensorDataset(twice, torch.cat([y, y])), batch_size=50),
        "tensor": twice,
        "pairs": [(x, y), (x, y)],
    }[kind]
    with pytest.raises(DataError, match="remove copies from the data"):
        shrink(trained(), data, tol=0.1)


def test_a_few_copies_are_left_out_and_said_to_be():
    x, _ = examples()
    clean = shrink(trained(), [x], tol=0.1)
    assert clean.copies == Copies(0, 0, 0, 0)
    assert clean.agreement.n == 360
    x[-8:] = x[:8]
    result = shrink(trained(), [x], tol=0.1)
    roles, copies = screened(roles_of([x]))
    assert result.copies == copies
    assert 0 < copies.left_out < 9
    assert result.agreement.n == 360 - copies.left_out == len(roles.certification)
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert record["copies"] == dataclasses.asdict(copies)


def _digits():
    splits = load_data("digits")
    wide = build("mlp", in_features=64, classes=10, width=0.5, depth=2)
    return train(wide, splits, TrainConfig(epochs=4, lr=0.1, device="cpu")).model, splits


@pytest.fixture(scope="module")
def digits():
    return _digits()


def _with_rows(splits, role, rows):
    """Splits in which a role holds other examples of the data set."""
    part = getattr(splits, role)
    changed = copy.copy(splits)
    labels = torch.zeros(len(rows), dtype=torch.int64)
    object.__setattr__(changed, role, Split(role, part.examples, rows, labels, part.mean, part.std))
    return changed


@pytest.mark.parametrize("other", ["calibration", "search"])
def test_named_splits_that_are_the_same_are_refused(digits, other):
    wide, splits = digits
    misused = _with_rows(splits, "certification", getattr(splits, other).rows)
    n = len(getattr(splits, other))
    with pytest.raises(DataError, match=f"{n} of {n} certification examples also stand"):
        shrink(wide, misused, tol=0.15)


def test_named_splits_that_overlap_a_little_shrink_by_that(digits):
    wide, splits = digits
    rows = splits.certification.rows.clone()
    rows[[3, 77]] = splits.search.rows[[0, 1]]
    result = shrink(wide, _with_rows(splits, "certification", rows), tol=0.15)
    assert result.copies == Copies(shared=2, repeated=0, search=0, test=0)
    assert result.agreement.n == 298
    assert result.certified
    assert result.agreement.changed <= most_changes(298, 0.15)


def test_calibration_data_searched_on_is_a_warning_only(digits):
    wide, splits = digits
    same = _with_rows(splits, "search", splits.calibration.rows[:200])
    with pytest.warns(ResultWarning, match="200 of 200 search examples also stand"):
        result = shrink(wide, same, tol=0.15)
    assert result.copies.search == 200
    assert result.certified
    assert any("200 of 200" in line for line in result.warnings)


def test_copies_within_the_certification_split_count_once(digits):
    wide, splits = digits
    rows = splits.certification.rows
    with pytest.warns(ResultWarning, match="300 of 600 certification examples are copies"):
        twice = shrink(wide, _with_rows(splits, "certification", torch.cat([rows, rows])), tol=0.15)
    once = shrink(wide, splits, tol=0.15)
    # Saying everything twice proves no more.
    assert twice.copies.repeated == 300
    assert twice.agreement == dataclasses.replace(once.agreement, accuracy=twice.agreement.accuracy)
    assert weights_of(twice.model) == weights_of(once.model)


def test_real_data_holds_no_copies(digits):
    assert screened(roles_of(digits[1]))[1] == Copies(0, 0, 0, 0)


def test_too_few_examples_after_copies_are_gone_are_too_few():
    x, _ = examples(200)
    shrink_at = {"tol": 0.05, "method": "prune"}
    with contextlib.suppress(ToleranceError):  # 60 are enough to try
        shrink(trained(), [x], **shrink_at)
    pieces = roles_of([x])
    assert len(pieces.certification) == 60
    # Two of the certification examples now stand in the calibration data.
    rows = [int((x == v).all(1).nonzero()[0]) for v in pieces.certification.inputs[:2]]
    x[rows] = pieces.calibration.inputs[:2]
    with pytest.raises(ToleranceError, match=r"58 certification examples cannot prove .* 59 are"):
        shrink(trained(), [x], **shrink_at)


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (59, "only if none of them changes"),
        (93, "only if at most 1 of them changes"),
        (181, "only if at most 4 of them change;"),
    ],
)
def test_a_certificate_that_hangs_on_single_examples_is_warned_of(n, words):
    roles = _roles(_numbers(0, 10), _numbers(10, 20), _numbers(20, 20 + n))
    (line,) = weaknesses(roles, Copies(0, 0, 0, 0), 0.05, 0.95)
    assert f"{n} certification examples prove a tolerance of 0.05 {words}" in line
    assert list(weaknesses(roles, Copies(0, 0, 0, 0), 0.3, 0.95)) == []
    assert list(weaknesses(roles, Copies(0, 0, 0, 0), None, 0.95)) == []


def test_warnings_point_at_the_caller_and_stand_in_the_result():
    x, _ = examples(400)
    lines = []
    with pytest.warns(ResultWarning, match="only if at most 1") as caught:
        result = shrink(trained(), [x], tol=0.05, progress=lambda event: lines.append(str(event)))
    assert [w.filename for w in caught] == [__file__]
    assert [str(w.message) for w in caught] == list(result.warnings)
    assert [f"warning: {line}" for line in result.warnings] == lines[:1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shrink(trained(), [x], tol=0.2).warnings == ()


def test_the_command_refuses_and_warns_in_words(digits, tmp_path):
    wide, _ = digits
    x = torch.randn(700, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save(torch.cat([x, x]), tmp_path / "twice.pt")
    torch.save(x[:400], tmp_path / "few.pt")
    save(wide, tmp_path / "wide.pt")

    def run(data, *more):
        arguments = ["shrink", tmp_path / "wide.pt", "--data", f"file:{tmp_path / data}", *more]
        return CliRunner().invoke(main, [str(a) for a in arguments])

    refused = run("twice.pt", "--tol", 0.3)
    assert refused.exit_code == 1
    assert "420 certification examples also stand in the calibration or search" in refused.stderr
    assert "Traceback" not in refused.output
    assert [p.name for p in tmp_path.glob("*.thin.pt")] == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning of Python would be a second, uglier line
        warned = run("few.pt", "--tol", 0.06)
    said = " ".join(warned.stdout.split())  # once, with the result
    assert said.count("120 certification examples prove a tolerance of 0.06") == 1
    assert "prove a tolerance" not in warned.stderr
