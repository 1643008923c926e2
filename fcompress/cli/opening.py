"""The network and the data that a command was given. Unlike the options it imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fcompress.cascades.network import FAMILY
from fcompress.checkpoints.cascaded import parts_of
from fcompress.checkpoints.checkpoint import load, read
from fcompress.checkpoints.weights import Weights, load_weights, read_weights
from fcompress.cli.boundary.ignored import check_networks
from fcompress.cli.boundary.paths import check_remembered
from fcompress.cli.network_options import NetworkOptions
from fcompress.data import Splits, load_data, reload_data
from fcompress.data.kinds import OWN
from fcompress.data.specs import parse
from fcompress.data.splits import OFFICIAL_TEST, UNDIVIDED
from fcompress.errors import CheckpointError, DataError
from fcompress.exports.opening import is_program, open_program
from fcompress.formats.safetensors import read_safetensors
from fcompress.models import Network
from fcompress.models.external import FORMS, Architecture, build_network, named
from fcompress.models.huggingface import is_folder, is_ours, read_state, with_weights
from fcompress.models.provenance import (
    Described,
    describe,
    described,
    note_reading,
    origin_of,
    reading_of,
    set_origin,
)


def _check_effect(how: NetworkOptions, networks: Sequence[nn.Module]) -> None:
    """Refuse options that say nothing about any of the networks."""
    foreign = any(described(network) is not None for network in networks)
    own = any(isinstance(network, Network) for network in networks)
    check_networks(vars(how), foreign, own)


def open_network(path: Path, how: NetworkOptions) -> nn.Module:
    """Read a network: a file of fcompress, or weights for an architecture that the user named.

    How its labels are read is noted, as the user said or as it was compressed with.

    Raises:
        FcompressError: The file or the architecture is no good, or one does not fit the other.
    """
    return _noted(_opened(path, how), how)


def _noted(network: nn.Module, how: NetworkOptions) -> nn.Module:
    """A network of which is noted how the user said that it is read."""
    said = how.asked
    if how.output is not None or said.kind is not None:
        noted: dict[str, Any] = reading_of(network) or {"output": None, "labels": None}
        if said.kind is not None:
            noted = {
                "output": noted["output"],
                "labels": said.kind,
                "within": said.within,
                "cosine": said.cosine,
                "same": said.same,
                "divergence": said.divergence,
                "score": said.score,
                "iou": said.iou,
                "threshold": said.threshold,
                "pad": said.pad,
            }
        note_reading(network, **{**noted, "output": how.output or noted["output"]})
    return network


def open_shipped(path: Path, how: NetworkOptions) -> nn.Module:
    """`open_network`, or a program: what is compared and not compressed.

    Raises:
        FcompressError: As for `open_network` and `open_program`.
    """
    if not is_program(path):
        return open_network(path, how)
    return _noted(open_program(path, trust_pickle=how.trust_pickle), how)


def _opened(path: Path, how: NetworkOptions) -> nn.Module:
    architecture = how.architecture
    if is_folder(path) and not is_ours(path):
        return _of_transformers(path, path, architecture or named(f"hf:{path}", {}))
    if architecture is None and not how.trust_pickle:
        return load(path)
    kept = _kept(path)
    if kept is not None:
        if architecture is None or kept.partition(":")[1] == "":
            return load(path)
        make = _make(architecture, how)
        # Arguments that are not given are those in the file.
        args = None if how.arch_args is None else architecture.args
        return load(path, arch=make or architecture.name, arch_args=args)
    if architecture is not None and architecture.kind == "hf":
        return _of_transformers(path, None, architecture)
    weights = read_weights(path, trust_pickle=how.trust_pickle, key=how.weights_key)
    make = None if architecture is None else _make(architecture, how)
    if weights.module is not None and (architecture is None or make is not None):
        network = weights.module.float() if _is_half(weights.module) else weights.module
        describe(network.eval(), Described(Architecture(f"pickle:{path.name}")))
        return network
    if architecture is None:
        raise CheckpointError(
            f"{path}: holds weights without their network; name its architecture by --arch: {FORMS}"
        )
    network = build_network(architecture) if make is None else make().eval()
    if weights.module is not None:
        weights = Weights(weights.module.state_dict())
    load_weights(network, weights, f"{path} and {architecture}")
    describe(network, Described(architecture))
    return network


def _of_transformers(path: Path, folder: Path | None, architecture: Architecture) -> nn.Module:
    """A network of transformers: the weights of a folder, or of a file in safetensors."""
    if architecture.kind != "hf":
        raise CheckpointError(f"{path} says itself how its network is built; leave out --arch")
    state = read_state(folder) if folder is not None else read_safetensors(path)[0]
    kind = architecture.name.partition(":")[2]
    try:
        network = with_weights(kind, architecture.args, state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    describe(network, Described(architecture))
    return network


def _kept(path: Path) -> str | None:
    """The family in a file of fcompress, of a cascade its original's; None for any other file."""
    try:
        found = read(path)
        return parts_of(found)["original"].family if found.family == FAMILY else found.family
    except CheckpointError:
        return None


def _make(architecture: Architecture, how: NetworkOptions) -> Callable[[], nn.Module] | None:
    """What builds a network out of somebody's pickle; None for all other architectures."""
    kind, _, name = architecture.name.partition(":")
    if kind != "pickle":
        return None
    if not how.trust_pickle:
        raise CheckpointError(
            f"--arch {architecture.name} opens a pickle, which may run any code; add "
            "--trust-pickle if you trust who wrote it"
        )
    return partial(_unpickled, Path(name))


def _unpickled(path: Path) -> nn.Module:
    module = read_weights(path, trust_pickle=True).module
    if module is None:
        raise CheckpointError(f"{path}: holds no whole network; expected the pickle of one")
    return module


def _is_half(network: nn.Module) -> bool:
    return any(p.is_floating_point() and p.element_size() < 4 for p in network.parameters())


def open_data(
    networks: Sequence[nn.Module],
    path: Path,
    how: NetworkOptions,
    spec: str | None,
    root: Path | None,
    roles: str,
    *,
    say: Callable[[str], object] = lambda line: None,
) -> Splits:
    """The data that the user named, or that a network remembers; the networks remember it too.

    Args:
        networks: The networks at hand, the first of which should remember its data.
        path: File of the first, for errors.
        how: What the user said.
        spec: Data that the user named.
        root: Folder in which datasets are looked for first.
        roles: How a user's own data is cut (`load_data`).
        say: Told what the user should know.

    Raises:
        DataError: There is none, or it does not fit.
    """
    _check_effect(how, networks)
    # A compressed network remembers what weights of others, which it was made from, cannot.
    asked = networks if described(networks[0]) is not None else networks[:1]
    remembered = next((d for n in asked if (d := origin_of(n)["data"])), None)
    own = next((r.architecture for n in networks if (r := described(n)) is not None), None)
    if remembered is not None and spec is None:
        check_remembered(remembered["spec"])
    preprocess = how.preprocess(own)
    spec = _with_tokenizer(spec, path, how)
    if spec is None and remembered is None:
        raise DataError(f"{path} does not remember its data; name some by --data")
    if spec is None and (preprocess, how.seen, how.groups) == (None, None, None):
        assert remembered is not None
        splits = reload_data(remembered, root=root)
        _note_gallery(networks, how, splits, root, roles)
        return splits
    splits = load_data(
        spec or (remembered or {})["spec"],
        root=root,
        roles=roles,
        like=remembered,
        preprocess=preprocess,
        seen=how.seen or _likely_seen(spec, remembered, ours=own is None),
        groups=how.groups,
    )
    _say_origin(splits, how, remembered, say)
    if own is not None:
        _check_shape(how, splits)
        if remembered is None and str(splits.info["standardised_by"]).endswith(" split"):
            say(
                "Mean and deviation of each channel are measured on this data; if the network was "
                "trained on others, say so by --transform, or --mean and --std."
            )
        for network in networks:
            if described(network) is not None:
                set_origin(network, splits.info, origin_of(network)["history"])
    _note_gallery(networks, how, splits, root, roles)
    return splits


def _with_tokenizer(spec: str | None, path: Path, how: NetworkOptions) -> str | None:
    """A spec of texts, with the tokeniser of the network's folder where it names none."""
    if spec is None or parse(spec)[0].name != "text" or "tokenizer" in parse(spec)[2]:
        return spec
    kind, _, place = (how.arch or "").partition(":")
    folder = Path(place) if kind == "hf" else path
    return f"{spec},tokenizer={folder}" if folder.is_dir() else spec


def _note_gallery(
    networks: Sequence[nn.Module],
    how: NetworkOptions,
    splits: Splits,
    root: Path | None,
    roles: str,
) -> None:
    """Note on networks what embeddings are looked up in: all examples of the data of --gallery.

    Raises:
        DataError: It is the very data that the networks are compared on.
    """
    if how.gallery is None:
        return
    found = load_data(how.gallery, root=root, roles=roles, like=splits.info)
    if found.info["sha256"] == splits.info["sha256"]:
        raise DataError(
            f"--gallery {how.gallery} is the data itself, and an example is its own nearest "
            "neighbour; give other data, or leave it out for a part of the calibration examples"
        )
    parts = found.present().values()
    inputs = torch.cat([inputs for part in parts for inputs, _ in part.batches()])
    for network in networks:
        note_reading(network, **{**(reading_of(network) or {}), "gallery": inputs})


def _likely_seen(
    spec: str | None, remembered: Mapping[str, Any] | None, *, ours: bool
) -> str | None:
    """What a network has seen of named data, where neither it nor the user says.

    Networks of fcompress were trained on what they remember; of all others it is safe to suppose
    that they were trained on the official training split.
    """
    if remembered is None:
        return "train"
    same = spec is None or parse(spec)[0].name == parse(remembered["spec"])[0].name
    return None if ours or same else "train"


def _say_origin(
    splits: Splits,
    how: NetworkOptions,
    remembered: Mapping[str, Any] | None,
    say: Callable[[str], object],
) -> None:
    """Say which examples a network of unknown training is certified on."""
    info = splits.info
    name = parse(info["spec"])[0].name
    if how.seen is not None or remembered is not None or name in OWN:
        return
    if info["drawn_from"].get("certification") == OFFICIAL_TEST:
        sizes = info["sizes"]
        say(
            f"Search and certification examples are {sizes['search']:,} and "
            f"{sizes['certification']:,} of {name}'s official test split, since the network may "
            f"have been trained on the training split (the other {sizes['test']:,} are the test "
            "split); if it was trained elsewhere, say so by --seen none."
        )
    elif info["drawn_from"].get("certification") == UNDIVIDED:
        say(
            f"{name} has no official test split: the certificate holds if the network was not "
            "trained on the examples that it is certified on."
        )


def _check_shape(how: NetworkOptions, splits: Splits) -> None:
    shape = tuple(splits.info["shape"])
    if how.input_shape is not None and shape != how.input_shape:
        raise DataError(
            f"--input-shape {list(how.input_shape)}, but the examples are {list(shape)}; bring "
            "other data, or leave it out"
        )
