"""What typing, signal and collections.abc offer, without the time that they take to import.

``loopfs run`` starts often, and these three with what they import in turn (re, enum)
would be a quarter of its start. To the type checker they are the standard library's own.
"""

from __future__ import annotations

from _collections_abc import Callable, Iterable, Mapping, Sequence  # collections.abc's, alone

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

TYPE_CHECKING = False  # which every type checker takes to be true

if TYPE_CHECKING:
    import signal
    from typing import Any, Generic, NamedTuple, NoReturn, Protocol, TypeVar
else:
    import _signal as signal  # the same functions; signals are plain numbers
    from _collections import _tuplegetter

    Any = NoReturn = object

    def TypeVar(name, **_):  # noqa: N802 typing's name
        return name

    class Generic:
        """A base that says nothing, whatever its parameters."""

        __slots__ = ()

        def __class_getitem__(cls, parameters):
            return cls

    class Protocol:
        """A base that says nothing."""

        __slots__ = ()

    class _NamedTupleMeta(type):
        def __new__(mcs, name, bases, space):
            fields = tuple(space.get("__annotations__", ()))
            defaults = tuple(space[field] for field in fields if field in space)
            space["__slots__"] = ()
            if fields:
                space.update((field, _tuplegetter(at, "")) for at, field in enumerate(fields))
                space["_fields"] = space["__match_args__"] = fields
            made = super().__new__(mcs, name, bases, space)
            if fields:
                _construct_later(made, fields, defaults)
            return made

    def _construct_later(made, fields, defaults):
        # Compiling a constructor is what takes long in the definition of a named tuple, and a
        # run makes tuples of some only.
        def construct(cls, *values, **named):
            names = ", ".join(fields)
            compiled = eval(f"lambda cls, {names}: new(cls, ({names},))", {"new": tuple.__new__})
            compiled.__defaults__ = defaults
            made.__new__ = staticmethod(compiled)
            return compiled(cls, *values, **named)

        made.__new__ = staticmethod(construct)

    class NamedTuple(tuple, metaclass=_NamedTupleMeta):
        """A tuple whose items are attributes too, in the order of the annotations."""

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
