"""Forwards that take a width from their input, made to infer it instead.

Attention is often written as

    B, N, C = x.shape
    q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).unbind(2)
    ...
    x = x.transpose(1, 2).reshape(B, N, C)

where `C` stands for the width of the heads together, which is the width of the input only as long
as all heads are there. In a `reshape` or `view` any one size may be left to torch (-1), without
any change to what it computes; `inferring` leaves it the width. Only classes whose source can be
read are rewritten, and only methods without closures or decorators.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from torch import nn

Maker = Callable[..., "type[nn.Module] | None"]

_inferring: dict[type[nn.Module], type[nn.Module] | None] = {}

# What the width of a stream is called, among the names of its other sizes.
_WIDTHS = frozenset("c d ch dim channels embed_dim hidden hidden_dim hidden_size features".split())


def inferring(kind: type[nn.Module]) -> type[nn.Module] | None:
    """A subclass of `kind` whose reshapes infer the width; None if there is nothing to change.

    Args:
        kind: A module's class.
    """
    if kind not in _inferring:
        _inferring[kind] = _subclass_that_infers(kind)
    return _inferring[kind]


def _subclass_that_infers(kind: type[nn.Module]) -> type[nn.Module] | None:
    methods: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("torch.") or not issubclass(base, nn.Module):
            continue
        for name, method in vars(base).items():
            rewritten = _rewritten(method) if isinstance(method, FunctionType) else None
            if rewritten is not None:
                methods[name] = rewritten
            else:
                methods.pop(name, None)
    return subclass(kind, inferring, methods) if methods else None


def subclass(
    kind: type[nn.Module], maker: Maker, methods: Mapping[str, Any], *mixins: type[nn.Module]
) -> type[nn.Module]:
    """A class that stands in for `kind` under its name.

    Args:
        kind: The class.
        maker: A function of a module that makes the same of `kind` again, for pickle.
        methods: What is new.
        mixins: Classes that go before `kind`.
    """

    def reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
        return _revive, (maker, kind), self.__dict__

    own = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__reduce_ex__": reduce,
    }
    return type(kind.__name__, (*mixins, kind), {**own, **methods})


def _revive(maker: Maker, kind: type[nn.Module]) -> nn.Module:
    """An empty module of the class that `maker` makes of `kind`."""
    made = maker(kind) or kind
    return made.__new__(made)


def _rewritten(method: FunctionType) -> FunctionType | None:
    """The method with sizes inferred; None if it has nothing of the kind or cannot be read."""
    if method.__closure__ or hasattr(method, "__wrapped__"):
        return None
    try:
        source = textwrap.dedent(inspect.getsource(method))
        function = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    if not isinstance(function, ast.FunctionDef) or function.decorator_list:
        return None
    widths = _Widths()
    widths.visit(function)
    if not widths.names:
        return None
    reshapes = _Reshapes(widths.names, widths.parts)
    function = reshapes.visit(function)
    if not reshapes.changed:
        return None
    function.returns = None
    arguments = function.args
    for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
        argument.annotation = None
    arguments.defaults, arguments.kw_defaults = [], [None] * len(arguments.kwonlyargs)
    ast.increment_lineno(function, method.__code__.co_firstlineno - 1)
    # Within a class of the same name, so that names like self.__x mean what they did.
    holder = ast.parse(f"class {_owner(method)}: pass")
    assert isinstance(holder.body[0], ast.ClassDef)
    holder.body[0].body = [function]
    ast.fix_missing_locations(holder)
    made: dict[str, Any] = {}
    compiled = compile(holder, method.__code__.co_filename, "exec", dont_inherit=True)
    exec(compiled, dict(method.__globals__), made)
    new = vars(made[_owner(method)])[method.__name__]
    # The globals of the original, not a copy of them: they may change later.
    rebuilt = FunctionType(
        new.__code__, method.__globals__, method.__name__, method.__defaults__, None
    )
    rebuilt.__kwdefaults__ = method.__kwdefaults__
    rebuilt.__qualname__, rebuilt.__doc__ = method.__qualname__, method.__doc__
    return rebuilt


def _owner(method: FunctionType) -> str:
    return method.__qualname__.split(".")[-2]


class _Widths(ast.NodeVisitor):
    """Names that hold the width of a tensor (`B, N, C = x.shape`), and parts of it."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.parts: set[str] = set()

    def visit_Assign(self, node: ast.Assign) -> None:
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Tuple) and _is_shape(value):
            names = [e.id if isinstance(e, ast.Name) else "" for e in target.elts]
            named = [n for n in names if n.lower().rstrip("_") in _WIDTHS]
            self.names.update(named or names[-1:])
        elif isinstance(target, ast.Name):
            if _is_shape(value, indexed=True) and target.id.lower().rstrip("_") in _WIDTHS:
                self.names.add(target.id)
            elif _is_part(value, self.names):
                self.parts.add(target.id)
        self.names.discard("")
        self.generic_visit(node)


class _Reshapes(ast.NodeTransformer):
    """Leaves one size of a reshape to torch: the width or a part of it."""

    def __init__(self, widths: set[str], parts: set[str]) -> None:
        self._widths = widths
        self._parts = parts
        self.changed = False

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.func, ast.Attribute) or node.func.attr not in ("reshape", "view"):
            return node
        sizes = node.args
        if len(sizes) == 1 and isinstance(sizes[0], (ast.Tuple, ast.List)):
            sizes = sizes[0].elts
        if len(sizes) < 2 or node.keywords or any(_is_open(size) for size in sizes):
            return node
        at = self._choose(sizes)
        if at is not None:
            sizes[at] = ast.copy_location(ast.parse("-1", mode="eval").body, sizes[at])
            self.changed = True
        return node

    def _choose(self, sizes: list[ast.expr]) -> int | None:
        """Which size to infer: a part of the width if there is one, else the width."""
        for at, size in enumerate(sizes):
            if _is_part(size, self._widths) or _named(size) in self._parts:
                return at
        for at in reversed(range(len(sizes))):
            if _named(sizes[at]) in self._widths:
                return at
        return None


def _named(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _is_shape(node: ast.AST, *, indexed: bool = False) -> bool:
    """`x.shape` or `x.size()`; indexed: `x.shape[i]` or `x.size(i)`."""
    if indexed and isinstance(node, ast.Subscript):
        return _is_shape(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr == "size" and bool(node.args) == indexed
    return not indexed and isinstance(node, ast.Attribute) and node.attr == "shape"


def _is_part(node: ast.AST, widths: set[str]) -> bool:
    """Whether it is `C // heads`."""
    return (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.FloorDiv)
        and _named(node.left) in widths
    )


def _is_open(size: ast.expr) -> bool:
    """A size that is left to torch already, or several sizes in one."""
    try:
        return isinstance(size, ast.Starred) or ast.literal_eval(size) == -1
    except ValueError:
        return False
