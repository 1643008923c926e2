"""Groups of examples: kept in one split, counted as one."""

import json

import numpy as np
import pytest
import torch
from cases.trained import examples, trained
from click.testing import CliRunner
from torch.utils.data import DataLoader, TensorDataset

import fcompress
from fcompress.certify.bounds import upper_bound
from fcompress.cli import main
from fcompress.data import load_data, reload_data
from fcompress.data.grouping import Grouping, cut_groups, cut_official, drawn, grouped, read_groups
from fcompress.data.roles import roles_of
from fcompress.data.splits import cut, own_sizes
from fcompress.errors import DataError, ToleranceError
from fcompress.report.text import verdict


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def _codes(groups=60, size=7, seed=0):
    sizes = np.random.default_rng(seed).integers(1, 2 * size, groups)
    return np.random.default_rng(seed + 1).permutation(np.repeat(np.arange(groups), sizes))


@pytest.mark.parametrize("roles", ["all", "compress"])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_group_lies_in_one_split_and_counts_once(roles, seed):
    codes = _codes()
    rows = cut_groups(grouped(codes, len(codes)), roles, seed)
    of = {name: set(codes[part.numpy()].tolist()) for name, part in rows.items()}
    assert sum(map(len, of.values())) == 60 == len(set().union(*of.values()))
    for name, part in rows.items():
        if name in ("train", "calibration"):
            assert len(part) == np.isin(codes, list(of[name])).sum()
        else:
            assert len(part) == len(of[name])
    again = cut_groups(grouped(codes, len(codes)), roles, seed)
    assert all(torch.equal(rows[name], again[name]) for name in rows)


def test_every_example_of_a_group_is_as_likely_to_be_drawn():
    grouping = grouped([0] * 4 + [1] * 2, 6)
    counts = torch.zeros(6)
    for seed in range(2000):
        rows = drawn(grouping, seed)
        assert grouping.codes[rows].tolist() == [0, 1]
        counts[rows] += 1
    assert (counts[:4] - 500).abs().max() < 80 and (counts[4:] - 1000).abs().max() < 90


KINDS = {
    "list": lambda codes: [f"patient {c}" for c in codes],
    "array": lambda codes: codes,
    "tensor": torch.tensor,
    "tuples": lambda codes: [("video", int(c)) for c in codes],
    "tensors in a list": lambda codes: list(torch.tensor(codes)),
    "names": lambda codes: codes.astype(str),
}


@pytest.mark.parametrize("kind", KINDS)
def test_groups_may_be_anything_that_is_equal_to_itself(kind):
    codes = _codes(20)
    found = grouped(KINDS[kind](codes), len(codes))
    assert found.count == 20
    for one, other in ((0, 5), (3, 40), (7, 8)):
        assert (found.codes[one] == found.codes[other]) == (codes[one] == codes[other])


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([1, 2, 1], "3 for 4 examples"),
        ([1, 1, 1, 1], "all 4 examples are of one group"),
        ([1, None, 2, 2], "example 1 has none"),
        ([1, 2, float("nan"), 2], "example 2 has none"),
        (["a", "b", "", "b"], "example 2 has none"),
        ([[1], [2], [1], [2]], "example 0 has a list"),
        ("abcd", "str; expected one group"),
        (7, "int; expected one group"),
        (np.zeros((4, 2)), r"shape \[4, 2\]"),
    ],
)
def test_what_are_no_groups_is_said(groups, words):
    with pytest.raises(DataError, match=words):
        grouped(groups, 4)


def test_too_few_groups_are_said_with_how_many_are_needed():
    with pytest.raises(DataError, match=r"4 groups are too few .* 59 groups .* 30%"):
        cut_groups(grouped([0, 1, 2, 3] * 50, 200), "compress", 0)
    x, _ = examples()
    groups = np.arange(len(x)) // 12  # 100 groups, 30 of them to certify
    with pytest.raises(ToleranceError, match=r"30 certification groups cannot prove .* 59 are"):
        fcompress.shrink(trained(), x, tol=0.05, groups=groups)


@pytest.mark.parametrize("shuffle", [False, True])
def test_groups_of_a_loader_are_those_of_its_dataset(shuffle):
    x = torch.arange(600.0)[:, None].repeat(1, 3)
    loader = DataLoader(TensorDataset(x), batch_size=64, shuffle=shuffle, drop_last=True)
    roles = roles_of(loader, groups=np.arange(600) // 5)
    of = [{int(v) // 5 for part in r for v in part[0][:, 0]} for r in
          (roles.calibration, roles.search, roles.certification)]  # fmt: skip
    assert not of[0] & of[1] and not of[0] & of[2] and not of[1] & of[2]
    assert len(roles.certification) == len(of[2])
    assert roles.info["groups"]["groups"] == sum(map(len, of))
    # The control: without groups they are in several splits.
    plain = roles_of(loader)
    of = [{int(v) // 5 for b in r for v in b[0][:, 0]} for r in (plain.search, plain.certification)]
    assert of[0] & of[1]


def test_shrink_and_verify_count_groups():
    x, _ = examples(2400)
    groups = np.arange(2400) // 4
    result = fcompress.shrink(trained(), x, tol=0.1, groups=groups)
    assert result.certified and result.agreement.n == result.independent == 180
    assert result.to_dict()["independent"] == 180
    assert result.data["groups"]["groups"] == 600
    assert "180 certification groups, by one drawn" in "\n".join(verdict(result))
    found = fcompress.verify(trained(), result.model, x, groups=groups)
    assert found.n == 600
    with pytest.raises(DataError, match="groups for 2,396 examples, but the data holds more"):
        fcompress.verify(trained(), result.model, x, groups=groups[:-4])
    with pytest.raises(DataError, match="groups for 2,400 examples, but the data holds fewer"):
        fcompress.verify(trained(), result.model, x[:-1], groups=groups)
    with pytest.raises(DataError, match="give them to load_data"):
        fcompress.shrink(trained(), load_data("digits"), groups=groups)


def _files(folder):
    x = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    names = np.array([f"p{i // 4}" for i in range(400)])
    np.savez(folder / "d.npz", x=x, y=np.arange(400) % 4, patient=names)
    (folder / "g.txt").write_text("\n".join(names) + "\n")
    (folder / "g.csv").write_text("patient\n" + "\n".join(names) + "\n")
    (folder / "wide.csv").write_text(
        "n,patient\n" + "".join(f"{i},{v}\n" for i, v in enumerate(names))
    )
    np.save(folder / "g.npy", np.arange(400) // 4)
    return f"file:{folder / 'd.npz'}"


@pytest.mark.parametrize("source", ["patient", "g.txt", "g.csv", "wide.csv:patient", "g.npy"])
def test_groups_come_from_a_file_or_from_the_data(tmp_path, source):
    spec = _files(tmp_path)
    named = source if source == "patient" else str(tmp_path / source)
    splits = load_data(spec, groups=named)
    assert splits.info["groups"]["groups"] == 100
    assert len(splits.certification) == 15 and len(splits.train) == 160
    again = reload_data(splits.info)
    assert torch.equal(again.certification.rows, splits.certification.rows)
    compressed = load_data(spec, groups=named, roles="compress")
    assert torch.equal(load_data(spec, like=compressed.info).search.rows, compressed.search.rows)


def test_named_data_takes_one_group_for_each_example(tmp_path):
    groups = tmp_path / "writers.txt"
    groups.write_text("\n".join(f"writer {i // 3}" for i in range(1797)))
    splits = load_data("digits", groups=str(groups))
    of = {name: {int(row) // 3 for row in s.rows} for name, s in splits.present().items()}
    assert sum(map(len, of.values())) == 599 == len(set().union(*of.values()))
    assert len(splits.train) == 3 * len(of["train"]) == 3 * 266
    assert len(splits.certification) == len(of["certification"]) == 100
    assert torch.equal(reload_data(splits.info).search.rows, splits.search.rows)
    with pytest.raises(DataError, match="for 1,797 examples; expected one for each"):
        load_data("digits", groups=[1, 2, 3])
    with pytest.raises(DataError, match="cut without groups"):
        load_data("digits", like=load_data("digits").info, groups=str(groups))


@pytest.mark.parametrize("of_test", [False, True])
def test_groups_respect_the_official_test_set(of_test):
    """Of 4,000 examples the last 1,000 are the official test set; no group is of both."""
    grouping = grouped([row // 2 for row in range(4000)], 4000)
    sizes = {"train": 2000, "calibration": 500, "search": 250, "certification": 250}
    rows = cut_official(grouping, 3000, sizes, 0, of_test=of_test)
    of = {name: set((part // 2).tolist()) for name, part in rows.items()}
    of_the_test_set = {"test", "search", "certification"} if of_test else {"test"}
    for name, part in rows.items():
        assert bool((part >= 3000).all()) == (name in of_the_test_set)
        assert bool((part < 3000).all()) == (name not in of_the_test_set)
        assert len(part) == len(of[name]) * (2 if name in ("train", "calibration") else 1)
    names = list(of)
    assert not any(of[a] & of[b] for i, a in enumerate(names) for b in names[:i])
    crossing = grouped([*range(3999), 0], 4000)
    with pytest.raises(DataError, match="1 of them have examples in both"):
        cut_official(crossing, 3000, sizes, 0, of_test=of_test)


def test_a_network_is_trained_on_whole_groups(tmp_path):
    """What it was trained on, and what it is certified on, are of other groups."""
    spec, out = _files(tmp_path), tmp_path / "net.pt"
    ran = run("train", "mlp", "--data", spec, "--groups", "patient", "--epochs", 1, "--out", out)
    assert ran.exit_code == 0, ran.output
    info = fcompress.load(out).origin["data"]
    assert info["groups"]["groups"] == 100
    splits = reload_data(info)
    of = {name: {int(row) // 4 for row in s.rows} for name, s in splits.present().items()}
    assert len(splits.train) == 160 and not of["train"] & of["certification"]


def test_mistakes_in_groups_are_said(tmp_path):
    spec = _files(tmp_path)
    (tmp_path / "broken.txt").write_bytes(b"\xff\xfe\x00")
    for source, words in (
        ("nobody", "neither a file nor an array .* which has patient, x, y"),
        (str(tmp_path / "wide.csv"), "2 columns; say which"),
        (str(tmp_path / "wide.csv") + ":age", "no column 'age'; it has n, patient"),
        (str(tmp_path / "broken.txt"), "cannot be read"),
        ("x", r"shape \[400, 6\]"),
    ):
        with pytest.raises(DataError, match=words) as error:
            load_data(spec, groups=source)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="there is no such file"):
        read_groups(str(tmp_path / "none.txt"), 400)
    given = load_data(spec, groups=list(range(200)) * 2).info
    with pytest.raises(DataError, match="given in Python; give them again"):
        reload_data(given)
    with pytest.raises(DataError, match="other groups than those"):
        reload_data(given, groups=list(range(100)) * 4)
    assert reload_data(given, groups=[i % 200 for i in range(400)]).info == given
    plain = load_data(spec).info
    with pytest.raises(DataError, match="was cut without groups"):
        load_data(spec, like=plain, groups="patient")


def test_the_command_counts_groups(tmp_path):
    from torch import nn

    _files(tmp_path)
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make():\n"
        "    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))\n"
    )
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
    torch.save(network.state_dict(), tmp_path / "w.pth")
    arch = ("--arch", f"{tmp_path / 'net.py'}:make")
    data = ("--data", f"file:{tmp_path / 'd.npz'}", "--groups", "patient")
    made = ("--out", tmp_path / "o.pt", "--tol", 0.5, "--json", "-")
    record = json.loads(run("shrink", tmp_path / "w.pth", *arch, *data, *made).stdout)
    assert record["independent"] == 30 and record["data"]["groups"]["from"] == "patient"
    checked = run("verify", tmp_path / "w.pth", tmp_path / "o.pt", *arch, "--json", "-")
    assert json.loads(checked.stdout)["n"] == 30
    few = run("shrink", tmp_path / "w.pth", *arch, *data, "--out", tmp_path / "p.pt", "--tol", 0.05)
    assert few.exit_code == 1 and "30 certification groups cannot prove" in few.output


def violated(runs, groups, size, share, seed=0):
    """How often a bound is below the truth: grouped, and without groups.

    All examples of a group change or none does, so that a group is no more than one example.
    """
    random = np.random.default_rng(seed)
    codes = np.repeat(np.arange(groups), size)
    grouping = Grouping(torch.tensor(codes), groups)
    wrong = [0, 0]
    for run_seed in range(runs):
        # Of the population of groups, this share changes.
        changed = (random.random(groups) < share)[codes]
        parts = (
            cut_groups(grouping, "compress", run_seed)["certification"],
            cut(len(codes), own_sizes(len(codes), "compress"), run_seed)["certification"],
        )
        for i, rows in enumerate(parts):
            bound = upper_bound(int(changed[rows.numpy()].sum()), len(rows), 0.95)
            wrong[i] += bound < share
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "size", "share"), [(300, 10, 0.1), (200, 30, 0.2), (400, 8, 0.05)]
)
def test_grouped_bounds_hold_in_simulation_and_others_do_not(groups, size, share):
    runs = 1000
    with_groups, without = violated(runs, groups, size, share)
    allowed = runs * 0.05 + 3.2 * (runs * 0.05 * 0.95) ** 0.5
    assert with_groups <= allowed
    assert without > 2 * allowed


def test_grouped_bounds_hold_in_sixty_runs():
    with_groups, without = violated(60, 200, 30, 0.2)
    assert with_groups <= 9 < without
