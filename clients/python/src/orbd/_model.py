"""Base class of the records in :mod:`orbd.models`."""

from __future__ import annotations

import types
import typing
from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import ProtocolViolation

if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform
else:

    def dataclass_transform(**_):
        """Does nothing at run time; only type checkers need the decorator."""
        return lambda cls: cls


ModelT = TypeVar("ModelT", bound="Model")


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Model:
    """Base class of all records from the wire.

    Subclasses are written and behave like frozen dataclasses, and type checkers treat them as such. The real decorator would
    generate and compile code for each class at every import, which takes longer than a hundred commands.
    """

    def __init__(self, **values: Any) -> None:
        shape = _shape(type(self))
        wrong = (values.keys() - shape.converters.keys()) | (shape.required - values.keys())
        if wrong:
            raise TypeError(f"{type(self).__name__}: missing or unknown: {', '.join(sorted(wrong))}")
        self.__dict__.update(values)

    @classmethod
    def from_wire(cls, wire: Any) -> Self:
        """Returns a record for a decoded JSON object."""
        shape = _shape(cls)
        if not isinstance(wire, dict):
            raise ProtocolViolation(f"{cls.__name__}: expected an object, got {type(wire).__name__}")
        model = cls.__new__(cls)
        values = model.__dict__
        for name, convert in shape.converters.items():
            if name in wire:
                value = wire[name]
                if convert is None:
                    values[name] = value
                elif value is not None:
                    values[name] = convert(value)
        if not shape.required <= values.keys():
            raise ProtocolViolation(f"{cls.__name__}: {', '.join(sorted(shape.required - values.keys()))} is missing")
        return model

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(tuple(self._values().values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._values().items())})"

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _shape(type(self)).converters}


class Shape:
    """The fields of a class, determined at its first use."""

    __slots__ = ("converters", "required")

    def __init__(self, cls: type[Model]) -> None:
        # Function that converts decoded JSON to the field's type; None if no conversion is needed.
        self.converters = {name: _converter(hint) for name, hint in typing.get_type_hints(cls).items()}
        # A default is a class attribute; instances without their own value inherit it.
        self.required = frozenset(name for name in self.converters if not hasattr(cls, name))


_shapes: dict[type[Model], Shape] = {}


def _shape(cls: type[Model]) -> Shape:
    shape = _shapes.get(cls)
    if shape is None:
        shape = _shapes[cls] = Shape(cls)
    return shape


def _converter(hint: Any) -> Callable[[Any], Any] | None:
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _converter(inner)
    if origin is tuple:
        convert = _converter(arguments[0])
        return tuple if convert is None else lambda wire: tuple(map(convert, wire))
    if isinstance(hint, type) and issubclass(hint, Model):
        return hint.from_wire
    return None


class Encoded(Model):
    """Base class of records whose bytes are ``text`` if they are UTF-8, else ``base64``."""

    @property
    def data(self) -> bytes:
        """Decoded bytes."""
        values = vars(self)
        text: str | None = values.get("text")
        return b64decode(values.get("base64") or "") if text is None else text.encode()


def tagged_from_wire(wire: Any, classes: Mapping[str, type[ModelT]]) -> ModelT | None:
    """Returns the record of a decoded JSON object by its ``type``; None for a type that a later daemon added."""
    if not isinstance(wire, dict):
        raise ProtocolViolation(f"event: expected an object, got {type(wire).__name__}")
    cls = classes.get(wire.get("type", ""))
    return None if cls is None else cls.from_wire(wire)
