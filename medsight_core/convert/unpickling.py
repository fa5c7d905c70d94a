"""Reads a pickle as data.

A pickle is a program for a small stack machine, and Python's own reader of it may be told to call anything. This one
has no way to call: `pickletools` splits the bytes into instructions, and those that make numbers, texts, containers and
a few known values by name are carried out here. Every other name is refused before anything is made of it. How long
the program may be is bounded, and so is what it can take up in memory.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

from medsight_core.errors import CheckpointError

LARGEST: Final = 16 * 2**20
"""Bytes of a pickle. That of an 8B model, without the values of its tensors, has about 0.2 MB."""

MOST_STEPS: Final = 2**18
"""Instructions; an 8B model needs about 40,000."""

Maker = Callable[..., Any]

_MARK: Final = object()
_SIMPLE: Final = (str, bytes, int, float, bool, type(None))
_LITERALS: Final = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8",
})  # fmt: skip
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: Final[Mapping[str, Callable[[], Any]]] = {
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class UnsafePickle(Exception):
    """It asks for something that is not data."""


class Damaged(Exception):
    """It is no whole pickle, or an absurd one."""


@dataclass(frozen=True, slots=True)
class Named:
    """A known name; ``make`` is called with the arguments that the pickle gives it.

    Attributes:
        name: Module and name.
        make: Ours, never what the name means in Python. None where the name itself is all that is wanted.
    """

    name: str
    make: Maker | None = None


def read_pickle(content: bytes, *, where: str, makers: Mapping[str, Maker | None], persistent: Maker) -> Any:
    """What a pickle says.

    Args:
        content: The bytes.
        where: Names the file in errors.
        makers: The names that may occur, such as "collections.OrderedDict", and what is made of each when the pickle
            calls it; None where it is only mentioned.
        persistent: Makes a value of an identifier that lies outside the pickle (a tensor's storage).

    Raises:
        CheckpointError: unsafe_pickle where it asks for anything else, damaged_pickle where it is not whole.
    """
    try:
        if len(content) > LARGEST:
            raise Damaged(f"it has {len(content):,} bytes, the limit is {LARGEST:,}")
        return _Machine(makers=makers, persistent=persistent).run(content)
    except UnsafePickle as error:
        raise CheckpointError(
            "unsafe_pickle",
            f"{where} asks for {error}, which is neither a tensor nor a container of tensors. Opening it elsewhere "
            "could run a program; nothing of it was run here.",
            "Take the file from those who published it, and do not open this one with torch.load.",
        ) from None
    except Damaged as error:
        reason = str(error)
    # Whatever a damaged program does to the stack, the memo and the values on them.
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__} in its instructions"
    raise CheckpointError("damaged_pickle", f"{where} is damaged: {reason}.", "Download it again.")


@dataclass(slots=True, kw_only=True)
class _Machine:
    makers: Mapping[str, Maker | None]
    persistent: Maker
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, content: bytes) -> Any:
        for step, (instruction, argument, _) in enumerate(pickletools.genops(content)):
            if step >= MOST_STEPS:
                raise Damaged(f"it has more than {MOST_STEPS:,} instructions")
            if instruction.name == "STOP":
                return self.stack.pop()
            self.step(instruction.name, argument)
        raise Damaged("it does not end")

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name in ("PROTO", "FRAME"):
            pass
        else:
            action = _ACTIONS.get(name)
            if action is None:
                raise UnsafePickle(f"the instruction {name}")
            action(self, argument)

    def since_mark(self) -> list[Any]:
        """Takes everything above the uppermost mark, and the mark."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:  # below the stack: IndexError, a damaged program
            place -= 1
        taken = self.stack[place + 1 :]
        del self.stack[place:]
        return taken

    def call(self, called: Any, arguments: Any) -> Any:
        if not isinstance(called, Named) or called.make is None or not isinstance(arguments, tuple):
            raise UnsafePickle(f"a call of {called.name if isinstance(called, Named) else type(called).__name__}")
        return called.make(*arguments)

    def named(self, name: str) -> Named:
        if name not in self.makers:
            raise UnsafePickle("".join(c if c.isprintable() else "?" for c in name)[:80])
        return Named(name, self.makers[name])


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    for key, value in zip(items[0::2], items[1::2], strict=True):
        # The hash of nested tuples takes as long as they unfold, which can be for ever.
        if type(key) not in _SIMPLE:
            raise Damaged(f"a key of a table is a {type(key).__name__}")
        yield key, value


def _extend(machine: _Machine, _: Any) -> None:
    items = machine.since_mark()
    _list(machine).extend(items)


def _append(machine: _Machine, _: Any) -> None:
    item = machine.stack.pop()
    _list(machine).append(item)


def _list(machine: _Machine) -> list[Any]:
    if type(machine.stack[-1]) is not list:
        raise Damaged("it adds to something that is no list")
    found: list[Any] = machine.stack[-1]
    return found


def _set_items(machine: _Machine, _: Any) -> None:
    _update(machine, machine.since_mark())


def _set_item(machine: _Machine, _: Any) -> None:
    pair = machine.stack[-2:]
    del machine.stack[-2:]
    _update(machine, pair)


def _update(machine: _Machine, items: list[Any]) -> None:
    if type(machine.stack[-1]) is not dict:
        raise Damaged("it sets entries of something that is no table")
    machine.stack[-1].update(_pairs(items))


def _add_items(machine: _Machine, _: Any) -> None:
    items = machine.since_mark()
    if type(machine.stack[-1]) is not set or any(type(item) not in _SIMPLE for item in items):
        raise Damaged("a set of something that is no plain value")
    machine.stack[-1].update(items)


def _build(machine: _Machine, _: Any) -> None:
    """Gives attributes to the value below; only a namespace has any, those of others say nothing about tensors."""
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, SimpleNamespace):
        if type(state) is not dict or any(type(name) is not str for name in state):
            raise Damaged("the attributes of a namespace are no table")
        target.__dict__.update(state)
    elif type(target) is not dict:
        raise UnsafePickle(f"attributes of a {type(target).__name__}")


def _global(machine: _Machine, argument: Any) -> None:
    machine.stack.append(machine.named(str(argument).replace(" ", ".", 1)))


def _stack_global(machine: _Machine, _: Any) -> None:
    module, name = machine.stack[-2:]
    if type(module) is not str or type(name) is not str:
        raise Damaged("a name is no text")
    machine.stack[-2:] = [machine.named(f"{module}.{name}")]


def _reduce(machine: _Machine, _: Any) -> None:
    called, arguments = machine.stack[-2:]
    machine.stack[-2:] = [machine.call(called, arguments)]


def _persistent(machine: _Machine, _: Any) -> None:
    machine.stack[-1] = machine.persistent(machine.stack[-1])


def _put(machine: _Machine, index: Any) -> None:
    machine.memo[len(machine.memo) if index is None else int(index)] = machine.stack[-1]


def _get(machine: _Machine, index: Any) -> None:
    machine.stack.append(machine.memo[int(index)])


_ACTIONS: Final[Mapping[str, Callable[[_Machine, Any], None]]] = {
    "MARK": lambda machine, _: machine.stack.append(_MARK),
    "POP": lambda machine, _: machine.stack.__delitem__(-1),
    "POP_MARK": lambda machine, _: machine.since_mark().clear(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "LIST": lambda machine, _: machine.stack.append(machine.since_mark()),
    "DICT": lambda machine, _: machine.stack.append(dict(_pairs(machine.since_mark()))),
    "FROZENSET": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "APPEND": _append,
    "APPENDS": _extend,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "ADDITEMS": _add_items,
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _put,
    "GET": _get,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
