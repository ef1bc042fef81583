"""What a Python callable depends on: the tensors it can reach, and everything else that could change its meaning.

A compiled loss may be used again only while the loss still means the same. ``survey`` walks from the callable through
closures, defaults, bound objects, the globals and attributes that its code names, and every reachable module, and
returns two tables keyed by path: the tensors (they become inputs of the compiled graph, so their values are free to
change) and hashable tokens for all the rest (code, numbers, strings, train/eval flags, hooks, tensor shapes).
Two functions made by evaluating the same ``lambda`` twice have equal tables.

Objects are followed only through attribute names that occur in the code that was reached, so a counter that a
training loop keeps on the same object does not matter. Library code (torch, numpy, the standard library) is a leaf.
"""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Token = Hashable

_PRIMITIVES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.memory_format, slice)
_LIBRARIES = frozenset({"torch", "numpy"}) | sys.stdlib_module_names
_LONGEST_CONTAINER = 1024  # longer lists and dicts are data sets, not state: they count by identity
_MOST_OBJECTS = 20_000  # a loss that reaches more is not worth the walk
_MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass
class Fingerprint:
    """``tokens``: path -> hashable description; ``tensors``: path -> the tensor that is there now."""

    tokens: dict[str, Token] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def difference(self, other: Fingerprint, ignored: frozenset[str] = frozenset()) -> list[str]:
        """Paths where the two differ, leaving out the paths in ``ignored`` and all that lies below them."""
        if self.tokens == other.tokens:
            return []
        mine, theirs, missing = self.tokens, other.tokens, object()
        paths = [path for path in {**mine, **theirs} if mine.get(path, missing) != theirs.get(path, missing)]
        return [path for path in paths if not _is_below(path, ignored)]


class TooManyObjects(Exception):
    """The callable reaches more Python objects than can be looked at for every use."""


class _Identity:
    """Equal to the token of the very same object only; does not keep the object alive where that can be avoided."""

    __slots__ = ("_hash", "_ref")

    def __init__(self, obj: Any) -> None:
        self._hash = id(obj)
        try:
            self._ref: Callable[[], Any] = weakref.ref(obj)
        except TypeError:
            self._ref = lambda: obj

    def __eq__(self, other: object) -> bool:
        mine = self._ref()
        return isinstance(other, _Identity) and mine is not None and mine is other._ref()

    def __hash__(self) -> int:
        return self._hash


def _is_below(path: str, ancestors: frozenset[str]) -> bool:
    return bool(ancestors) and any(path == a or path.startswith((f"{a}.", f"{a}[")) for a in ancestors)


def tensor_token(tensor: Tensor) -> Token:
    """What a compiled graph bakes in about a tensor: everything but its values."""
    stride = tensor.stride() if tensor.layout == torch.strided else None
    return (type(tensor), tuple(tensor.shape), stride, tensor.dtype, tensor.device)


def survey(roots: Mapping[str, Any]) -> Fingerprint:
    """Describe everything that is reachable from ``roots`` (name -> object).

    Raises ``TooManyObjects`` where the walk would take longer than it is worth.
    """
    walker = _Walker()
    for path, root in roots.items():
        walker.queue.append((path, root))
    walker.run()
    return walker.found


def _is_library(name: str | None) -> bool:
    """Whether an object of module ``name`` is a leaf."""
    return name is None or name.partition(".")[0] in _LIBRARIES


@functools.lru_cache(maxsize=4096)
def _is_installed(name: str | None) -> bool:
    """Whether module ``name`` is an installed package, whose globals are taken for constants."""
    file = getattr(sys.modules.get(name or ""), "__file__", None) or ""
    return _is_library(name) or "site-packages" in file or "dist-packages" in file


@functools.lru_cache(maxsize=4096)
def _code_names(code: types.CodeType) -> frozenset[str]:
    """Global and attribute names that a code object and the functions nested in it mention."""
    nested = (_code_names(const) for const in code.co_consts if isinstance(const, types.CodeType))
    return frozenset(code.co_names).union(*nested)


def _functions_of(member: Any) -> list[types.FunctionType]:
    if isinstance(member, property):
        return [f for f in (member.fget, member.fset) if isinstance(f, types.FunctionType)]
    member = getattr(member, "__func__", member)  # staticmethod and classmethod
    return [member] if isinstance(member, types.FunctionType) else []


@functools.lru_cache(maxsize=1024)
def _class_methods(cls: type, entry: str) -> tuple[tuple[str, types.FunctionType], ...]:
    """The methods of ``cls`` that calling its method ``entry`` can reach through ``self.name``."""
    found: dict[str, types.FunctionType] = {}
    todo = [entry]
    while todo:
        name = todo.pop()
        for function in _functions_of(_class_attribute(cls, name)):
            if f"{name}:{function.__name__}" not in found:
                found[f"{name}:{function.__name__}"] = function
                todo.extend(_code_names(function.__code__))
    return tuple(found.items())


def _own_attributes(obj: Any, names: set[str]) -> dict[str, Any]:
    """The attributes in ``names`` that the object itself holds, in its ``__dict__`` or in slots."""
    state = getattr(obj, "__dict__", {})
    found = {name: state[name] for name in sorted(names & state.keys())}
    in_slots = names & _slots(type(obj))  # type: ignore[arg-type]  # a class is hashable
    found.update((name, getattr(obj, name)) for name in sorted(in_slots) if hasattr(obj, name))
    return found


@functools.lru_cache(maxsize=1024)
def _slots(cls: type) -> frozenset[str]:
    """Names that are stored in slots rather than in ``__dict__``."""
    members = (base.__dict__.items() for base in cls.__mro__)
    return frozenset(name for items in members for name, v in items if isinstance(v, types.MemberDescriptorType))


def _class_attribute(cls: type, name: str) -> Any:
    return next((base.__dict__[name] for base in cls.__mro__ if name in base.__dict__), None)


class _Walker:
    """Breadth-first walk; attributes of plain objects are followed once their names have been seen in some code."""

    def __init__(self) -> None:
        self.found = Fingerprint()
        self.queue: deque[tuple[str, Any]] = deque()
        self.seen: dict[int, str] = {}
        self.alive: list[Any] = []  # keeps every visited object, so that ids stay unique during the walk
        self.names: set[str] = set()
        self.objects: list[tuple[str, Any, set[str]]] = []

    def run(self) -> None:
        while self.queue:
            while self.queue:
                self._visit(*self.queue.popleft())
            for path, obj, done in self.objects:
                self._follow_attributes(path, obj, done)

    def _visit(self, path: str, obj: Any) -> None:
        if isinstance(obj, _PRIMITIVES):
            # repr: NaN equals itself, -0.0 differs from 0.0, and slices are hashable
            self.found.tokens[path] = (type(obj), repr(obj) if isinstance(obj, float | complex | slice) else obj)
            return
        if id(obj) in self.seen:
            if path != self.seen[id(obj)]:
                self.found.tokens[path] = ("same object as", self.seen[id(obj)])
            return
        if len(self.alive) >= _MOST_OBJECTS:
            raise TooManyObjects(f"it reaches more than {_MOST_OBJECTS} Python objects")
        self.seen[id(obj)] = path
        self.alive.append(obj)
        if isinstance(obj, Tensor):
            self.found.tokens[path] = tensor_token(obj)
            self.found.tensors[path] = obj
        elif isinstance(obj, nn.Module):
            self._visit_module(path, obj)
        elif isinstance(obj, types.FunctionType):
            self._visit_function(path, obj)
        elif isinstance(obj, types.MethodType):
            self.found.tokens[path] = ("method", getattr(obj.__func__, "__code__", type(obj.__func__)))
            self._push(path, {"__func__": obj.__func__, "__self__": obj.__self__})
        elif isinstance(obj, functools.partial):
            self.found.tokens[path] = functools.partial
            self._push(path, {"func": obj.func, "args": obj.args, "keywords": obj.keywords})
        elif isinstance(obj, list | tuple | dict | types.MappingProxyType):
            self._visit_container(path, obj)
        elif isinstance(obj, type):
            self.found.tokens[path] = obj
        else:
            self._visit_object(path, obj)

    def _push(self, path: str, children: Mapping[str, Any]) -> None:
        self.queue.extend((f"{path}.{name}", child) for name, child in children.items())

    def _visit_function(self, path: str, function: types.FunctionType) -> None:
        if _is_library(function.__module__) and not function.__closure__:
            self.found.tokens[path] = function
            return
        code = function.__code__
        names = _code_names(code)
        self.found.tokens[path] = code
        self.names |= names
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                self.queue.append((f"{path}.{name}", cell.cell_contents))
            except ValueError:  # a variable that is not assigned yet
                self.found.tokens[f"{path}.{name}"] = "empty cell"
        self._push(f"{path}.__defaults__", {str(at): value for at, value in enumerate(function.__defaults__ or ())})
        self._push(f"{path}.__kwdefaults__", function.__kwdefaults__ or {})
        if not _is_installed(function.__module__):
            scope = function.__globals__
            usual = scope is getattr(sys.modules.get(function.__module__), "__dict__", None)
            where = function.__module__ if usual else f"{function.__module__}@{id(scope)}"
            self._push(where, {name: scope[name] for name in sorted(names & scope.keys())})

    def _visit_module(self, path: str, module: nn.Module) -> None:
        cls = type(module)
        self.found.tokens[path] = (cls, module.training)
        state = module.__dict__
        self._push(path, {n: t for n, t in state["_parameters"].items() if t is not None})
        self._push(path, {n: t for n, t in state["_buffers"].items() if t is not None})
        self._push(path, {n: m for n, m in state["_modules"].items() if m is not None})
        for hooks in _MODULE_HOOKS:
            if state[hooks]:
                self._push(f"{path}.{hooks}", {str(i): hook for i, hook in enumerate(state[hooks].values())})
        if "forward" in state:
            self._push(path, {"forward": state["forward"]})
        self._follow_methods(cls, "forward")
        self.objects.append(
            (path, module, {"forward", "training", "_parameters", "_buffers", "_modules", *_MODULE_HOOKS})
        )

    def _visit_container(self, path: str, container: Any) -> None:
        if len(container) > _LONGEST_CONTAINER:
            self.found.tokens[path] = (type(container), len(container), id(container))
            return
        self.found.tokens[path] = (type(container), len(container))
        items: Iterable[tuple[Any, Any]] = container.items() if hasattr(container, "items") else enumerate(container)
        self.queue.extend((f"{path}[{key!r}]", value) for key, value in items)

    def _visit_object(self, path: str, obj: Any) -> None:
        if isinstance(obj, types.ModuleType):
            self.found.tokens[path] = ("module", obj.__name__)
            if _is_installed(obj.__name__):
                return
        elif _is_library(type(obj).__module__) or type(obj).__module__ == "builtins":
            self.found.tokens[path] = _Identity(obj)
            return
        else:
            self.found.tokens[path] = ("object", type(obj))
            self._follow_methods(type(obj), "__call__")
        self.objects.append((path, obj, set()))

    def _follow_methods(self, cls: type, entry: str) -> None:
        """Take in the code of the methods that running ``entry`` can reach."""
        for name, function in _class_methods(cls, entry):
            if _is_library(function.__module__):
                self.names |= _code_names(function.__code__)
            else:
                self.queue.append((f"{cls.__module__}.{cls.__qualname__}.{name}", function))

    def _follow_attributes(self, path: str, obj: Any, done: set[str]) -> None:
        """Visit the attributes of ``obj`` whose names have turned up in code since the last time."""
        fresh = self.names - done
        done |= fresh
        self._push(path, _own_attributes(obj, fresh))
        if not isinstance(obj, types.ModuleType) and not _is_library(type(obj).__module__):
            for name in fresh:
                if _functions_of(_class_attribute(type(obj), name)):
                    self._follow_methods(type(obj), name)


def describe(function: Callable[..., Any]) -> str:
    """A short name of a callable for messages."""
    return getattr(function, "__qualname__", None) or type(function).__qualname__
