"""What can go wrong with a recipe: one line that says it, and nothing lost of what was done."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cases.commands import command_line
from cases.recipe_runs import recipe, run

from fcompress.experiments import recipe as recipes
from fcompress.experiments.trials import results
from fcompress.formats import atomic

OWN = """
draw = ["accuracy"]
family = "mlp"
data = "digits"
widths = [0.1, 0.2]
seeds = 2
random_labels = true
train = { epochs = 1 }
measure.analyze = { examples = 20, by_layer = false, orders = 1 }
[smoke]
"""


def fails(*arguments, code=1):
    """Nothing on stdout, one line of error on stderr, after the lines of progress."""
    result = run(*arguments, code=code)
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line[:1].isdigit()]
    assert lines[-1].lower().startswith("error: "), result.stderr
    assert code == 2 or len(lines) == 1, result.stderr
    return lines[-1]


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def own(tmp_path):
    """Four trials that cannot be trained together."""
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the recipe gives when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "own.toml").write_text(OWN)
    run(folder / "own.toml", folder / "out")
    return content(folder / "out" / "trials")


# --- names and settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("fig4", [], ["no recipe 'fig4'; did you mean 'fig4", "random_networks"]),
        ("no/such.toml", [], ["no recipe file no/such.toml"]),
        ("fig4d", ["seeds"], ["'seeds': expected KEY=VALUE", "train.epochs=2"]),
        ("fig4d", ["=3"], ["'=3': expected KEY=VALUE"]),
        ("fig4d", ["10 dimensions=3"], ["expected KEY=VALUE", "in quotes"]),
        ("fig4d", ["sedes=3"], ["no key 'sedes'; did you mean 'seeds'"]),
        ("fig4d", ["format=3"], ["no key 'format'"]),
        ("fig4d", ["curves.Hee.seeds=3"], ["no curve 'Hee'", "10 dimensions, s = 1"]),
        ("fig4d", ["curves=3"], ["curves = 3; expected a table of tables"]),
        ("fig4c", ["curves.He=3"], ["curves.He = 3; expected a table"]),
        ("fig4c", ["curves.He.sedes=3"], ["curve He: no key 'sedes'; did you mean 'seeds'"]),
        ("fig4d", ["train.epoch=3"], ["[train]: no key 'epoch'; did you mean 'epochs'"]),
        ("fig4d", ["train.seed=3"], ["[train]: no key 'seed'"]),
        ("fig4d", ["train.epochs=0"], ["train.epochs = 0; expected a whole number from 1"]),
        ("fig4d", ["train.epochs=many"], ["train"]),
        ("fig4d", ["train.epochs=1.5"], ["train.epochs = 1.5; expected a whole number"]),
        ("fig4d", ["train.augment=yes"], ["train.augment = 'yes'; expected true or false"]),
        ("fig4d", ["train.lr=fast"], ["train"]),
        ("fig4d", ["train.lr=[]"], ["train.lr = []; expected"]),
        ("fig4d", ["train.lr=[0.1, -1]"], ["train.lr = [0.1, -1]; expected"]),
        ("fig4d", ["train.optimizer=lion"], ["train.optimizer = 'lion'; expected one of momentum"]),
        ("fig4d", ["train=3"], ['train = 3; expected a table, or "none"']),
        ("fig4d", ["seeds=0"], ["seeds = 0; expected a whole number from 1"]),
        ("fig4d", ["seeds=two"], ["seeds = 'two'; expected"]),
        ("fig4d", ["widths=[]"], ["widths = []; expected a list of factors above 0"]),
        ("fig4d", ["widths=[1, -1]"], ["widths = [1, -1]; expected"]),
        ("fig4d", ["widths=[nan]"], ["widths = [nan]; expected"]),
        ("fig4d", ["widths=wide"], ["widths = 'wide'; expected"]),
        ("fig4c", ["data=3"], ["data = 3; expected a data spec"]),
        ("fig4d", ["data=digits"], ["each curve has a data of its own; change curves.NAME.data"]),
        ("fig4c", ["data=fashion"], ["fashion", "did you mean fashion-mnist"]),
        ("fig4c", ["random_labels=1"], ["random_labels = 1; expected true or false"]),
        ("fig4d", ["family=mpl"], ["'mpl'", "did you mean 'mlp'"]),
        ("fig4d", ["args.depht=3"], ["no argument 'depht'", "'depth'"]),
        ("fig4d", ["args.depth=deep"], ["depth"]),
        ("fig4d", ["measure.analyse={}"], ["no measure 'analyse'; did you mean 'analyze'"]),
        ("fig4d", ["measure.analyze.order=1"], ["no key 'order'; did you mean 'orders'"]),
        ("fig4d", ["measure.analyze=1"], ["measure.analyze = 1; expected a table"]),
        ("fig4d", ["measure=1"], ["measure = 1; expected a table"]),
        ("fig4d", ['draw=["grwth"]'], ["no drawing 'grwth'; did you mean 'growth'"]),
        ("fig4d", ["draw=growth"], ["draw = 'growth'; expected a list of names"]),
        ("fig4d", ['draw=["shrunk"]'], ["the drawing shrunk needs measure.shrunk"]),
        ("fig4c", ["only=[]"], ["only = []; expected a list of curves"]),
        ("fig4c", ['only=["Her"]'], ["no curve 'Her'; did you mean 'He'"]),
        ("fig4d", ["compare=layer"], ["compare = 'layer'; expected one of curves, layers"]),
        ("fig4d", ["published=fig4e_mlp"], ["fig4e_mlp", "did you mean 'fig4d_mlp'"]),
        ("fig4d", ["title=3"], ["title = 3; expected a text"]),
    ],
)
def test_names_and_settings_that_mean_nothing(name, changes, said, tmp_path):
    line = fails(name, tmp_path / "out", *(part for c in changes for part in ("--set", c)))
    assert all(part in line for part in said), line
    assert not list(tmp_path.rglob("*.json")) or name == "fig4c", "nothing is begun"


def test_unknown_scales(tmp_path, own):
    assert "no scale paper; it has: smoke" in fails(own, tmp_path / "out", "--scale", "paper")
    assert "no scale smoke; it has: small, paper" in fails("inception_layers", tmp_path / "out")
    assert "'huge' is not one of" in fails("fig4d", tmp_path / "out", "--scale", "huge", code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"title = ", ["own.toml is no TOML file"]),
        (b"\xff\xfe\x00", ["own.toml is no TOML file"]),
        (b"", ["recipe own has no scale smoke; it has: none"]),
        (b"smoke = 3", ["[smoke] is no table"]),
        (b'familly = "mlp"\n[smoke]', ["no key 'familly'; did you mean 'family'"]),
        (b"[smoke]\nwidth = 2", ["in [smoke]: no key 'width'; did you mean 'widths'"]),
        (b"[smoke]", ["family is missing"]),
        (b'family = "mlp"\n[smoke]', ["data is missing; expected a data spec"]),
        (b'family = "mlp"\ndata = "digits"\n[smoke]', ["measure is missing"]),
        (b'like = "own"\n[smoke]', ["it is like itself"]),
        (b'like = "other"\n[smoke]', ["it is like itself, by way of other"]),
        (b'like = "fig4"\n[smoke]', ["no recipe 'fig4'"]),
        (b"like = 4\n[smoke]", ["like = 4; expected a text"]),
    ],
)
def test_recipe_files_that_are_none(text, said, tmp_path):
    (tmp_path / "own.toml").write_bytes(text)
    (tmp_path / "other.toml").write_text('like = "own"')
    line = fails(tmp_path / "own.toml", tmp_path / "out")
    assert all(part in line for part in said), line
    assert not (tmp_path / "out").exists()


# --- folders of results ---------------------------------------------------------------------------


def test_a_folder_of_something_else(tmp_path, own):
    out = tmp_path / "out"
    run(own, out)
    before = content(out)
    other = tmp_path / "other.toml"
    other.write_text(OWN + "[small]\n")
    own.write_text(OWN + "[small]\n")
    line = fails(other, out)
    assert "holds results of recipe own at scale smoke, not of other at smoke" in line
    assert "not of own at small; choose another --out" in fails(own, out, "--scale", "small")
    line = fails(own, out, "--set", "train.epochs=2")
    assert "with other settings (epochs: 1, not 2)" in line
    assert "(seeds: 2, not 3)" in fails(own, out, "--set", "seeds=3")
    assert "widths: [0.1, 0.2], not [0.1]" in fails(own, out, "--set", "widths=0.1")
    line = fails(own, out, "--trials", tmp_path / "elsewhere")
    assert "the trials of" in line and "--trials" in line
    assert not (tmp_path / "elsewhere").exists()
    assert content(out) == before
    # What is drawn and said may change.
    run(own, out, "--set", "draw=[]", "--set", "title=new")
    assert "new" in (out / "summary.md").read_text()


def test_a_folder_of_another_version(tmp_path, own):
    out = tmp_path / "out"
    run(own, out)
    path = out / "recipe.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": 99}))
    for result in (run(own, out, code=1), recipe("report", out, code=1)):
        assert "holds results of format 99, and this version writes 1" in result.stderr
    for damaged in ("[]", "{}", '{"format": 1, "recipe": 3, "trials": null}', '{"format":'):
        path.write_text(damaged)
        for result in (run(own, out, code=1), recipe("report", out, code=1)):
            assert len(result.stderr.splitlines()) == 1 and "recipe.json" in result.stderr


def test_folders_that_are_none_of_ours(tmp_path, own):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    line = fails(own, tmp_path / "mine")
    assert "is not empty and holds no results of a recipe; choose another --out" in line
    assert content(tmp_path / "mine") == {"letter.txt": b"dear"}
    assert not (tmp_path / "mine" / "trials").exists()
    assert "is a file" in fails(own, tmp_path / "mine" / "letter.txt", code=2)
    line = fails(own, tmp_path / "mine" / "letter.txt" / "out")
    assert "cannot make the folder" in line
    result = recipe("report", tmp_path / "mine", code=1)
    assert "holds no results: there is no recipe.json in it" in result.stderr
    recipe("report", tmp_path / "nowhere", code=1)
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_cannot_be_made(own):
    line = fails(own, "/proc/out")
    assert "cannot make the folder /proc/out" in line


@pytest.mark.parametrize("damage", [b'{"work": {"fam', b"", b"[]", b'{"work": {}}', b"\xff"])
def test_a_damaged_record(damage, tmp_path, own):
    out = tmp_path / "out"
    run(own, out)
    good = content(out / "trials")
    victim = sorted((out / "trials").iterdir())[0]
    victim.write_bytes(damage)
    for result in (run(own, out, code=1), recipe("report", out, code=1)):
        assert victim.name in result.stderr and "delete it" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    victim.unlink()
    result = run(own, out)
    assert len(result.stderr.splitlines()) == 1, "one trial is done again"
    assert content(out / "trials") == good


def test_a_damaged_record_is_found_before_anything_is_trained(tmp_path, own):
    out = tmp_path / "out"
    run(own, out)
    one, other, *_ = sorted((out / "trials").iterdir())
    one.write_bytes(b"{")
    other.unlink()
    fails(own, out)
    assert not other.exists()


def test_reports_of_unfinished_folders(tmp_path, own):
    out = tmp_path / "out"
    run(own, out, "--set", 'draw=["accuracy", "params", "growth"]')
    every = sorted((out / "trials").iterdir())
    for path in every[:2]:  # both networks of 0.1x
        path.unlink()
    result = recipe("report", out)
    assert "2 of 4 networks" in result.stdout
    assert "2 of 4 networks missing" in (out / "figures" / "accuracy.svg").read_text()
    page = (out / "summary.md").read_text()
    assert "2 of 4 trials" in page and "figures/growth.png" not in page
    for path in every[2:]:
        path.unlink()
    result = recipe("report", out)
    assert "0 of 4 networks" in result.stdout
    assert "figures/" not in (out / "summary.md").read_text()
    assert not list((out / "figures").iterdir()), "figures of before show what is not there"
    assert json.loads((out / "results.json").read_text())["trials"] == []


# --- training that diverges -----------------------------------------------------------------------


@pytest.mark.slow
def test_divergence_is_recorded_left_out_and_said(tmp_path):
    out = tmp_path / "out"
    small = ["--set", "train.lr=[1e30, 0.1]", "--set", "widths=[0.25, 0.5]"]
    first = run("fig4d", out, *small)
    assert "16 trainings diverged; they are left out" in first.stderr
    recipe_ = recipes.read("fig4d", "smoke", ["train.lr=[1e30, 0.1]"])
    found = results.load(out)
    assert len(found.failed) == 16 and found.missing == 0
    for curve in recipe_.curves:
        for width in curve.widths:
            assert [r["train"]["lr"] for r in found.of(curve.name, width)] == [0.1, 0.1]
    page = (out / "summary.md").read_text()
    assert "left out" in page and "diverged" in page
    again = run("fig4d", out, *small)
    assert "diverged" in again.stderr and len(again.stderr.splitlines()) == 1, "not tried again"


def test_all_diverge(tmp_path, own):
    result = run(own, tmp_path / "out", "--set", "train.lr=1e30")
    assert "4 trainings diverged" in result.stderr
    assert "left out" in (tmp_path / "out" / "summary.md").read_text()


# --- a full disk ----------------------------------------------------------------------------------


def test_a_full_disk_keeps_what_is_done(tmp_path, own, monkeypatch, undisturbed):
    out = tmp_path / "out"
    whole, written = atomic.write_atomic, []

    def full(path, write, check=None):
        if Path(path).parent.name == "trials":
            if len(written) == 2:
                raise OSError(28, "No space left on device")
            written.append(path)
        whole(path, write, check)

    def as_files_does(path, write, check=None):
        try:
            full(path, write, check)
        except OSError as error:
            raise atomic.FcompressError(f"cannot write {path}: {error.strerror}") from error

    with monkeypatch.context() as disk:
        disk.setattr(results, "write_atomic", as_files_does)
        line = fails(own, out)
    assert "cannot write" in line and "No space left on device" in line
    kept = content(out / "trials")
    assert len(kept) == 2 and kept.items() <= undisturbed.items()
    assert len(list((out / "scratch").iterdir())) == 1, "the network of the third is kept"
    result = run(own, out)
    assert len(result.stderr.splitlines()) == 2
    assert content(out / "trials") == undisturbed and not (out / "scratch").exists()


def test_a_limit_of_the_system(tmp_path, own, undisturbed):
    """The same with a real refusal to write."""
    out = tmp_path / "out"

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))

    process = start(own, out, 1, preexec_fn=limit)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 1 and stdout == ""
    assert stderr.startswith("error: cannot write ") and len(stderr.splitlines()) == 1
    assert "File too large" in stderr
    assert not [path for path in out.rglob("*") if path.name.startswith(".fcompress")]
    assert not list((out / "trials").iterdir())
    run(own, out)
    assert content(out / "trials") == undisturbed


# --- killed ---------------------------------------------------------------------------------------


def start(recipe_, out, workers, *arguments, **options):
    """The command in a process group of its own, as a terminal has it."""
    return subprocess.Popen(
        command_line(
            "recipe", "run", recipe_, "--scale", "smoke", "--device", "cpu", "--workers", workers,
            "--out", out, *arguments,
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )  # fmt: skip


def workers_of(pid):
    """Its worker processes."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            command = stat.with_name("cmdline").read_bytes()
            if int(fields[1]) == pid and b"spawn_main" in command and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def alive(pids):
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
    return found


def wait_until_gone(pids):
    deadline = time.monotonic() + 300
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pids)


def begin(path, out, done, trained):
    """Start with two workers; wait until so many trials are done and so many are being trained."""
    process = start(path, out, 2)
    deadline = time.monotonic() + 300
    while True:
        records = list(out.glob("trials/*.json"))
        if len(records) >= done and len(list(out.glob("scratch/*/network.pt.resume"))) >= trained:
            break
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    pids = workers_of(process.pid)
    assert len(pids) == 2
    return process, pids


@pytest.mark.slow
def test_interrupted(tmp_path, own, undisturbed):
    """Quick trials first, then two that train until they are stopped."""
    own.write_text(
        OWN.replace("widths = [0.1, 0.2]\n", "")
        + "\n[curves.quick]\nwidths = [0.1, 0.2]\n[curves.long]\nwidths = [0.05]\n"
        "train = { epochs = 100000 }\n"
    )
    out = tmp_path / "out"
    process, pids = begin(own, out, done=4, trained=2)
    assert "another run works in" in fails(own, out), "one run at a time in a folder"
    assert "4 of 6 networks" in recipe("report", out).stdout, "but it can be looked at"
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    stdout, stderr = process.communicate(timeout=60)
    wait_until_gone(pids)
    assert process.returncode == 130 and stdout == ""
    lines = stderr.splitlines()
    assert lines[-1] == "error: interrupted" and all(line[0].isdigit() for line in lines[:-1])
    assert content(out / "trials") == undisturbed, "all that was done is there, whole"
    assert len(list(out.glob("scratch/*/network.pt.resume"))) == 2, (
        "and the others go on within training"
    )
    assert "4 of 6 networks" in recipe("report", out).stdout


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A recipe of two quick and two slower trials, and what it gives when nothing happens."""
    folder = tmp_path_factory.mktemp("slow")
    text = OWN.replace("widths = [0.1, 0.2]\n", "") + (
        "\n[curves.quick]\nwidths = 0.2\n[curves.slow]\nwidths = 0.1\ntrain = { epochs = 100 }\n"
    )
    (folder / "own.toml").write_text(text)
    run(folder / "own.toml", folder / "out")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "main"])
def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(victim, tmp_path, slow):
    path, out = slow / "own.toml", tmp_path / "out"
    process, pids = begin(path, out, done=2, trained=1)
    os.kill(pids[0] if victim == "worker" else process.pid, signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=60)
    wait_until_gone(pids)
    assert stdout == "" and "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if not line[:1].isdigit()]
    if victim == "worker":
        assert process.returncode == 1 and len(lines) == 1
        assert lines[0].startswith("error: a worker process was killed")
    else:
        assert process.returncode == -signal.SIGKILL
        assert not [line for line in lines if line.startswith("error")]
    whole = content(slow / "out" / "trials")
    kept = content(out / "trials")
    assert 2 <= len(kept) < 4 and kept.items() <= whole.items()
    assert list(out.glob("scratch/*/network.pt.resume")), "it was killed too late to show anything"

    result = run(path, out)
    assert len(result.stderr.splitlines()) == 4 - len(kept)
    assert content(out / "trials") == whole
    assert (out / "results.json").read_bytes() == (slow / "out" / "results.json").read_bytes()
    assert content(out / "figures") == content(slow / "out" / "figures")
    assert not (out / "scratch").exists()
