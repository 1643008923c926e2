"""Small networks of transformers: shrunk, certified, saved, opened, exported; torch-pruning beside.

The networks are those of tests/cases/huggingface.py, trained for seconds on tasks made there.
torch-pruning prunes by the magnitude of groups (L2, global) until no more parameters are left than
in the compressed network, and is compared on all of these examples, without retraining.
"""

import copy
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
import torch_pruning
from torch import Tensor, nn

import fcompress

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from cases.huggingface import CASES, accuracy, trained, unseen

RESULTS = Path(__file__).parent / "results"
TOLERANCE, EXAMPLES, BATCH = 0.05, 1000, 100
FORMATS = (".pt2", ".onnx", ".safetensors", "")


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def batches(inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Inputs in batches."""
    count = len(next(iter(inputs.values())))
    return [{k: v[i : i + BATCH] for k, v in inputs.items()} for i in range(0, count, BATCH)]


def measured(name: str, folder: Path) -> dict[str, Any]:
    """All that is done with one network."""
    begin = time.process_time()
    model, case = trained(name), CASES[name]
    row: dict[str, Any] = {"network": name, "class": type(model).__name__}
    row["accuracy"] = accuracy(name, model)
    row["trained_s"] = time.process_time() - begin
    inputs, _ = unseen(name, EXAMPLES)
    data = batches(inputs)
    begin = time.process_time()
    try:
        result = fcompress.shrink(model, data, tol=TOLERANCE, answer=case.answer)
    except fcompress.FcompressError as error:
        return row | {"failed": _line(error)}
    row["shrink_s"] = time.process_time() - begin
    row |= {"params": result.params, "macs": result.macs, "n": result.agreement.n}
    row["changed"] = float(result.agreement.changed) / result.agreement.n
    row["bound"] = result.agreement.upper_bound
    fcompress.save(result.model, folder / f"{name}.pt")
    again = fcompress.load(folder / f"{name}.pt")
    row["opened_same"] = same(result.model, again, inputs)
    for ending in FORMATS:
        try:
            found = fcompress.export(
                result.model, folder / f"{name}{ending}", data, answer=case.answer, examples=100
            )
            row[f"export {ending or 'folder'}"] = found.largest_difference
        except fcompress.FcompressError as error:
            row[f"export {ending or 'folder'}"] = _line(error)
    row["fresh"] = changed(model, result.model, unseen(name, 3000)[0])
    row["torch_pruning"] = pruned(model, inputs, result.params["after"])
    return row


def same(one: nn.Module, other: nn.Module, inputs: dict[str, Tensor]) -> bool:
    """Whether two networks give the same outputs, bit for bit."""
    with torch.no_grad():
        return torch.equal(one(**inputs).logits, other(**inputs).logits)


def changed(one: nn.Module, other: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Share of labels, or of next tokens outside of padding, that are others."""
    with torch.no_grad():
        a, b = (network(**inputs).logits.argmax(-1) for network in (one, other))
    counted = inputs["attention_mask"] != 0 if a.dim() == 2 else torch.ones_like(a) != 0
    return float((a != b)[counted].double().mean())


def pruned(model: nn.Module, inputs: dict[str, Tensor], most: int) -> dict[str, Any]:
    """torch-pruning at the least ratio, in hundredths, that leaves at most so many parameters."""
    low, high, found = 0, 100, {"failed": "no ratio leaves so few parameters"}
    while high - low > 1:
        ratio = (low + high) // 2
        try:
            thin = _at(model, inputs, ratio / 100)
            params = sum(p.numel() for p in thin.parameters())
            if params > most:
                low = ratio
                continue
            high = ratio
            found = {
                "ratio": ratio / 100,
                "params": params,
                "changed": changed(model, thin, inputs),
            }
        except Exception as error:
            said = f"{type(error).__name__}: {_line(error)[:120]}"
            return {"failed": said, "ratio": ratio / 100}
    return found


def _at(model: nn.Module, inputs: dict[str, Tensor], ratio: float) -> nn.Module:
    thin = copy.deepcopy(model)
    heads = {}
    for _, module in thin.named_modules():
        for names, count in _heads(module):
            heads |= {getattr(module, name): count for name in names}
    out = getattr(thin, "lm_head", getattr(thin, "classifier", None))
    pruner = torch_pruning.pruner.BasePruner(
        thin,
        {key: value[:2] for key, value in inputs.items()},
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        num_heads=heads,
        prune_num_heads=False,
        ignored_layers=[out],
        output_transform=lambda output: output.logits.sum(),
    )
    pruner.step()
    for _, module in thin.named_modules():
        for names, count in _heads(module):
            width = getattr(module, names[0]).out_features
            for attribute in ("attention_head_size", "head_dim"):
                if hasattr(module, attribute):
                    setattr(module, attribute, width // count)
            if hasattr(module, "all_head_size"):
                module.all_head_size = width
    return thin


def _heads(module: nn.Module) -> Iterator[tuple[tuple[str, ...], int]]:
    """Layers that write heads, and how many, as torch-pruning wants to be told."""
    count = getattr(module, "num_attention_heads", getattr(module, "num_heads", None))
    for names in (("query", "key", "value"), ("q_proj", "k_proj", "v_proj")):
        if isinstance(count, int) and all(hasattr(module, name) for name in names):
            yield names, count


def table(rows: list[dict[str, Any]]) -> str:
    """The page of results."""
    head = (
        "network",
        "accuracy",
        "params",
        "MACs",
        "changed, certified",
        "changed, more examples",
        "opened again",
        "largest difference .pt2 / .onnx / .safetensors / folder",
        "torch-pruning at as many params: changed",
        "CPU s",
    )
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [row["class"], f"{row['accuracy']:.1%}"]
        if "failed" in row:
            cells += [row["failed"], *[""] * 7]
        else:
            rival = row["torch_pruning"]
            said = rival.get("failed") or f"{rival['changed']:.1%} ({rival['params']:,} params)"
            cells += [f"{row[k]['before']:,} → {row[k]['after']:,}" for k in ("params", "macs")]
            cells += [f"{row['changed']:.1%}, at most {row['bound']:.1%}", f"{row['fresh']:.1%}"]
            cells += ["the same" if row["opened_same"] else "others"]
            found = [row[f"export {ending or 'folder'}"] for ending in FORMATS]
            cells += [" / ".join(f if isinstance(f, str) else f"{f:.1g}" for f in found)]
            cells += [said, f"{row['shrink_s']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("names", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="Write the table.")
def main(names: tuple[str, ...], out: Path | None) -> None:
    """Measure networks of transformers, all or those that are named."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    rows = []
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(name, Path(folder)))
        click.echo(json.dumps(rows[-1]))
    if out is not None:
        out.write_text(table(rows))


if __name__ == "__main__":
    main()
