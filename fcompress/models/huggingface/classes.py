"""Classes of the installed transformers, found by its own lists, and networks made of them.

A folder, or a file of fcompress, names a kind of network (`model_type`) and a class. Neither is
imported because of that: the kind is looked up in the list of configurations of the installed
package, the class in its lists of classes for that kind. Code beside the weights (`auto_map`) is
never run, and nothing is fetched.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fcompress.errors import ArchitectureError, CheckpointError, said_by

KIND = "hf"
# Tasks of the lists of transformers whose networks give scores of one of the kinds of answers.
_TASKS = (
    "IMAGE_CLASSIFICATION",
    "AUDIO_CLASSIFICATION",
    "SEQUENCE_CLASSIFICATION",
    "TOKEN_CLASSIFICATION",
    "MASKED_LM",
    "CAUSAL_LM",
)
# Entries of a configuration that lead to code, kernels or weights from elsewhere.
_LEADING_ELSEWHERE = frozenset(
    (
        "auto_map custom_pipelines quantization_config attn_implementation _attn_implementation "
        "_attn_implementation_internal _experts_implementation _experts_implementation_internal "
        "use_kernels use_pretrained_backbone backbone_kwargs _name_or_path name_or_path "
        "_commit_hash torch_dtype dtype adapters"
    ).split()
)
# A configuration that is nested deeper, or holds more, is none.
_DEEPEST = 20
_SHOWN = 3


def import_transformers() -> ModuleType:
    """The module transformers.

    Raises:
        ArchitectureError: It is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except Exception as error:  # what it stands on may be broken in any way
        raise ArchitectureError(
            f"transformers cannot be imported ({said_by(error)}); install it: "
            "pip install 'fcompress[hf]'"
        ) from error


def classes_of(model_type: str) -> list[str]:
    """Names of the classes of transformers that label, or give tokens, for a kind of network.

    Example:
        >>> "BertForMaskedLM" in classes_of("bert")  # doctest: +SKIP
        True
    """
    import_transformers()
    lists = importlib.import_module("transformers.models.auto.modeling_auto")
    found: list[str] = []
    for task in _TASKS:
        names = getattr(lists, f"MODEL_FOR_{task}_MAPPING_NAMES", {}).get(model_type, ())
        found += [names] if isinstance(names, str) else list(names)
    return list(dict.fromkeys(found))


def make(model_type: str, args: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """What builds a network, with weights that mean nothing yet.

    Args:
        model_type: The kind of network, as its configuration says it.
        args: {"class": a name, "config": its configuration}, as from `architecture_args`.

    Raises:
        ArchitectureError: transformers is not installed or does not know them.
    """
    made, config = _known(model_type, args)
    return partial(made, config)


def with_weights(
    model_type: str, args: Mapping[str, Any], state: Mapping[str, Tensor]
) -> nn.Module:
    """A network with its weights, in single precision and evaluation mode.

    Args:
        model_type: As for `make`.
        args: As for `make`.
        state: The weights, as transformers saved them.

    Raises:
        ArchitectureError: As for `make`.
        CheckpointError: Weights are missing or of another shape.
    """
    made, config = _known(model_type, args)
    quiet = importlib.import_module("transformers.utils.logging")
    level = quiet.get_verbosity()
    quiet.set_verbosity(100)
    quiet.disable_progress_bar()
    try:
        network, found = made.from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            output_loading_info=True,
            local_files_only=True,
            dtype="float32",
        )
    except Exception as error:  # of the code of transformers, by as many types
        raise CheckpointError(
            f"the weights do not fit {args['class']}: {said_by(error)}; give those that belong to "
            "the config.json"
        ) from error
    finally:
        quiet.set_verbosity(level)
        quiet.enable_progress_bar()
    _check_loaded(str(args["class"]), found)
    return network.float().eval()


def _check_loaded(name: str, found: Mapping[str, Any]) -> None:
    for key, what in (
        ("missing_keys", "lack"),
        ("mismatched_keys", "have another shape of"),
        ("error_msgs", "cannot be read:"),
    ):
        names = sorted(str(one[0] if isinstance(one, tuple) else one) for one in found.get(key, ()))
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise CheckpointError(
                f"the weights {what} {', '.join(names[:_SHOWN])}{more} for {name}; give those that "
                "belong to the config.json"
            )


def architecture_args(model: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """How a network of transformers was built, also where it was compressed since.

    Returns:
        `model_type` and the arguments of `make`; None for any other network, also one of a class
        that somebody derived.
    """
    if not _is_pretrained(type(model)):
        return None
    config: Any = model.config
    model_type, name = str(getattr(config, "model_type", "")), type(model).__name__
    try:
        if name not in classes_of(model_type) or _class(name) is not type(model):
            return None
    except ArchitectureError:
        return None
    said = json.loads(config.to_json_string(use_diff=False))
    args = {"class": name, "config": plain_config(said)}
    return (model_type, args) if _is_as_built(model, make(model_type, args)) else None


def _is_as_built(model: nn.Module, build: Callable[[], nn.Module]) -> bool:
    """Whether a network has the modules of its configuration, none exchanged by hand."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            built = build()
    except Exception:  # of the code of transformers, by as many types
        return False
    kinds = [[(name, type(part)) for name, part in n.named_modules()] for n in (model, built)]
    return kinds[0] == kinds[1]


def _is_pretrained(kind: type) -> bool:
    """Whether a class is one of transformers, which is not imported to find out."""
    return any(
        (base.__module__, base.__qualname__) == ("transformers.modeling_utils", "PreTrainedModel")
        for base in kind.__mro__
    )


def plain_config(said: Any, depth: int = 0) -> Any:
    """A configuration without entries that lead to code, kernels or weights from elsewhere.

    Raises:
        ArchitectureError: It is nested too deep.

    Example:
        >>> plain_config({"hidden_size": 8, "auto_map": {"AutoModel": "code.py"}})
        {'hidden_size': 8}
    """
    if depth > _DEEPEST:
        raise ArchitectureError("the configuration is nested too deep; it is damaged")
    if isinstance(said, Mapping):
        return {
            str(key): plain_config(value, depth + 1)
            for key, value in said.items()
            if key not in _LEADING_ELSEWHERE
        }
    if isinstance(said, list | tuple):
        return [plain_config(value, depth + 1) for value in said]
    return said


def _known(model_type: str, args: Mapping[str, Any]) -> tuple[Any, Any]:
    """A class and a configuration of transformers."""
    if set(args) != {"class", "config"} or not isinstance(args["config"], Mapping):
        raise ArchitectureError(
            f"{KIND}:{model_type}: expected {KIND}:DIR, a folder with config.json and weights in "
            "safetensors, and no --arch-args"
        )
    import_transformers()
    auto = importlib.import_module("transformers.models.auto.configuration_auto")
    offered = classes_of(model_type)
    if model_type not in auto.CONFIG_MAPPING_NAMES or not offered:
        raise ArchitectureError(
            f"model_type {model_type!r} is no network of the installed transformers that gives "
            "classes or tokens; code in the folder is never run, so bring a network of its own"
        )
    if args["class"] not in offered:
        raise ArchitectureError(
            f"{args['class']} is no class of transformers for {model_type}; expected one of "
            f"{', '.join(offered)}"
        )
    if args["config"].get("quantization_config"):
        raise ArchitectureError(f"{model_type}: quantised weights cannot be compressed")
    try:
        config = auto.CONFIG_MAPPING[model_type].from_dict(plain_config(args["config"]))
    except Exception as error:  # of the checks of transformers, by as many types
        raise ArchitectureError(
            f"the configuration of {args['class']} is no good: {said_by(error)}; restore it"
        ) from error
    return _class(args["class"]), config


def _class(name: str) -> Any:
    return getattr(import_transformers(), name, None)
