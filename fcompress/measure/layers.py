"""Which layers of a network are measured, and what counts as a unit of each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from fcompress.errors import UnsupportedNetworkError
from fcompress.forward.predictor import Predictor, as_predictor
from fcompress.measure.hooks import Call, trace_calls

ACTIVATIONS = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.RReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
    nn.Threshold,
)
CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

BY_NETWORK = "the layers that the network's family names"
BY_CALLER = "the layers that the caller named"
BY_ACTIVATION = "the output of every activation module"
BY_WEIGHT = (
    "the output of every convolution and linear module but the last, "
    "because the network has no activation modules"
)


@dataclass(frozen=True)
class Layer:
    """One layer's output, as it is measured.

    Attributes:
        name: Address, as `capture` takes it.
        shape: Shape of the output for one example.
        axis: The dimension of `shape` along which neurons or feature maps lie.
    """

    name: str
    shape: tuple[int, ...]
    axis: int

    @property
    def maps(self) -> int:
        """Neurons or feature maps: the units of docs/protocol.md section 2."""
        return self.shape[self.axis]

    @property
    def elements(self) -> int:
        """Elements of the output for one example: the units of docs/protocol.md section 1."""
        return prod(self.shape)


@dataclass(frozen=True)
class Skipped:
    """Something that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Layers:
    """The layers of one measurement, in order of execution.

    Attributes:
        measured: The layers.
        rule: By which rule they were chosen, in words.
        skipped: Layers that the rule would take but that cannot be measured.
    """

    measured: tuple[Layer, ...]
    rule: str
    skipped: tuple[Skipped, ...]


def ablation_layers(
    model: nn.Module | Predictor, inputs: Tensor, names: Sequence[str] | None = None
) -> Layers:
    """Find the layers whose units are ablated: every hidden activation (docs/protocol.md 1.2).

    Args:
        model: A network of the registry names its layers itself; of any other one, every
            execution of an activation module is a layer, or, if it has no such modules, of a
            convolution or linear module but the last.
        inputs: [n, ...], a small batch on the network's device; two examples or more, so that a
            dimension that is not the batch is recognised.
        names: Take these layers instead.

    Raises:
        UnsupportedNetworkError: There is no layer to measure.
    """
    predictor = as_predictor(model)
    own = getattr(predictor.network, "ablation_layers", None)
    return _find(predictor, inputs, names, own)


def redundancy_layers(
    model: nn.Module | Predictor, inputs: Tensor, names: Sequence[str] | None = None
) -> Layers:
    """Find the layers whose activations are analysed for redundancy (docs/protocol.md 2.5).

    Arguments and errors as for `ablation_layers`. Networks of the registry name them; of any
    other one they are the same layers that are ablated.
    """
    predictor = as_predictor(model)
    own = getattr(predictor.network, "redundancy_layers", None)
    return _find(predictor, inputs, names, own)


def _find(
    predictor: Predictor,
    inputs: Tensor,
    names: Sequence[str] | None,
    own_names: Sequence[str] | None,
) -> Layers:
    with predictor.evaluating():
        calls = trace_calls(predictor, inputs)
    repeated = Counter(call.name for call in calls)
    addresses = {
        _address(call, repeated[call.name]): position for position, call in enumerate(calls)
    }
    if names is None and own_names is not None:
        names, rule = own_names, BY_NETWORK
    elif names is not None:
        rule = BY_CALLER
    else:
        chosen = [call for call in calls if isinstance(call.module, ACTIVATIONS)]
        rule = BY_ACTIVATION
        if not chosen:
            rule = BY_WEIGHT
            chosen = [c for c in calls if isinstance(c.module, (*CONVOLUTIONS, nn.Linear))][:-1]
        names = [_address(call, repeated[call.name]) for call in chosen]

    measured, skipped = [], []
    for name in sorted(names, key=lambda name: addresses.get(name, -1)):
        if name not in addresses:
            known = ", ".join(addresses)
            raise UnsupportedNetworkError(
                f"{predictor.name} runs no layer {name!r}; it runs {known}"
            )
        position = addresses[name]
        reason = _unfit(calls[position], len(inputs))
        if reason:
            skipped.append(Skipped(name, reason))
        else:
            shape = calls[position].shape or ()
            measured.append(Layer(name, shape[1:], _axis(calls[: position + 1])))
    if not measured:
        why = "; ".join(f"{s.name}: {s.reason}" for s in skipped) or "it has no hidden layer"
        raise UnsupportedNetworkError(
            f"{predictor.name} has no layer to measure ({why}); name layers of it"
        )
    return Layers(tuple(measured), rule, tuple(skipped))


def _address(call: Call, times: int) -> str:
    return call.name if times == 1 else f"{call.name}#{call.number}"


def _unfit(call: Call, examples: int) -> str | None:
    """Why the output of a call cannot be measured, or None."""
    if call.shape is None:
        return "its output is not one tensor of floating point numbers"
    if len(call.shape) < 2 or call.shape[0] != examples:
        return f"its output {list(call.shape)} does not have the examples as first dimension"
    if call.is_output:
        return "it is the network's output"
    return None


def _axis(calls: Sequence[Call]) -> int:
    """Dimension of the units in the output of the last of some calls, the batch not counted.

    Convolutions put channels first and linear layers put features last, so what ran last before
    decides where both are possible ([n, tokens, features] against [n, channels, length]).
    """
    shape = (calls[-1].shape or ())[1:]
    for call in reversed(calls):
        if isinstance(call.module, nn.Linear) and shape[-1] == call.module.out_features:
            return len(shape) - 1
        if isinstance(call.module, CONVOLUTIONS) and shape[0] == call.module.out_channels:
            return 0
        if isinstance(call.module, (*CONVOLUTIONS, nn.Linear)):
            break
    return len(shape) - 1 if len(shape) == 2 else 0
