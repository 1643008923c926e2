"""Networks of other people: what they are called, and building them by that name.

Five kinds of names:

    torchvision:NAME              a builder registered in torchvision
    timm:NAME                     a builder registered in timm
    hf:DIR                        a folder of transformers (`huggingface/`)
    path/to/file.py:make_net      a function or class in a file
    package.module:make_net       a function or class that can be imported

The first three are registered builders and safe to take from a file that somebody sent, in which
`hf:KIND` stands beside the content of a config.json; weights are never downloaded. The last two
run the code that they name, so they are only ever resolved when the user typed the name.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn.modules import module as torch_module

from fcompress.arguments.numbers import WrongType
from fcompress.errors import (
    ArchitectureError,
    FcompressError,
    UnsupportedNetworkError,
    code_of_users,
    said_by,
)
from fcompress.models import huggingface

REGISTERED = ("torchvision", "timm", "hf")
FORMS = "torchvision:NAME, timm:NAME, hf:DIR, path/to/file.py:FUNCTION or package.module:FUNCTION"
# Arguments of registered builders that fetch weights or open files; weights come from the user.
_FETCHING = frozenset(
    (
        "weights weights_backbone pretrained pretrained_backbone pretrained_cfg "
        "pretrained_cfg_overlay pretrained_strict checkpoint_path cache_dir progress quantize"
    ).split()
)


@dataclass(frozen=True)
class Architecture:
    """What a network is called and how it is built.

    Attributes:
        name: In one of the forms of this module.
        args: Keyword arguments of the builder, plain values.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What stands before the colon for registered builders, else "code"."""
        kind = self.name.partition(":")[0]
        return kind if kind in REGISTERED else "code"

    def __str__(self) -> str:
        if self.kind == "hf" and "class" in self.args:
            return str(self.args["class"])
        args = ", ".join(f"{name}={value!r}" for name, value in self.args.items())
        return f"{self.name}({args})" if args else self.name


def parse_args(text: str | None) -> dict[str, Any]:
    """Read the arguments of a builder from a JSON object.

    Raises:
        ArchitectureError: It is not a JSON object.
    """
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArchitectureError(
            f"--arch-args {text}: not JSON ({error}); expected an object as in "
            """'{"num_classes": 10}'"""
        ) from error
    if not isinstance(found, dict):
        raise ArchitectureError(
            f"--arch-args {text}: expected a JSON object as in " """'{"num_classes": 10}'"""
        )
    return found


def named(name: str, args: dict[str, Any]) -> Architecture:
    """The architecture that a user names, a folder of transformers by what its config.json says.

    Args:
        name: In one of the forms of this module.
        args: Arguments of the builder.

    Raises:
        ArchitectureError: A folder is no good.
    """
    kind, _, place = name.partition(":")
    if kind != "hf":
        return Architecture(name, args)
    if args:
        raise ArchitectureError(
            f"--arch {name}: its config.json has the arguments; leave out --arch-args"
        )
    model_type, found = huggingface.read_folder(Path(place).expanduser())
    return Architecture(f"hf:{model_type}", found)


def build_network(architecture: Architecture) -> nn.Module:
    """Build a network with weights that mean nothing yet, in evaluation mode.

    The global random state and the default dtype stay as they were. Code that the name names is
    imported and run: take names from the user only, never from a file, unless `kind` is one of
    `REGISTERED`.

    Args:
        architecture: The name and its arguments.

    Raises:
        ArchitectureError: There is no such builder, it fails, or it gives no network.
    """
    with _paths(architecture), _settings_kept():
        make = _builder(architecture)

        def failed(error: BaseException) -> ArchitectureError:
            return ArchitectureError(
                f"{architecture} cannot be built: {said_by(error)}; check the arguments "
                "(--arch-args)"
            )

        with code_of_users(failed), torch.random.fork_rng(devices=[]):
            network = make()
        if not isinstance(network, nn.Module):
            raise ArchitectureError(
                f"{architecture.name} gives a {type(network).__name__}; expected a function or "
                "class that returns a torch.nn.Module"
            )
        check_layers(network)
        check_weights(network, shapes=True)
        with code_of_users(failed):
            return network.eval()


def check_layers(network: nn.Module) -> None:
    """See that a network is made of layers that can be changed.

    Raises:
        WrongType: It is no network.
        UnsupportedNetworkError: Some of it is TorchScript.

    Example:
        >>> check_layers(nn.Linear(2, 1))
    """
    if not isinstance(network, nn.Module):
        raise WrongType(f"a model of type {type(network).__name__}: expected a torch.nn.Module")
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedNetworkError(
                f"{f'the layer {name}' if name else 'the network'} is a TorchScript program, whose "
                "layers can no longer be changed; give the module that it was made from"
            )


def check_weights(network: nn.Module, *, shapes: bool = False) -> None:
    """See that all weights of a network are there.

    Args:
        network: Any network.
        shapes: Whether shapes without values (the device meta) are enough.

    Raises:
        UnsupportedNetworkError: They are not.

    Example:
        >>> check_weights(nn.Sequential(nn.LazyLinear(3)))
        Traceback (most recent call last):
            ...
        fcompress.errors.UnsupportedNetworkError: 0.weight does not exist before the first \
forward; run the network once on an example, or give its layers their sizes
    """
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise UnsupportedNetworkError(
                f"{name} does not exist before the first forward; run the network once on an "
                "example, or give its layers their sizes"
            )
        if tensor.is_meta and not shapes:
            raise UnsupportedNetworkError(
                f"{name} has a shape and no values (device meta); build the network on the CPU, "
                "then load its weights"
            )


@contextmanager
def _settings_kept() -> Iterator[None]:
    """What code of anybody's may set for the whole process comes back: types, folder, warnings."""
    dtype, device, folder = torch.get_default_dtype(), torch.get_default_device(), Path.cwd()
    gradients = torch.is_grad_enabled()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about weights that will be replaced
            yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        torch.set_grad_enabled(gradients)
        os.chdir(folder)


@contextmanager
def bounded(most: int) -> Iterator[None]:
    """Refuse to build networks of more than so many modules and parameters.

    The arguments in a file may ask for a million layers.

    Raises:
        ArchitectureError: More were registered.
    """
    count = 0

    def note(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise ArchitectureError(
                "its architecture has far more layers than the file has tensors; "
                "the file is damaged"
            )

    hooks = [
        torch_module.register_module_module_registration_hook(note),
        torch_module.register_module_parameter_registration_hook(note),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _builder(architecture: Architecture) -> Callable[[], Any]:
    """A function without arguments that builds the network."""
    if architecture.kind == "torchvision":
        return _of_torchvision(architecture)
    if architecture.kind == "timm":
        return _of_timm(architecture)
    if architecture.kind == "hf":
        return huggingface.make(architecture.name.partition(":")[2], architecture.args)
    return partial(_of_code(architecture.name), **architecture.args)


def _without_fetching(architecture: Architecture) -> None:
    for name in architecture.args:
        if name in _FETCHING:
            raise ArchitectureError(
                f"{architecture.name}: the argument {name!r} would fetch or open something; "
                "leave it out, weights come from the file"
            )


def _of_torchvision(architecture: Architecture) -> Callable[[], Any]:
    name = architecture.name.partition(":")[2]
    _without_fetching(architecture)
    known = torchvision.models.list_models()
    if name not in known:
        raise ArchitectureError(f"torchvision has no network {_closest(name, known)}")
    make = torchvision.models.get_model_builder(name)
    arguments = dict(architecture.args)
    # Their defaults would download weights, or draw weights slowly that are replaced anyway.
    takes = inspect.signature(make).parameters
    for key in ("weights", "weights_backbone"):
        if key in takes:
            arguments[key] = None
    if name in ("inception_v3", "googlenet"):
        arguments.setdefault("init_weights", False)
    return partial(make, **arguments)


def _of_timm(architecture: Architecture) -> Callable[[], Any]:
    name = architecture.name.partition(":")[2]
    _without_fetching(architecture)
    timm = import_timm()
    # Names with a scheme (hf-hub:, local-dir:) would read configurations from elsewhere.
    if ":" in name or "/" in name or not timm.is_model(name):
        raise ArchitectureError(f"timm has no network {_closest(name, timm.list_models())}")
    return partial(timm.create_model, name, pretrained=False, **architecture.args)


def import_timm() -> ModuleType:
    """The module timm.

    Raises:
        ArchitectureError: It is not installed.
    """
    try:
        return importlib.import_module("timm")
    except Exception as error:  # what timm stands on may be broken in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArchitectureError(
            f"timm cannot be imported ({reason}); install it: pip install 'fcompress[timm]'"
        ) from error


def _closest(name: str, known: list[str]) -> str:
    """The wrong name and the closest right ones, few of many hundreds."""
    near = difflib.get_close_matches(name, known, 5) or [other for other in known if name in other]
    hint = f"; did you mean {', '.join(near[:5])}?" if near else ""
    return f"{name!r}{hint}"


def _of_code(name: str) -> Callable[..., Any]:
    """The function or class that a name of the user's own code means."""
    place, colon, what = name.rpartition(":")
    if not colon or not place or not what:
        raise ArchitectureError(f"--arch {name}: expected {FORMS}")
    if place == "pickle":
        raise ArchitectureError(
            f"{name} is somebody's pickle, which is only opened with --trust-pickle (in Python: "
            "load(path, arch=...) with a function that opens it)"
        )
    module = _module_of_file(Path(place)) if place.endswith(".py") else _module(place)
    found: Any = module
    for part in what.split("."):
        with code_of_users(partial(_import_error, name)):  # a `__getattr__` of anybody's
            known = hasattr(found, part)
        if not known:
            offers = sorted(
                key
                for key, value in vars(module).items()
                if callable(value) and getattr(value, "__module__", None) == module.__name__
            )
            raise ArchitectureError(
                f"{place} has no {what!r}; it has: {', '.join(offers) or 'nothing callable'}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise ArchitectureError(
            f"{name} is a {type(found).__name__}; expected a function or class that returns a "
            "torch.nn.Module"
        )
    return found


def function_of(name: str) -> Callable[..., Any]:
    """A function of the user's own code, as --same names it; the code is imported and run.

    Args:
        name: path/to/file.py:FUNCTION or package.module:FUNCTION, from the user only.

    Raises:
        ArchitectureError: There is none, or what it stands in cannot be imported.
    """
    with _paths(Architecture(name)), _settings_kept():
        try:
            return _of_code(name)
        except ArchitectureError as error:
            forms = "path/to/file.py:FUNCTION or package.module:FUNCTION"
            reason = str(error).replace("--arch", "--same").replace(FORMS, forms)
            raise ArchitectureError(reason) from error


def _module_of_file(path: Path) -> ModuleType:
    path = path.expanduser().absolute()
    if not path.is_file():
        raise ArchitectureError(f"--arch: there is no file {path}; expected {FORMS}")
    # A name of its own: the file must not hide a module that happens to be called the same.
    name = f"_fcompress_of_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        with code_of_users(partial(_import_error, str(path))):
            specification.loader.exec_module(module)
    except FcompressError:
        sys.modules.pop(name, None)
        raise
    return module


def _module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ArchitectureError(f"--arch: {name!r} is no module; expected {FORMS}")
    with code_of_users(partial(_import_error, name)):
        return importlib.import_module(name)


def _import_error(name: str, error: BaseException) -> ArchitectureError:
    return ArchitectureError(
        f"{name} cannot be imported: {said_by(error)}; "
        "run where its imports are found, and check the name"
    )


@contextmanager
def _paths(architecture: Architecture) -> Iterator[None]:
    """What a script of the user would find: modules beside the file, and in this folder."""
    place = architecture.name.rpartition(":")[0]
    if architecture.kind != "code" or not place:
        yield
        return
    own = Path(place).expanduser().absolute().parent if place.endswith(".py") else Path.cwd()
    before = list(sys.path)
    sys.path.insert(0, str(own))
    try:
        yield
    finally:
        sys.path[:] = before
