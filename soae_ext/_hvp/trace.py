"""Compile a curvature product: trace it once, drop dead code, split it where the direction enters.

``torch.fx``'s ``make_fx`` records the ATen operators of loss, gradient and product. Autograd computes much that nobody
asked for (the weight gradient of every convolution, for one); dead-code elimination removes it. What does not depend
on the direction v is the linearisation and runs once per point, what depends on v is the product. The remaining
operators are those of eager double backward in the same order, so the result is the same to rounding.

Anything the graph would freeze wrongly is refused while tracing (``Untraceable``): reading a tensor's value in Python,
shapes that depend on values, random numbers, writes to tensors from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from soae_ext._hvp.curvature import Problem, differentiable

_READS = frozenset(
    getattr(Tensor, name) for name in ("item", "tolist", "numpy", "__array__", "__dlpack__") if hasattr(Tensor, name)
)
_ALIASES = frozenset({torch.ops.aten.detach.default, torch.ops.aten.alias.default})


class Untraceable(Exception):
    """The loss does something that a recorded graph cannot repeat; the text says what."""


@dataclass(frozen=True)
class CompiledProduct:
    """Two static graphs. Inputs are ``x``, the tensors in the loss's arguments and the captured tensors.

    ``linearize(*inputs)`` returns (losses, gradient, *saved); ``apply(v, *saved, *[inputs[i] for i in direct])``
    returns the product, or is ``None`` where the curvature is identically zero. ``captured`` holds, for each tensor
    that the loss reaches by itself, its path in the fingerprint, or the tensor where it is a constant of the trace.
    """

    linearize: Callable[..., tuple[Tensor, ...]]
    apply: Callable[..., Tensor] | None
    captured: tuple[str | Tensor, ...]
    direct: tuple[int, ...]


class _ReadGuard(TorchFunctionMode):
    """Refuses to hand a tensor's values to Python."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _READS:
            raise Untraceable(f"it reads the values of a tensor (Tensor.{func.__name__})")
        return func(*args, **(kwargs or {}))


class _OperatorGuard(TorchDispatchMode):  # type: ignore[no-untyped-call]  # no types in torch
    """Refuses, before it runs, an operator that would make the graph depend on values or change the outside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # no types in torch
        self._made: set[int] = set()  # storages that came into being during the trace

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.data_dependent_output in func.tags:
            raise Untraceable(f"its control flow depends on the values of a tensor ({func})")
        if torch.Tag.dynamic_output_shape in func.tags:
            raise Untraceable(f"a shape depends on the values of a tensor ({func})")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Untraceable(f"it draws random numbers ({func})")
        given = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        if "batch_norm" in func.name() and given.get("training") and given.get("running_mean") is not None:
            raise Untraceable("batch normalisation is in training mode (call model.eval())")
        before = {_storage(t) for t in _tensors([*args, *kwargs.values()])}
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = {_storage(t) for t in _tensors([given.get(argument.name)])}
                if not written <= self._made:
                    raise Untraceable(
                        f"it writes to a tensor that it did not create ({func}): "
                        "call model.eval() if this is batch normalisation"
                    )
        result = func(*args, **kwargs)
        self._made |= {_storage(t) for t in _tensors([result])} - before
        return result


@contextmanager
def guarded() -> Iterator[None]:
    """Raises `Untraceable` where what runs inside could not be recorded as a graph."""
    with _ReadGuard(), _OperatorGuard():
        yield


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse, or autograd's zero without memory
        return id(tensor)


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(_tensors(value))
    return found


def compile_product(
    problem: Problem,
    x: Tensor,
    tensors: Sequence[Tensor],
    rebuild: Callable[[Sequence[Tensor]], tuple[Any, ...]],
    reachable: Mapping[str, Tensor],
) -> CompiledProduct:
    """Trace ``problem`` at ``x``; ``rebuild(tensors)`` gives the loss's arguments, ``reachable`` names its tensors.

    Raises ``Untraceable`` with the reason, or whatever the loss itself raises.
    """
    try:
        from torch.fx.experimental.proxy_tensor import make_fx
    except ImportError as error:
        raise Untraceable(f"this version of torch has no make_fx ({error})") from error

    def full(x: Tensor, v: Tensor, *leaves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with guarded(), differentiable(x.device):
            losses, slope, product = problem.expand(x.detach().requires_grad_(), *rebuild(leaves))
            return losses.detach(), slope.detach(), product(v)

    # fresh aliases: a tensor that the loss also reaches by itself must not be mistaken for the argument
    example = [x.detach(), torch.ones_like(x), *(t.detach().requires_grad_(t.requires_grad) for t in tensors)]
    with torch.inference_mode(False):
        graph = make_fx(full)(*example)
        if any(_is_mutable(node) for node in graph.graph.nodes):
            with torch.no_grad():
                graph = make_fx(torch.func.functionalize(graph))(*example)
    return _split(graph, len(example), {id(t): path for path, t in reachable.items()})


def _is_mutable(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _simplify(graph: fx.Graph) -> None:
    """Remove aliases (nothing is written any more), sums with zeros that autograd put in, and dead code."""
    for node in graph.nodes:
        if node.target in _ALIASES:
            node.replace_all_uses_with(node.args[0])
        elif node.target is torch.ops.aten.add.Tensor and not node.kwargs:
            for zero, other in (node.args, node.args[::-1]):
                if _is_zero(zero) and _described(other) is not None and _described(other) == _described(node):
                    node.replace_all_uses_with(other)
                    break
    graph.eliminate_dead_code()


def _is_zero(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is torch.ops.aten.zeros_like.default


def _described(node: Any) -> tuple[Any, ...] | None:
    value = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return None if value is None else (value.shape, value.dtype, value.stride)


def _split(module: fx.GraphModule, inputs: int, paths: Mapping[int, str]) -> CompiledProduct:
    """Cut the graph of (x, v, *leaves) -> (losses, gradient, product) in two by what depends on v."""
    _simplify(module.graph)
    *nodes, output = module.graph.nodes
    losses, slope, product = output.args[0]
    v = nodes[1]
    depends = {v}
    depends.update(node for node in nodes if _any_in(node.all_input_nodes, depends))

    point = fx.Graph()
    sources = [nodes[0], *nodes[2:inputs]]
    copies = {node: point.placeholder(f"input{i}") for i, node in enumerate(sources)}
    captured: dict[int, Tensor] = {}
    first_use: dict[int, fx.Node] = {}
    for node in (node for node in nodes if node.op == "get_attr"):
        tensor = _attribute(module, str(node.target))
        if id(tensor) not in captured:
            first_use[id(tensor)] = point.placeholder(f"captured{len(captured)}")
            captured[id(tensor)] = tensor
        copies[node] = first_use[id(tensor)]
    given = list(dict.fromkeys(copies.values()))
    for node in nodes:
        if node.op == "call_function" and node not in depends:
            copies[node] = point.node_copy(node, copies.__getitem__)

    boundary = [source for node in nodes if node in depends for source in node.all_input_nodes if source not in depends]
    arriving = list(dict.fromkeys(copies[node] for node in boundary))
    saved = [node for node in arriving if node not in given]
    direct = [node for node in arriving if node in given]
    point.output((copies[losses], copies[slope], *saved))

    line = fx.Graph()
    moved = {v: line.placeholder("v")}
    arrived = {node: line.placeholder(node.name) for node in (*saved, *direct)}
    moved.update((node, arrived[copies[node]]) for node in boundary)
    for node in nodes:
        if node in depends and node is not v:
            moved[node] = line.node_copy(node, moved.__getitem__)
    if product in depends:
        line.output(moved[product])
    return CompiledProduct(
        linearize=_callable(point),
        apply=_callable(line) if product in depends else None,
        captured=tuple(paths.get(key, tensor) for key, tensor in captured.items()),
        direct=tuple(given.index(node) for node in direct),
    )


def _any_in(nodes: Sequence[fx.Node], group: set[fx.Node]) -> bool:
    return any(node in group for node in nodes)


def _attribute(module: fx.GraphModule, target: str) -> Tensor:
    value: Any = module
    for name in target.split("."):
        value = getattr(value, name)
    assert isinstance(value, Tensor)
    return value


def _callable(graph: fx.Graph) -> Callable[..., Any]:
    """Generated Python code for the graph; it frees every intermediate after its last use."""
    graph.eliminate_dead_code()
    for node in graph.nodes:
        node.meta = {}  # examples of the values and stack traces: not needed any more
    forward: Callable[..., Any] = fx.GraphModule(torch.nn.Module(), graph).forward
    return forward
