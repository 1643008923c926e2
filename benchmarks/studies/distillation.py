"""What distillation gains near the original and far from it, and what its choices are worth.

    fcompress train resnet20 --width 0.5 --data fashion-mnist,size=14,train=12000 --epochs 5 \
        --out small.pt
    python -m benchmarks.studies.distillation --wide resnet20-14=small.pt --wide mlp=mlp.pt \
        --work study-output

Every trial distils a refitted network (hybrid, at a share of the MACs) as `shrink --distill` does,
or with one choice changed, and compares labels with the original's on the first 4,000 test images;
1,024 search images are held out. Trials that WORK holds already are not run again. The table goes
to results/distillation.md, with every trial of TRIALS that has been run.
"""

import datetime
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import torch
from torch import nn

import fcompress
from fcompress.compress.distillation import distilling, rotated, student
from fcompress.compress.distillation.teacher import HELD_OUT_MOST, teacher_of
from fcompress.compress.options import DISTILL_EFFORT
from fcompress.data.specs import reload_data
from fcompress.forward.predictor import Predictor
from fcompress.models.provenance import origin_of

RESULTS = Path(__file__).parents[1] / "results"
TEST = 4000
DEFAULT: dict[str, Any] = {"effort": DISTILL_EFFORT, "data": "all"}
CHANGES: list[dict[str, Any]] = [
    {},
    {"effort": DISTILL_EFFORT / 10},
    {"effort": 4 * DISTILL_EFFORT},
    {"data": "calibration"},
    {"statistics": "fixed"},
    {"temperature": 1.0},
    {"temperature": 4.0},
    {"steps": "plain Adam"},
]
TRIALS = [
    *(("resnet20-14", ratio, change) for ratio in (0.6, 0.25) for change in CHANGES),
    *(("mlp", ratio, change) for ratio in (0.5, 0.3) for change in CHANGES[:4]),
    *(("resnet20", ratio, change) for ratio in (0.5, 0.3) for change in CHANGES[:4]),
    *(("mobilenet", ratio, change) for ratio in (0.5, 0.3) for change in CHANGES[:4]),
]


@contextmanager
def changed(setting: dict[str, Any]) -> Iterator[None]:
    """Distillation with a choice of its own."""
    raised = dict(distilling.RAISED)
    if setting.get("statistics") == "fixed":
        raised[True] = ()
    temperature = setting.get("temperature", student.TEMPERATURE)
    with (
        patch.object(distilling, "RAISED", raised),
        patch.object(student, "TEMPERATURE", temperature),
        patch.object(rotated, "SHARE", 0.0 if "steps" in setting else rotated.SHARE),
    ):
        yield


def compared(original: nn.Module, thin: nn.Module, inputs: torch.Tensor) -> tuple[float, float]:
    """Share of equal labels, and KL in nats."""
    teacher = teacher_of(Predictor(original), [inputs], [inputs])
    with Predictor(thin).evaluating():
        found = teacher.closeness(Predictor(thin))
    return found.agreement, found.divergence


@click.command()
@click.option("--wide", multiple=True, metavar="NAME=PATH", help="A trained network.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("study-output"))
@click.option("--only", help="Run the trials of this network only.")
@click.option("--most", type=int, default=len(CHANGES), help="Run the first so many changes only.")
def main(wide: tuple[str, ...], work: Path, only: str | None, most: int) -> None:
    """Run the trials that WORK does not hold yet and write results/distillation.md."""
    torch.set_num_threads(1)
    work.mkdir(exist_ok=True)
    paths = dict(item.split("=", 1) for item in wide)
    kept = work / "distillation.json"
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for name, ratio, change in TRIALS:
        key = json.dumps([name, ratio, change])
        if key in rows or name not in paths or only not in (None, name):
            continue
        if change not in CHANGES[:most]:
            continue
        setting = DEFAULT | change
        original = fcompress.load(Path(paths[name])).eval()
        splits = reload_data(origin_of(original)["data"])
        path = work / f"{name}_{ratio}.pt"
        if not path.exists():
            fcompress.save(fcompress.shrink(original, splits, ratio=ratio).model, path)
        thin = fcompress.load(path).eval()
        sizes = len(splits.need("calibration"))
        batches = [x for x, _ in splits.need("calibration").batches()]
        more = int(setting["effort"] * sizes) - sizes if setting["data"] == "all" else 0
        if more > 0:
            batches += [x for x, _ in splits.need("train").batches(limit=more)]
        held = [x for x, _ in splits.need("search").batches(limit=HELD_OUT_MOST)]
        test = torch.cat([x for x, _ in splits.need("test").batches(limit=TEST)])
        began = time.process_time()
        teacher = teacher_of(Predictor(original), batches, held, sweep=sizes)
        with changed(setting):
            found = distilling.distill_by(teacher, thin, effort=setting["effort"])
        seconds = time.process_time() - began
        rows[key] = found.to_dict() | {
            "cpu_s": seconds,
            "test": [compared(original, one, test) for one in (thin, found.model)],
        }
        kept.write_text(json.dumps(rows, indent=1))
        click.echo(f"{key}: {rows[key]['test']}, {rows[key]['cpu_s']:.0f} s")
    (RESULTS / "distillation.md").write_text(table(rows))


def table(rows: dict[str, Any]) -> str:
    """What was measured, as Markdown, in the order of TRIALS."""
    lines = [
        "# Distillation: what it gains",
        "",
        f"`python -m benchmarks.studies.distillation`, {datetime.date.today()}, "
        f"fcompress {version('fcompress')}, "
        f"torch {torch.__version__}, python {platform.python_version()}, {platform.machine()}, "
        "one thread, on a machine that others used too: times are processor seconds.",
        "",
        *(__doc__ or "").split("\n\n")[-1].strip().splitlines(),
        "Unless a row says otherwise: "
        + ", ".join(f"{k} {v}" for k, v in DEFAULT.items())
        + f", temperature {student.TEMPERATURE:g}, statistics as trials decide.",
        "Agreement has a standard error of 0.1 to 0.5% from the test images, of which most is "
        "common to all rows of one network. An effort of 1 trains on as many images as there are "
        "calibration images, once; data all: the training split's images too, without labels.",
        "",
        "| network | MACs kept | changed | processor s | steps | rate | statistics | returns | "
        "agreement, test | KL, test |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, ratio, change in TRIALS:
        row = rows.get(json.dumps([name, ratio, change]))
        if row is None:
            continue
        changes = ", ".join(f"{k} {v}" for k, v in change.items()) or "nothing"
        before, after = row["test"]
        kind = "moving" if row["moving"] else "fixed"
        lines.append(
            f"| {name} | {ratio:.0%} | {changes} | {row['cpu_s']:.0f} | {row['steps']} | "
            f"{row['rate']:.1e} | {kind} | {row['returns']} | {before[0]:.4f} -> {after[0]:.4f} | "
            f"{before[1]:.5f} -> {after[1]:.5f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
