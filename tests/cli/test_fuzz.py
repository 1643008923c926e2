"""The command line with random mistakes: no traceback, no input changed, nothing left over.

Each run is a child forked from this process, which has imported all that commands need: so a run
costs what it computes. `FCOMPRESS_FUZZ_RUNS` says how many, `FCOMPRESS_FUZZ_SEED` which.
"""

import hashlib
import importlib.util
import itertools
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from cases.small_recipe import RECIPE

from fcompress.checkpoints.checkpoint import save
from fcompress.cli import main
from fcompress.cli.boundary import Real, Several, Whole
from fcompress.cli.boundary.files import DataSpec, InputFile, OutputFile, OutputFolder, PythonCode
from fcompress.data import load_data
from fcompress.models import build

RUNS = int(os.environ.get("FCOMPRESS_FUZZ_RUNS", 3000))
SEED = int(os.environ.get("FCOMPRESS_FUZZ_SEED", 0))
# Processor seconds, since a busy machine is no fault; and how long to wait for what does nothing.
SECONDS, PATIENCE, BYTES = 60, 600, 2 * 2**30
# What a child may take beyond what this process has: more than is allowed, so that it is judged
# and not saved by the limit, and less than what harms a machine.
LIMIT = 6 * 2**30
FIRST_WORDS = [  # what makes most commands begin to work
    ["train", "mlp", "--data", "digits", "--out", "OUT", "--epochs", "1", "--width", "0.1"],
    ["train", "mlp", "--data", "file:d.npz", "--out", "OUT", "--epochs", "1", "--width", "0.1"],
    ["analyze", "m.pt", "--examples", "50"],
    ["gain", "m.pt", "n.pt", "--examples", "50"],
    ["shrink", "m.pt", "--method", "prune", "--tol", "0.5"],
    ["shrink", "m.pt", "--method", "prune", "--tol", "0.5", "--balance"],
    [
        "shrink",
        "m.pt",
        "--method",
        "prune",
        "--tol",
        "0.5",
        "--data",
        "file:d.npz",
        "--groups",
        "g",
    ],
    ["shrink", "m.pt", "--method", "prune", "--tol", "0.5", "--answer", "ANSWER"],
    ["verify", "m.pt", "n.pt"],
    ["verify", "m.pt", "m.safetensors"],
    ["verify", "m.pt", "m.onnx"],
    ["verify", "m.pt", "m.pt2", "--trust-pickle"],
    ["verify", "m.pt", "n.pt", "--answer", "ANSWER"],
    ["verify", "m.pt", "n.pt", "--data", "file:d.npz", "--groups", "GROUPS"],
    ["verify", "m.pt", "HISTORY"],
    ["export", "m.pt", "--to", "OUT.safetensors"],
    ["export", "m.pt", "--to", "OUT.onnx"],
    ["export", "HISTORY", "--to", "OUT.safetensors"],
    ["show", "HISTORY"],
    ["analyze", "HISTORY", "--examples", "50"],
    ["show", "m.pt"],
    ["models"],
    ["data"],
    ["data", "digits"],
    ["recipe", "list"],
    ["recipe", "run", "r.toml", "--scale", "smoke", "--out", "o", "--workers", "1"],
    ["recipe", "report", "o"],
]
# What a file may say was done to its network: damaged, strange, huge.
_SHRUNK = {"action": "shrink", "method": "hybrid", "certified": True, "tolerance": 0.05}
HISTORIES = [
    [3, None, "x", [], {}],
    [{"action": "shrink"}],
    [{"action": "train", "epochs": []}],
    [{"action": "train", "epochs": [{"epoch": "x"}]}],
    [{**_SHRUNK, "tolerance": "5%"}],
    [{**_SHRUNK, "tolerance": float("nan")}],
    [{**_SHRUNK, "agreement": {"n": -3, "same": 10**30}}],
    [{**_SHRUNK, "agreement": {"answer": {"kind": "regression", "within": ["x"]}}}],
    [{**_SHRUNK, "agreement": {"answer": {"kind": "tokens", "pad": 3}}}],
    [{**_SHRUNK, "output": "\x1b[2J"}],
    [{**_SHRUNK, "certificate": {"compressed": "x" * 500}, "void": "\n" * 50}],
    [{"action": "x" * 5000, "\udcff".encode("utf-8", "replace").decode(): [[[[]]]]}],
]
# Long runs that a number asks for are no fault.
SMALL = {
    "epochs",
    "steps",
    "width",
    "hidden",
    "depth",
    "workers",
    "distill_seconds",
    "distill_effort",
    "calibration",
}
NUMBERS = ["0", "1", "2", "3", "0.5", "-1", "nan", "inf", "1e400", "1e-300", "1_0", "٣", "9" * 30,
           "1" * 5000, "", str(2**63 - 1), str(2**63), "5e-324", "0.999999999"]  # fmt: skip
SPECS = ["digits", "gaussian:4,n=50", "file:d.npz", "file:bad.npz", "folder:images", "nosuch",
         "file:to-d.npz", "folder:~nosuchuser", "file:/dev/zero", "gaussian:10,seed=1e30",
         "digits,train=0", "file:loop.npz", "folder:.", "gaussian:", "file:m.pt"]  # fmt: skip
CODE = ["net.py:net", "net.py:none", "no.py:net", "torchvision:resnet18", "torchvision:nosuch",
        "timm:nosuch", "pickle:m.pt", "json:loads", "x", "net.py:broken"]  # fmt: skip
ANSWERS = ["classes", "top-3", "top-99", "sigmoid", "positions", "tokens", "regression", "nearest",
           "regression-norm", "embedding", "pairs", "detections", "same", "top-0", ""]  # fmt: skip
GROUPS = ["g", "groups.csv", "groups.csv:b", "groups.csv:none", "few.txt", "to-d.npz", "images",
          "none", "m.pt", "y", "groups.npy"]  # fmt: skip
TEXTS = ["", "x", "{", '{"a": 1}', "a=1", "train.epochs=0", "seeds=" + "9" * 30, "depth=2", "犬",
         "\udcff", "a" * 3000, "train.lr=nan", "draw=[1]", "10%", "top-1", "classes"]  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Files of all kinds, whole, damaged, and by other names."""
    at = tmp_path_factory.mktemp("inputs")
    digits = load_data("digits").info
    torch.manual_seed(0)
    for name, width in (("m.pt", 0.1), ("n.pt", 0.2)):
        save(build("mlp", in_features=64, classes=10, width=width), at / name, data=digits)
    whole = (at / "m.pt").read_bytes()
    (at / "half.pt").write_bytes(whole[: len(whole) // 2])
    (at / "turned.pt").write_bytes(whole.replace(b"fcompress", b"fcompresS", 1))
    (at / "empty.pt").write_bytes(b"")
    torch.save(torch.nn.Linear(3, 2).state_dict(), at / "weights.pt")
    torch.save(torch.nn.Linear(3, 2), at / "pickle.pt")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 64)).astype("float32")
    np.savez(at / "d.npz", x=x, y=x[:, :3].argmax(1), g=np.arange(300) // 3)
    (at / "bad.npz").write_bytes((at / "d.npz").read_bytes()[:500])
    (at / "net.py").write_text(
        "import torch\ndef net(**k): return torch.nn.Linear(64, 10)\ndef none(): return None\n"
        "def broken(**k): raise RuntimeError('mine')\n"
    )
    (at / "r.toml").write_text(RECIPE)
    (at / "mine.json").write_text('{"precious": 1}')
    for ending in ("safetensors", "onnx", "pt2"):
        if ending != "onnx" or importlib.util.find_spec("onnxscript"):
            code, _, _ = run(["export", "m.pt", "--to", f"m.{ending}"], at, at.parent / "log")
            assert code == 0
    for number, history in enumerate(HISTORIES):
        content = torch.load(at / "m.pt", weights_only=True)
        torch.save({**content, "history": history}, at / f"history-{number}.pt")
    codes = rng.integers(0, 90, 300)
    np.save(at / "groups.npy", codes)
    (at / "groups.csv").write_text("a,b\n" + "".join(f"{i},{c}\n" for i, c in enumerate(codes)))
    (at / "few.txt").write_text("a\nb\n" * 20)
    (at / "images" / "a").mkdir(parents=True)
    (at / "images" / "a" / "1.png").write_bytes(b"no picture")
    (at / "to-m").symlink_to("m.pt")
    (at / "to-d.npz").symlink_to("d.npz")
    os.link(at / "m.pt", at / "hard-m")
    for name in ("loop", "loop.npz"):
        (at / name).symlink_to(name)
    return at


def state(folder):
    return {
        str(path.relative_to(folder)): path.readlink()
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def value_of(parameter, rng, files):
    """Something for a parameter: right, wrong, or the name of what must not be touched."""
    kind = parameter.type
    if isinstance(kind, Whole | Real):
        small = NUMBERS[:8] if parameter.name in SMALL else NUMBERS
        return rng.choice(small)
    if isinstance(kind, Several):
        return rng.choice(["1", "0.5,0.5,0.5", "8", "1,8,8", "x", "nan", "9" * 20, "1,,2", "8x8"])
    if isinstance(kind, click.Choice):
        return rng.choice([*kind.choices, "no"])
    if isinstance(kind, DataSpec):
        return rng.choice(SPECS)
    if isinstance(kind, PythonCode):
        return rng.choice(CODE)
    if isinstance(kind, InputFile | OutputFile | OutputFolder | click.Path):
        new = ["new.json", "new.png", "new.pt", "new.onnx", "no/such/x", "-", "images", "/dev/null"]
        return rng.choice([*files, *new])
    return rng.choice(TEXTS)


def arguments_of(rng, files):
    words = [word.replace("OUT", "new") for word in rng.choice(FIRST_WORDS)]
    histories = [name for name in files if name.startswith("history")]
    for name, choices in (("ANSWER", ANSWERS), ("GROUPS", GROUPS), ("HISTORY", histories)):
        words = [rng.choice(choices) if word == name else word for word in words]
    command = main.get_command(click.Context(main), words[0])
    if isinstance(command, click.Group):
        command = command.commands[words[1]]
    options = [p for p in command.params if isinstance(p, click.Option) and p.name != "cluster"]
    for parameter in rng.sample(options, min(len(options), rng.choice([0, 1, 1, 2, 3]))):
        words.append(rng.choice(parameter.opts))
        if not parameter.is_flag:
            words.append(value_of(parameter, rng, files))
    if rng.random() < 0.3:
        place = rng.randrange(len(words))
        words[place] = rng.choice([*files, *SPECS, *TEXTS])
    return words


def child(words, log):
    """One run, in a process of its own; never returns."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="strict", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    code = 99
    torch.set_num_threads(1)  # threads of the parent's are not there
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + LIMIT, taken + LIMIT))
    try:
        main(words, prog_name="fcompress")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(words, folder, log):
    """Exit code, peak of memory in bytes and processor seconds; no code of what does not end."""
    process = os.fork()
    if process == 0:
        os.chdir(folder)
        os.environ["TMPDIR"] = str(log.parent)
        child(words, log)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        done, status, usage = os.wait4(process, os.WNOHANG)
        if done:
            seconds = usage.ru_utime + usage.ru_stime
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, seconds
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None, 0, PATIENCE


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs fork and /proc")
def test_random_mistakes(inputs, tmp_path):
    files = [path.name for path in inputs.iterdir() if path.name != "images"]
    before = state(inputs)
    log = tmp_path / "log"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < BYTES  # the control
    worked, wrong = 0, []
    listed = os.environ.get("FCOMPRESS_FUZZ_LOG")  # where each run is listed as it ends
    for number in range(RUNS):
        rng = random.Random(SEED * 10**6 + number)
        words = arguments_of(rng, files)
        folder = tmp_path / "work"
        shutil.copytree(inputs, folder, symlinks=True)
        (folder / "hard-m").unlink()
        os.link(folder / "m.pt", folder / "hard-m")
        code, memory, seconds = run(words, folder, log)
        text = log.read_text(encoding="utf-8", errors="replace")
        after = state(folder)
        # --force replaces what is no input, and an empty file is anybody's.
        named = {w for last, w in itertools.pairwise(words) if not last.startswith("--")}
        kept = {name for name in before if "--force" not in words or name in named} - {"empty.pt"}
        faults = []
        if code not in (0, 1, 2):
            faults.append(f"exit code {code}")
        if "Traceback" in text and "--debug" not in words:
            faults.append("traceback")
        if "a bug of fcompress" in text:
            faults.append("bug")
        changed = [name for name in kept if after.get(name) != before[name]]
        if changed:
            faults.append(f"changed {changed}")
        endings = (".tmp", ".lock", ".resume") if code else (".tmp", ".lock")
        left = [name for name in after if name.endswith(endings)]
        if left:
            faults.append(f"left {left}")
        if seconds > SECONDS:
            faults.append(f"{seconds:.0f} s")
        if memory > BYTES:
            faults.append(f"{memory / 2**30:.1f} GiB")
        if faults:
            wrong.append(f"{number}: {faults}: {words!r}: {text[-400:]}")
        worked += code == 0
        if listed:
            with Path(listed).open("a") as file:
                file.write(
                    f"{number} {code} {faults} {memory >> 20} MiB {words!r}\n{text[-300:]}\n"
                )
        shutil.rmtree(folder)
    assert not wrong, "\n".join([f"{len(wrong)} of {RUNS}", *wrong[:40]])
    assert worked > RUNS / 20  # they are not all stopped at the first word
