"""What polishing should be: each choice measured alone, at equal time on one core.

    python -m benchmarks.studies.distillation --wide resnet20=resnet20.pt --wide mlp=mlp.pt \
        --wide alexnet=alexnet.pt --work study-output

Every trial trains a thin network (factor, at a share of the MACs) towards the wide one on the
calibration split, for a fixed number of processor seconds, the wide network's logits included,
and compares labels on the first 4,000 test images. Trials that WORK holds already are not run
again. The table goes to results/polish.md.
"""

import copy
import datetime
import json
import math
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fcompress

RESULTS = Path(__file__).parents[1] / "results"
TEST, HELD_OUT = 4000, 1024
BASE = {
    "seconds": 12,
    "optimizer": "adam",
    "lr": 2e-3,
    "schedule": "linear",
    "warmup": 0.0,
    "loss": "kl1",
    "norm": "train",
    "batch": 64,
    "ema": 0.0,
    "augment": "none",
    "images": 8192,
    "epochs": 1000,
    "layout": "channels_last",
    "seed": 0,
}
DESCENT = {"optimizer": "sgd", "lr": 0.03, "loss": "kl4"}
ADAM = {"optimizer": "adam", "lr": 1e-3, "loss": "kl4"}
TRIALS = [
    *(("resnet20", 0.15, {"lr": lr}) for lr in (1e-3, 2e-3, 4e-3)),
    ("resnet20", 0.15, {"lr": 1e-3, "norm": "eval"}),
    ("resnet20", 0.15, {"lr": 2e-3, "norm": "eval"}),
    ("resnet20", 0.15, {"loss": "centred"}),
    ("resnet20", 0.15, {"loss": "kl2"}),
    ("resnet20", 0.15, {"loss": "kl4"}),
    ("resnet20", 0.15, {"batch": 32}),
    ("resnet20", 0.15, {"batch": 128}),
    ("resnet20", 0.15, {"warmup": 0.2}),
    ("resnet20", 0.15, {"schedule": "cosine"}),
    ("resnet20", 0.15, {"ema": 0.95}),
    ("resnet20", 0.15, {"optimizer": "sgd", "lr": 0.03}),
    ("resnet20", 0.15, {"images": 3072}),
    ("resnet20", 0.15, {"augment": "shift"}),
    ("resnet20", 0.15, {"loss": "kl1+label"}),
    ("resnet20", 0.15, {"loss": "kl4", "lr": 1e-3}),
    ("mlp", 0.05, {"lr": 1e-3}),
    ("mlp", 0.05, {"lr": 1e-3, "seconds": 4}),
    ("mlp", 0.05, {"lr": 1e-3, "seconds": 4, "loss": "kl4"}),
    ("alexnet", 0.02, {"lr": 1e-3, "seconds": 6}),
    ("alexnet", 0.02, {"lr": 1e-3, "seconds": 6, "loss": "kl4"}),
    ("resnet20", 0.15, {"optimizer": "sgd", "lr": 0.03, "loss": "kl2"}),
    ("resnet20", 0.15, {"optimizer": "sgd", "lr": 0.03, "loss": "kl4"}),
    ("mlp", 0.05, {"optimizer": "sgd", "lr": 0.03, "loss": "kl4", "seconds": 4}),
    ("alexnet", 0.02, {"optimizer": "sgd", "lr": 0.01, "loss": "kl4"}),
    ("alexnet", 0.02, {"lr": 1e-3, "loss": "kl4"}),
    ("resnet20", 0.15, {"optimizer": "adam0.95", "loss": "kl2"}),
    # What polish does: momentum where there are batch norms, else Adam.
    ("resnet20", 0.15, DESCENT | {"seconds": 30}),
    ("mlp", 0.02, ADAM | {"seconds": 12, "epochs": 30}),
    ("alexnet", 0.01, ADAM | {"seconds": 12}),
]


KEPT = """
Kept, from one seed each, so differences below about 0.005 say little:

- Loss: KL at temperature 4 (times 16). Temperature 1 was worse on the MLP and on the ResNet;
  squared error on centred logits and an added label loss gained nothing over temperature 2 or 4.
- Descent: momentum 0.9 at 0.03 on the ResNet, ahead of Adam at temperatures 2 and 4 (within the
  noise at 1; Adam with a shorter memory, 0.95, came closer). The same kind of
  descent made both networks without batch norm useless (agreement as by chance), so they get Adam
  at 1e-3. That a network has batch norms is all that decides; on other such networks than the
  ResNet it was not measured.
- Batch norm in training mode: frozen statistics were worse at both rates.
- Batches of 64: 32 and 128 were no better. Falling linearly to zero: cosine, warm-up and an
  average of the weights were no better. Shifted images were no better, and cost a forward pass of
  the wide network each.
- All calibration images, labelled by the wide network when they are first used.
- Held out: other images than those the thin network was fitted to. Here the first 1,024 are held
  out, to which it was fitted: on the AlexNet they make the unpolished network look better than the
  test set does, and would have had a good polish refused. `polish` takes the last ones, or what
  its caller brings.

The trials ran with channels last in memory; `polish` leaves the layout as it is (a step of the thin
ResNet then took about a sixth longer), because a network may flatten with `view`.

Not measured: training only the scale and shift of batch norms, mixed and flipped images, 20,000
images, batches of 256, AdamW.
"""


class Loss:
    """Distance of logits from the wide network's: kl1, kl2, kl4, mse, centred, or a+b."""

    def __init__(self, name: str, scale: float) -> None:
        self.names, self.scale = name.split("+"), scale

    def __call__(self, thin: Tensor, wide: Tensor) -> Tensor:
        return sum(self.part(name, thin, wide) for name in self.names)

    def part(self, name: str, thin: Tensor, wide: Tensor) -> Tensor:
        if name.startswith("kl"):
            t = float(name[2:])
            target = (wide / t).log_softmax(1)
            found = (thin / t).log_softmax(1)
            return F.kl_div(found, target, reduction="batchmean", log_target=True) * t * t
        if name == "label":
            return F.cross_entropy(thin, wide.argmax(1))
        if name == "margin":
            top = wide.argmax(1, keepdim=True)
            rivals = thin.scatter(1, top, -math.inf).amax(1)
            return F.relu(1.0 - (thin.gather(1, top)[:, 0] - rivals)).mean()
        if name == "centred":
            thin, wide = thin - thin.mean(1, keepdim=True), wide - wide.mean(1, keepdim=True)
        return F.mse_loss(thin, wide) / self.scale


def cost_of(action: Callable[[], object], runs: int = 5) -> float:
    """Processor seconds of one run, the least of several."""
    action()
    found = []
    for _ in range(runs):
        start = time.process_time()
        action()
        found.append(time.process_time() - start)
    return min(found)


def augmented(x: Tensor, how: str, generator: torch.Generator) -> Tensor:
    if how == "mixup":
        share = torch.rand(len(x), *[1] * (x.dim() - 1), generator=generator) * 0.5
        return x + share * (x[torch.randperm(len(x), generator=generator)] - x)
    if how == "flip":
        flip = torch.rand(len(x), generator=generator) < 0.5
        x = x.clone()
        x[flip] = x[flip].flip(-1)
        return x
    dy, dx = torch.randint(-1, 2, (2,), generator=generator).tolist()
    return F.pad(x, (1, 1, 1, 1), "replicate")[
        ..., 1 + dy : x.shape[-2] + 1 + dy, 1 + dx : x.shape[-1] + 1 + dx
    ]


def set_mode(model: nn.Module, norm: str) -> None:
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for module in norms if norm == "train" else []:
        module.train()
    if norm == "affine":
        model.requires_grad_(False)
        for module in norms:
            module.requires_grad_(True)


def rate(setting: dict, share: float) -> float:
    if share < setting["warmup"]:
        return share / setting["warmup"]
    share = (share - setting["warmup"]) / (1 - setting["warmup"])
    return (1 + math.cos(math.pi * share)) / 2 if setting["schedule"] == "cosine" else 1 - share


def optimizer_of(model: nn.Module, setting: dict) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if setting["optimizer"] == "sgd":
        return torch.optim.SGD(parameters, lr=setting["lr"], momentum=0.9, nesterov=True)
    if setting["optimizer"].startswith("adam0"):
        return torch.optim.Adam(parameters, setting["lr"], (0.9, float(setting["optimizer"][4:])))
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[setting["optimizer"]]
    return kind(parameters, lr=setting["lr"])


@torch.no_grad()
def scores(model: nn.Module, x: Tensor) -> Tensor:
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    found = torch.cat([model(part) for part in x.split(256)])
    for module, mode in modes:
        module.training = mode
    return found


def compare(thin: Tensor, wide: Tensor) -> tuple[float, float]:
    """Share of equal labels, and KL."""
    kl = F.kl_div(thin.log_softmax(1), wide.log_softmax(1), reduction="batchmean", log_target=True)
    return float((thin.argmax(1) == wide.argmax(1)).double().mean()), float(kl)


def trial(wide: nn.Module, thin: nn.Module, data: dict[str, Tensor], setting: dict) -> dict:
    """Train a copy of `thin`; everything about how it went."""
    wide, thin = copy.deepcopy(wide).eval(), copy.deepcopy(thin)
    pool, test = data["pool"], data["test"]
    if pool.dim() == 4 and setting["layout"] == "channels_last":
        form = torch.channels_last
        wide, thin = wide.to(memory_format=form), thin.to(memory_format=form)
        pool, test = pool.contiguous(memory_format=form), test.contiguous(memory_format=form)
    held, x = pool[:HELD_OUT], pool[HELD_OUT : setting["images"]]
    began = time.process_time()
    logits = scores(wide, x)
    spent = time.process_time() - began
    held_wide = scores(wide, held)
    set_mode(thin, setting["norm"])
    loss_of = Loss(setting["loss"], float(logits.var(1).mean()))
    generator = torch.Generator().manual_seed(setting["seed"])

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, rows: Tensor) -> None:
        inputs, target = x[rows], logits[rows]
        if setting["augment"] != "none":
            inputs = augmented(inputs, setting["augment"], generator)
            with torch.no_grad():
                target = wide(inputs)
        optimizer.zero_grad()
        loss_of(model(inputs), target).backward()
        optimizer.step()

    spare = copy.deepcopy(thin)
    spare_optimizer = optimizer_of(spare, setting)
    rows = torch.arange(setting["batch"])
    each = cost_of(lambda: step(spare, spare_optimizer, rows))
    budget = setting["seconds"] - (0 if setting["augment"] != "none" else spent)
    an_epoch = math.ceil(len(x) / setting["batch"])
    total = min(int(budget / each), setting["epochs"] * an_epoch)
    optimizer = optimizer_of(thin, setting)
    mean = copy.deepcopy(thin)
    checks = [[0, *compare(scores(thin, held), held_wide)]]
    before = compare(scores(thin, test), data["logits"])
    began, outside, done = time.process_time(), 0.0, 0
    every = math.ceil(total / 4)
    while done < total:
        for rows in torch.randperm(len(x), generator=generator).split(setting["batch"]):
            if done == total or len(rows) < 2:
                break
            for group in optimizer.param_groups:
                group["lr"] = setting["lr"] * rate(setting, done / total)
            step(thin, optimizer, rows)
            done += 1
            if setting["ema"]:
                keep = min(setting["ema"], done / (done + 10))
                for a, b in zip(
                    mean.state_dict().values(), thin.state_dict().values(), strict=True
                ):
                    a.copy_(b) if not a.is_floating_point() else a.lerp_(b, 1 - keep)
            if done % every == 0 or done == total:
                start = time.process_time()
                final = mean if setting["ema"] else thin
                checks.append([done, *compare(scores(final, held), held_wide)])
                outside += time.process_time() - start
    return {
        "steps": total,
        "step_ms": 1e3 * each,
        "logits_s": spent,
        "cpu_s": spent + time.process_time() - began - outside,
        "checks": checks,
        "before": before,
        "after": compare(scores(mean if setting["ema"] else thin, test), data["logits"]),
    }


@click.command()
@click.option("--wide", multiple=True, metavar="NAME=PATH", help="A trained network.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("study-output"))
@click.option("--data-root", type=click.Path(path_type=Path))
@click.option("--only", help="Run the trials of this network only.")
def main(wide: tuple[str, ...], work: Path, data_root: Path | None, only: str | None) -> None:
    """Run the trials that WORK does not hold yet and write results/polish.md."""
    torch.set_num_threads(1)
    work.mkdir(exist_ok=True)
    paths = dict(item.split("=", 1) for item in wide)
    splits = fcompress.load_data("fashion-mnist", root=data_root)
    train = [x for x, _ in splits.need("train").batches(256, limit=24576)]
    data = {
        "pool": torch.cat([*(x for x, _ in splits.need("calibration").batches(256)), *train]),
        "test": torch.cat([x for x, _ in splits.need("test").batches(256, limit=TEST)]),
    }
    kept = work / "trials.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    known_for = None
    for name, ratio, changes in TRIALS:
        setting = BASE | changes
        known = [
            r for r in rows if (r["network"], r["ratio"], r["setting"]) == (name, ratio, setting)
        ]
        if known or (only and name != only):
            continue
        network = fcompress.load(Path(paths[name]))
        path = work / f"{name}_{ratio}.pt"
        if not path.exists():
            small = fcompress.shrink(network, splits, method="factor", ratio=ratio)
            fcompress.save(small.model, path)
        thin = fcompress.load(path)
        row = {"network": name, "ratio": ratio, "setting": setting, "changes": changes}
        if known_for != name:
            data["logits"], known_for = scores(network, data["test"]), name
        row |= trial(network, thin, data, setting)
        rows.append(row)
        kept.write_text(json.dumps(rows))
        click.echo(f"{name} {ratio} {changes}: {row['steps']} steps, {row['cpu_s']:.0f} s")
        held = " ".join("{1:.4f}/{2:.4f}".format(*check) for check in row["checks"])
        click.echo(f"   test {row['before'][0]:.4f} -> {row['after'][0]:.4f}, held {held}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "polish.md").write_text(table(rows))


def table(rows: list[dict]) -> str:
    """What was measured, as Markdown, in the order of TRIALS."""
    lines = [
        "# Polishing: what was tried",
        "",
        f"`python -m benchmarks.studies.distillation`, {datetime.date.today()}, "
        f"fcompress {version('fcompress')}, "
        f"torch {torch.__version__}, python {platform.python_version()}, {platform.machine()}, "
        "one thread, on a machine that others used too: times are processor seconds.",
        "",
        *__doc__.split("\n\n")[-1].strip().splitlines(),
        "Unless a row says otherwise: " + ", ".join(f"{k} {v}" for k, v in BASE.items()) + ".",
        f"Of the images the first {HELD_OUT} are held out. Agreement has a standard error of about "
        "0.3% from the test images, of which most is common to all rows of one network.",
        "",
        "| network | MACs kept | changed setting | seconds | steps | agreement | KL, test | "
        "KL on held-out at each quarter |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    order = [(name, ratio, BASE | changes) for name, ratio, changes in TRIALS]
    found = {json.dumps([r["network"], r["ratio"], r["setting"]]): r for r in rows}
    for key in order:
        row = found.get(json.dumps(key))
        if row is None:
            lines.append(f"| {key[0]} | {key[1]:.0%} | {key[2]} | not run | | | | |")
            continue
        changes = ", ".join(f"{k} {v}" for k, v in row["changes"].items() if k != "seconds")
        before, after = row["before"], row["after"]
        held = " ".join(f"{kl:.3f}" for _, _, kl in row["checks"])
        lines.append(
            f"| {key[0]} | {key[1]:.0%} | {changes} | {row['cpu_s']:.0f} | {row['steps']} | "
            f"{before[0]:.4f} -> {after[0]:.4f} | {before[1]:.4f} -> {after[1]:.4f} | {held} |"
        )
    return "\n".join(lines) + "\n" + KEPT


if __name__ == "__main__":
    main()
