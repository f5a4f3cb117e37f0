"""Replacements for typing, signal and collections.abc, which take less time to import.

``loopfs run`` is started often, and importing these modules (with re and enum, which they import)
would take a quarter of its start. Type checkers see the standard library's own.
"""

from __future__ import annotations

from _collections_abc import Callable, Iterable, Mapping, Sequence  # without collections' __init__

__all__ = [
    "TYPE_CHECKING",
    "Any",
    "Callable",
    "Generic",
    "Iterable",
    "Mapping",
    "NamedTuple",
    "NoReturn",
    "Protocol",
    "Sequence",
    "TypeVar",
    "signal",
]

TYPE_CHECKING = False  # type checkers take it as True

if TYPE_CHECKING:
    import signal
    from typing import Any, Generic, NamedTuple, NoReturn, Protocol, TypeVar
else:
    import _signal as signal  # the same functions; signals are plain numbers
    from _collections import _tuplegetter

    Any = NoReturn = object

    def TypeVar(name, **_):  # noqa: N802 the name in typing
        return name

    class Generic:
        """A base class that can be subscripted and has no other effect."""

        __slots__ = ()

        def __class_getitem__(cls, parameters):
            return cls

    class Protocol:
        """A base class without effect."""

        __slots__ = ()

    def _taken(cls, field, named):
        """Return the value of a field that was not given by position."""
        if field in named:
            return named.pop(field)
        if field in cls._defaults:
            return cls._defaults[field]
        raise TypeError(f"{cls.__name__} needs a value for {field}")

    class _NamedTupleMeta(type):
        def __new__(mcs, name, bases, space):
            fields = tuple(space.get("__annotations__", ()))
            if fields:
                space["_defaults"] = {field: space[field] for field in fields if field in space}
                space["_fields"] = space["__match_args__"] = fields
                space.update((field, _tuplegetter(at, "")) for at, field in enumerate(fields))
            space["__slots__"] = ()
            return super().__new__(mcs, name, bases, space)

    class NamedTuple(tuple, metaclass=_NamedTupleMeta):
        """A tuple whose items are also attributes, in the order of the annotations."""

        def __new__(cls, *values, **named):
            fields = cls._fields
            if len(values) != len(fields):
                values += tuple(_taken(cls, field, named) for field in fields[len(values) :])
            if named or len(values) != len(fields):
                raise TypeError(f"{cls.__name__} has the fields {', '.join(fields)}")
            return tuple.__new__(cls, values)

        @classmethod
        def _make(cls, values):
            made = tuple.__new__(cls, values)
            if len(made) != len(cls._fields):
                raise TypeError(f"{cls.__name__} has {len(cls._fields)} fields, not {len(made)}")
            return made

        def _replace(self, **changes):
            made = self._make(map(changes.pop, self._fields, self))
            if changes:
                raise ValueError(f"{type(self).__name__} has no {', '.join(changes)}")
            return made

        def __repr__(self):
            fields = ", ".join(map("{}={!r}".format, self._fields, self))
            return f"{type(self).__name__}({fields})"

        def __getnewargs__(self):
            return tuple(self)
