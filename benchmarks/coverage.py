"""Which architectures are understood: every torchvision classifier and some of timm's.

Each architecture runs in a process of its own with a time and a memory limit; what is known of it
is kept in a JSON file, so that an interrupted run goes on where it stopped.
"""

import datetime
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import click
import torch

import fcompress

RESULTS = Path(__file__).parent / "results"
# Input sizes where 64 pixels are not accepted or would leave too little to look at.
SIZES = {
    "torchvision:inception_v3": 96,
    "torchvision:maxvit_t": 224,
    "torchvision:vit_h_14": 56,
    "timm:coatnet_0_rw_224": 224,
    "timm:edgenext_small": 128,
    "timm:hrnet_w18_small": 64,
    "timm:inception_v4": 96,
    "timm:inception_resnet_v2": 96,
    "timm:levit_128s": 224,
    "timm:maxvit_tiny_tf_224": 224,
    "timm:swin_tiny_patch4_window7_224": 224,
    "timm:swinv2_tiny_window8_256": 256,
    "timm:xcit_nano_12_p16_224": 96,
    "timm:efficientformer_l1": 224,
    "timm:mobilevit_s": 128,
    "timm:twins_svt_small": 224,
    "timm:convit_tiny": 64,
    "timm:gmlp_s16_224": 224,
    "timm:pvt_v2_b0": 128,
    "timm:davit_tiny": 224,
    "timm:focalnet_tiny_srf": 224,
}
DEFAULT_SIZE = 64
# Wall time for each CPU second, where other programs keep the machine busy.
_PATIENCE = 12
SETTINGS = {
    # Their auxiliary heads serve training only; torchvision's weights come without them.
    "torchvision:googlenet": {"aux_logits": False, "init_weights": True},
    "torchvision:inception_v3": {"aux_logits": False, "init_weights": True},
}
# Take the number of pixels as a setting.
SIZED = (
    *("torchvision:vit", "timm:vit", "timm:deit", "timm:mixer", "timm:beit", "timm:cait"),
    *("timm:resmlp", "timm:convit"),
)
TIMM = """
    vit_small_patch16_224 deit3_small_patch16_224 swin_tiny_patch4_window7_224
    swinv2_tiny_window8_256 convnext_nano convnextv2_nano regnety_008 regnetz_b16
    efficientnet_b0 efficientnetv2_rw_t mobilenetv3_large_100 ghostnet_100 densenet121
    eca_nfnet_l0 nf_resnet50 resnest26d mixer_s16_224 coatnet_0_rw_224 maxvit_tiny_tf_224
    resnetrs50 ecaresnet26t seresnet50 vgg11_bn hrnet_w18_small dla34 res2net50_26w_4s
    cspresnet50 inception_v4 xception41 poolformer_s12 caformer_s18 levit_128s edgenext_small
    repvgg_a0 beit_base_patch16_224 cait_xxs24_224 xcit_nano_12_p16_224 resmlp_12_224
    mobilevit_s pvt_v2_b0
""".split()
# Networks of convolutions without attention over positions: 90% is the aim.
PLAIN = (
    *("alexnet", "densenet", "efficientnet", "googlenet", "inception", "mnasnet", "mobilenet"),
    *("regnet", "resne", "shufflenet", "squeezenet", "vgg", "wide_resnet"),
    *("ghostnet", "dla", "cspres", "repvgg", "xception", "hrnet", "seresnet", "ecaresnet"),
    *("res2net", "nf_resnet", "eca_nfnet"),
)


@click.group(invoke_without_command=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("coverage-output"))
@click.option("--limit-s", default=300, show_default=True, help="CPU seconds for each.")
@click.option("--limit-gib", default=6.0, show_default=True, help="Memory for each.")
@click.option("--only", multiple=True, help="Source or part of a name; several are allowed.")
@click.option("--again", is_flag=True, help="Run those that are done, too.")
@click.option("--table/--no-table", default=True, show_default=True, help="Write the results.")
@click.pass_context
def main(
    context: click.Context,
    work: Path,
    limit_s: int,
    limit_gib: float,
    only: tuple[str, ...],
    again: bool,
    table: bool,
) -> None:
    """Find and prove the groups of every architecture, and excise 30% of them.

    Writes results/coverage.md and .json. What WORK holds already is not run again.
    """
    if context.invoked_subcommand:
        return
    work.mkdir(exist_ok=True, parents=True)
    rows = []
    for name in names():
        done = work / f"{name.replace(':', '-')}.json"
        wanted = not only or any(part in name for part in only)
        if wanted and (again or not done.exists()):
            row = _in_a_process(name, limit_s, limit_gib)
            _write(done, json.dumps(row, indent=1) + "\n")
            click.echo(_line(row))
        if done.exists():
            rows.append(json.loads(done.read_text()))
    if table:
        RESULTS.mkdir(exist_ok=True)
        _write(RESULTS / "coverage.json", json.dumps(rows, indent=1) + "\n")
        _write(RESULTS / "coverage.md", _report(rows, limit_s, limit_gib))
        click.echo(f"written: {RESULTS / 'coverage.md'}")


def names() -> list[str]:
    """Every architecture as `source:name`."""
    import torchvision

    classifiers = torchvision.models.list_models(module=torchvision.models)
    return [*(f"torchvision:{n}" for n in classifiers), *(f"timm:{n}" for n in TIMM)]


def _in_a_process(name: str, limit_s: int, limit_gib: float) -> dict:
    """What `one` finds, or why it did not."""
    command = [sys.executable, "-m", "benchmarks.coverage", "one", name]
    command += ["--limit-gib", str(limit_gib), "--limit-s", str(limit_s)]
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE * limit_s)
    except subprocess.TimeoutExpired:
        return {"name": name, "failed": f"not done after {_PATIENCE * limit_s} s"}
    if done.returncode == -signal.SIGXCPU:
        return {"name": name, "failed": f"not done after {limit_s} CPU seconds"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    seconds = time.perf_counter() - begin
    return {"name": name, "failed": last[:300], "seconds": seconds}


@main.command()
@click.argument("name")
@click.option("--limit-gib", default=6.0)
@click.option("--limit-s", default=300)
def one(name: str, limit_gib: float, limit_s: int) -> None:
    """One architecture in this process; prints one line of JSON."""
    limit = int(limit_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 5))
    size = SIZES.get(name, DEFAULT_SIZE)
    torch.manual_seed(0)
    model = _build(name, size).eval()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    _calibrate(model, torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(2)))
    row = {"name": name, "size": size, "threads": torch.get_num_threads()}
    row |= fcompress.coverage(model, x).to_dict()
    row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    row["versions"] = _versions()
    print(json.dumps(row))


def _build(name: str, size: int) -> torch.nn.Module:
    source, _, architecture = name.partition(":")
    settings = dict(SETTINGS.get(name, {}))
    sized = name.startswith(SIZED)
    if source == "torchvision":
        import torchvision

        if sized:
            settings["image_size"] = size
        return torchvision.models.get_model(architecture, weights=None, **settings)
    import timm

    if sized:
        settings["img_size"] = size
    return timm.create_model(architecture, pretrained=False, **settings)


def _calibrate(model: torch.nn.Module, x: torch.Tensor) -> None:
    """Statistics of batch norms as they are on random images, so that activations vary.

    Scales and shifts of random networks are all one and zero; they are made different, so that a
    wrong channel shows. Weights that start as zeros, such as those of some heads, become small
    random numbers, and scales that start as zeros random numbers around one.
    """
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if not parameter.any() and not name.endswith("bias"):
            small = parameter.dim() > 1
            parameter.data.normal_(
                0.0 if small else 1.0, 0.02 if small else 0.2, generator=generator
            )
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None
        if norm.affine:
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.bias.data.normal_(0, 0.2, generator=generator)
    if norms:
        with torch.no_grad():
            model(x)
    for norm in norms:
        norm.eval()
        norm.momentum = 0.1


def _versions() -> dict[str, str]:
    import torchvision

    found = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    if "timm" in sys.modules:
        found["timm"] = sys.modules["timm"].__version__
    return found


# Reporting ---------------------------------------------------------------------------------


def _list(rows: Iterable[dict]) -> str:
    return ", ".join(r["name"] for r in rows) or "none"


def _line(row: dict) -> str:
    return " | ".join(_cells(row))


def _cells(row: dict) -> list[str]:
    if "failed" in row:
        return [row["name"], "", "", "", "", "", "", f"failed: {row['failed']}", ""]
    total = row["params"]
    left = [f"{_share(n, total)} {_short(why)}" for why, n in _by_reason(row).items()]
    return [
        row["name"],
        str(row["size"]),
        f"{total / 1e6:.1f}",
        f"{row['groups']} ({row['units']})",
        _share(row["reachable"], total),
        _share(row["both"], total) if "both" in row else "",
        _excised(row),
        "; ".join(left) or "nothing",
        f"{row['seconds']:.0f} ({row['cpu_seconds']:.0f})",
    ]


def _excised(row: dict) -> str:
    if row["error"] is not None:
        return f"no: {row['error'][:80]}"
    if not row["groups"]:
        return "nothing to excise"
    return f"yes, {_share(row['thin_params'], row['params'])} left"


def _share(part: int, total: int) -> str:
    return f"{part / total:.1%}"


def _by_reason(row: dict) -> dict[str, int]:
    """Parameters by the first of their reasons, without details, largest first."""
    found: dict[str, int] = {}
    for reason, number in row["left"].items():
        short = _short(reason)
        found[short] = found.get(short, 0) + number
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _short(reason: str) -> str:
    return reason.partition("; ")[0].partition(" (")[0]


def _report(rows: list[dict], limit_s: int, limit_gib: float) -> str:
    ran = [r for r in rows if "failed" not in r]
    shrink = [r for r in ran if r["groups"] and r["error"] is None and r["change"] > 0]
    plain = [r for r in ran if r["name"].partition(":")[2].startswith(PLAIN)]
    much = [r for r in plain if r["reachable"] >= 0.9 * r["params"]]
    slow = [r["name"] for r in ran if r["cpu_seconds"] > 60]
    versions = {k: v for r in ran for k, v in r["versions"].items()}
    lines = [
        "# Architectures",
        "",
        f"`scripts/coverage`, {datetime.date.today().isoformat()}, "
        + ", ".join(f"{k} {v}" for k, v in versions.items())
        + f", {platform.machine()}, {os.cpu_count()} cores, one thread, at most "
        f"{limit_s} CPU seconds and {limit_gib:g} GiB each. Random weights, batch norm calibrated "
        "on random images, two random images of the size given.",
        "",
        f"- {len(rows)} architectures, {len(ran)} ran to the end.",
        f"- {len(shrink)} ({_share(len(shrink), len(rows))}) shrink: 30% of the units of every "
        "proven group excised together, and the network still runs, with other outputs. Not so: "
        f"{_list(r for r in rows if r not in shrink)}.",
        f"- {len(much)} of {len(plain)} plain convolutional networks have 90% of their parameters "
        f"in proven groups. Not so: {_list(r for r in plain if r not in much)}.",
        "- What counts as reached: an element of a weight whose row or column belongs to a proven "
        "group. Under rows and columns: one of which neither the row nor the column belongs to a "
        "group that is not pruned, as those that normalisations mix (the stream of a transformer); "
        "the network's own inputs and outputs do not count.",
        f"- More than 60 CPU seconds to find and prove the groups: {', '.join(slow) or 'none'}.",
        "",
        "| architecture | pixels | params, millions | groups (units) | params in proven groups | "
        "rows and columns | "
        "30% excised: runs, params left | not pruned | seconds (CPU) |",
        "|" + " --- |" * 9,
    ]
    return "\n".join(lines + ["| " + " | ".join(_cells(r)) + " |" for r in rows]) + "\n"


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


if __name__ == "__main__":
    main()
