"""Files and networks side by side: time, memory, bytes, and what they are measured on."""

import json

import pytest
import torch
from cases.trained import examples, trained
from click.testing import CliRunner
from torch import nn

import fcompress
from fcompress.cascades.network import Cascade
from fcompress.cli import main
from fcompress.cli.shipped import bench as command
from fcompress.errors import CheckpointError, DataError, FcompressError
from fcompress.forward import running
from fcompress.forward.answers.scoring import Scoring
from fcompress.latency import benchmarking
from fcompress.report.benchmarks import bench_lines, bench_tables

QUICK = {"seconds": 0.02, "memory": False}


CLOCK = [0.0]


@pytest.fixture
def clock(monkeypatch):
    """Time passes only where a network says so: a busy machine changes nothing."""
    monkeypatch.setattr(running, "now", lambda device: CLOCK[0])


class Taking(nn.Module):
    """Takes so many milliseconds."""

    def __init__(self, ms):
        super().__init__()
        self.ms = ms

    def forward(self, x):
        CLOCK[0] += self.ms / 1000
        return x


def cascade(threshold=0.7):
    return Cascade(trained(seed=2, width=8), trained(), threshold, Scoring(labels="classes")).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network of the registry in every kind of file, and a pair."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    network = fcompress.build("mlp", in_features=6, classes=4)
    x = examples(100)[0]
    fcompress.save(network, folder / "net.pt")
    for ending in ("onnx", "pt2"):
        fcompress.export(network, folder / f"net.{ending}", x)
    fcompress.export(cascade(), folder / "pair.json", x)
    return folder


def test_ratios_and_throughput_are_those_of_the_times(clock):
    networks = [Taking(4), Taking(2)]
    found = fcompress.bench(networks, torch.zeros(30, 2), batch=[1, 10], seconds=0.05)
    assert [(r.batch, r.runs_in, r.threads) for r in found.rows] == [
        *[(1, "torch", torch.get_num_threads())] * 2,
        *[(10, "torch", torch.get_num_threads())] * 2,
    ]
    for slow, fast in (found.rows[:2], found.rows[2:]):
        assert slow.ratio == 1 and fast.ratio == pytest.approx(0.5)
        assert fast.lower_ms <= fast.median_ms <= fast.upper_ms
        assert slow.average_ms == pytest.approx(4)
        assert fast.examples_per_second == pytest.approx(1e3 * fast.batch / fast.average_ms)
    assert found.inputs.startswith("30 examples")
    assert json.loads(json.dumps(found.to_dict()))["rows"][1]["memory"] is None


def test_every_kind_of_file(files):
    names = ["net.pt", "net.onnx", "net.pt2", "pair.json"]
    paths = [files / name for name in names]
    before = torch.get_num_threads()
    found = fcompress.bench(
        paths, examples(130)[0], batch=64, threads=[1, 2], trust_pickle=True, **QUICK
    )
    assert torch.get_num_threads() == before
    assert [r.threads for r in found.rows] == [1] * 4 + [2] * 4
    runs = [r.runs_in for r in found.rows[:4]]
    assert runs == ["torch", "onnxruntime", "torch.export", "onnxruntime"]
    assert [r.file for r in found.rows[:4]] == [str(path) for path in paths]
    whole = sum(path.stat().st_size for path in files.glob("pair*"))
    assert [r.bytes for r in found.rows[:4]] == [*(p.stat().st_size for p in paths[:3]), whole]
    late = cascade().deferred(examples(130)[0][:128]).double().mean()
    assert found.rows[3].deferred == pytest.approx(float(late)) and 0.05 < late < 0.95
    assert [r.deferred for r in found.rows[:3]] == [None] * 3


def test_a_cascade_takes_what_it_defers(clock):
    class Large(Taking):
        def forward(self, x):
            return self.network(super().forward(x))

    large = Large(20)
    large.network = trained()
    pair = cascade()
    pair.original = large
    x = examples(40)[0]
    share = float(pair.deferred(x).double().mean())
    found = fcompress.bench([large, pair], x, batch=1, seconds=8)
    assert found.rows[1].deferred == pytest.approx(share)
    # The average shows it, where the median would show the compressed network alone.
    assert found.rows[1].ratio == pytest.approx(share) and found.rows[1].median_ms == 0
    assert 0.05 < share < 0.5
    with pytest.raises(DataError, match="a cascade takes as long as it defers examples"):
        fcompress.bench(pair)


def test_without_data_random_inputs_of_the_shape_that_is_known(files):
    found = fcompress.bench([files / "net.onnx"], batch=2, **QUICK)
    assert found.inputs.startswith("random inputs of shape [6] (seed 0)")
    program = fcompress.bench([files / "net.pt2"], batch=2, trust_pickle=True, **QUICK)
    assert program.inputs.startswith("random inputs of shape [6]")
    with pytest.raises(DataError, match="no shape of its inputs is known; name data"):
        fcompress.bench(trained(), **QUICK)


@pytest.mark.parametrize(
    ("files_", "more", "error", "words"),
    [
        ([], {}, FcompressError, "nothing to measure"),
        (["gone.pt"], {}, CheckpointError, "no such file"),
        ([nn.Linear(3, 2)], {}, FcompressError, "does not run on an example of shape"),
        ([nn.Linear(6, 2)], {"batch": 0}, ValueError, "batch=0: expected a whole number"),
        ([nn.Linear(6, 2)], {"batch": []}, ValueError, "expected at least one number"),
        ([nn.Linear(6, 2)], {"threads": -1}, ValueError, "threads=-1"),
        ([nn.Linear(6, 2)], {"seconds": 0}, ValueError, "seconds=0"),
        ([3], {}, TypeError, "a int is no network"),
    ],
)
def test_bad_input_is_refused(files_, more, error, words):
    with pytest.raises(error, match=words):
        fcompress.bench(files_, examples(20)[0], **more)


def run(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_the_command(files, tmp_path):
    quick = "--seconds", 0.02, "--no-memory", "--batch", "1,3"
    out = tmp_path / "bench.json"
    done = run(files / "net.pt", files / "net.onnx", *quick, "--input-shape", 6, "--json", out)
    assert done.exit_code == 2 and "--input-shape has no effect here" in done.output
    done = run(files / "net.onnx", files / "net.pt", *quick, "--json", out)
    assert done.exit_code == 0, done.output
    assert "one example, one thread" in done.stdout or "threads" in done.stdout
    assert "batches of 3" in done.stdout and "onnxruntime" in done.stdout
    assert "random inputs of shape [6] (seed 0)" in done.stdout
    record = json.loads(out.read_text())
    assert [row["batch"] for row in record["rows"]] == [1, 1, 3, 3]
    again = run(files / "net.onnx", *quick, "--json", out)
    assert again.exit_code == 0, again.output  # replaces its own file
    refused = run(files / "net.pt", "--answer", "classes")
    assert refused.exit_code == 2 and "networks are timed" in refused.output
    assert run().exit_code == 2 and run(files / "net.pt", "--batch", "0").exit_code == 2
    program = run(files / "net.pt2", *quick)
    assert program.exit_code == 1 and "--trust-pickle" in program.output
    pair = run(files / "pair.json", *quick)
    assert pair.exit_code == 1 and "name data (--data)" in pair.output
    assert pair.output.count("\n") == 1


def test_what_help_says_without_torch_is_what_holds():
    assert (command.BATCH, command.SECONDS) == (benchmarking.BATCH, benchmarking.SECONDS)


def row(**changes):
    found = {"file": "a.pt", "runs_in": "torch", "bytes": 2000, "batch": 1, "threads": 1}
    found |= {"average_ms": 1.5, "lower_ms": 1.0, "median_ms": 1.25, "upper_ms": 1.4, "runs": 9}
    found |= {"examples_per_second": 666.7, "ratio": 1.0, "memory": 3_200_000, "deferred": None}
    return benchmarking.Row(**{**found, **changes})


def test_tables_and_doubts():
    rows = (row(), row(file="c.pt", deferred=0.25, ratio=0.5, memory=None, upper_ms=9.0))
    found = benchmarking.BenchResult(rows, "9 examples", "cpu", 2.0, MACHINE)
    ((title, headings, cells),) = bench_tables(found)
    assert title == "one example, one thread" and headings[-1] == "deferred"
    assert cells[0] == (
        *("a.pt", "torch", "1.50", "1.00 1.25 1.40", "100.0%", "667", "3.2", "2,000", "-"),
    )
    assert cells[1][-3:] == ("-", "2,000", "25.0%")
    assert not any("far apart" in line for line in bench_lines(found))
    noisy = benchmarking.BenchResult(
        (row(upper_ms=9.0),), "x", "cpu", 2.0, {"torch": "2"} | MACHINE
    )
    assert any("far apart" in line for line in bench_lines(noisy))


MACHINE = {"torch": "2", "machine": "x86_64", "cores": "2"}


@pytest.mark.slow
def test_memory_is_that_of_the_weights_and_of_the_batch(tmp_path):
    network = fcompress.build("mlp", in_features=100, classes=10, hidden=2000, depth=2)
    weights = sum(p.nbytes for p in network.parameters())
    fcompress.save(network, tmp_path / "net.pt")
    x = torch.randn(4096, 100)
    fcompress.export(network, tmp_path / "net.onnx", x)
    paths = [tmp_path / "net.pt", tmp_path / "net.onnx"]
    found = fcompress.bench(paths, x, batch=[1, 4096], seconds=0.1)
    for held in found.rows[:2]:
        assert weights <= held.memory < 1.2 * weights + 2e6
    for held in found.rows[2:]:
        assert held.memory > weights + 4 * 4096 * 2000  # at least one layer's outputs


@pytest.mark.slow
def test_torch_compile(files):
    found = fcompress.bench(
        [files / "net.pt", files / "net.onnx"],
        examples(130)[0],
        batch=[1, 64],
        compiled=True,
        **QUICK,
    )
    assert [r.runs_in for r in found.rows[:3]] == ["torch", "torch.compile", "onnxruntime"]
    pair = fcompress.bench(cascade(), examples(130)[0], batch=16, compiled=True, **QUICK)
    assert pair.rows[0].deferred == pair.rows[1].deferred
