"""What crosses between two confined processes: lines of JSON, of bounded length.

Plain data crosses by value, and the mutable objects among the arguments of a call by number: what a
call changes in them is sent back, so that a test finds its own lists changed in place. What has no
plain form crosses as a number that stands for it.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

MAX_MESSAGE = 1 << 20  # bytes of a message between judge and program

# classes of the standard library that cross by what they are made from
_STANDARD: dict[tuple[str, str], Callable[[Any], list]] = {
    ("fractions", "Fraction"): lambda x: [x.numerator, x.denominator],
    ("decimal", "Decimal"): lambda x: [str(x)],
    ("datetime", "date"): lambda x: [x.year, x.month, x.day],
    ("datetime", "timedelta"): lambda x: [x.days, x.seconds, x.microseconds]}
_MUTABLE = (list, dict, set, bytearray, deque)
_BASES = (bool, str, float, int, *_MUTABLE, tuple, frozenset, bytes, complex)


class Objects:
  """The mutable objects of an exchange by number, in the order in which they are first met."""

  def __init__(self) -> None:
    self.all: list[Any] = []  # held, so that no other object gets their identity
    self.numbers: dict[int, int] = {}  # by identity
    self.based = ""  # a subclass that has crossed as its base

  def add(self, value: Any) -> None:
    self.numbers[id(value)] = len(self.all)
    self.all.append(value)


class Stand:
  """What stands for a value of the other process."""


def _no_number(value: Any) -> Any:
  raise TypeError(f"{type(value).__name__} is no plain data")


def plain(value: Any, objects: Objects | None = None,
          other: Callable[[Any], Any] = _no_number) -> Any:
  """Plain data as JSON that preserves its type; subclasses become their base.

  objects: those met so far in this exchange; other: the form of what is no plain data, by default
  an error. Raises TypeError, and RecursionError for data that is nested too deeply.
  """
  objects = Objects() if objects is None else objects
  if isinstance(value, _BASES) and type(value) not in _BASES:
    objects.based = type(value).__name__
  if value is None or isinstance(value, bool | str | float):
    return value
  if isinstance(value, int):
    return int(value) if abs(value) < 1 << 63 else {"int": hex(value)}
  if isinstance(value, _MUTABLE):
    if id(value) in objects.numbers:
      return {"same": objects.numbers[id(value)]}
    objects.add(value)
    return content(value, objects, other)
  for kind in (tuple, frozenset):
    if isinstance(value, kind):
      return {kind.__name__: [plain(item, objects, other) for item in value]}
  if isinstance(value, bytes):
    return {"bytes": value.hex()}
  if isinstance(value, complex):
    return {"complex": [value.real, value.imag]}
  if isinstance(value, range):
    return {"range": [value.start, value.stop, value.step]}
  made = _STANDARD.get((type(value).__module__, type(value).__qualname__))
  if made:
    return {"made": [type(value).__module__, type(value).__qualname__, *made(value)]}
  if isinstance(value, Iterator) and not isinstance(value, Stand):
    # perhaps endless; MAX_MESSAGE items are too long to cross
    return {"iter": [plain(item, objects, other) for item in islice(value, MAX_MESSAGE)]}
  return other(value)


def content(value: Any, objects: Objects, other: Callable[[Any], Any] = _no_number) -> Any:
  """What a mutable object holds, as JSON."""
  if isinstance(value, list):
    return [plain(item, objects, other) for item in value]
  if isinstance(value, dict):
    return {"dict": [[plain(key, objects, other), plain(item, objects, other)]
                     for key, item in value.items()]}
  if isinstance(value, set):
    return {"set": [plain(item, objects, other) for item in value]}
  if isinstance(value, deque):
    return {"deque": [value.maxlen, [plain(item, objects, other) for item in value]]}
  return {"bytearray": bytes(value).hex()}


def _made(module: str, name: str, *arguments: Any) -> Any:
  """An object of a class in `_STANDARD`; any other name raises KeyError."""
  _STANDARD[module, name]
  return getattr(__import__(module), name)(*map(rebuilt, arguments))


_IMMUTABLE: dict[str, Callable[[Any], Any]] = {
    "int": lambda x: int(x, 16), "bytes": bytes.fromhex, "complex": lambda x: complex(*x),
    "range": lambda x: range(*x), "made": lambda x: _made(*x)}
_SEQUENCES: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "frozenset": frozenset, "iter": iter}
_EMPTY: dict[str, Callable[[Any], Any]] = {
    "dict": lambda _: {}, "set": lambda _: set(), "bytearray": lambda _: bytearray(),
    "deque": lambda held: deque(maxlen=held[0])}


def rebuilt(value: Any, objects: Objects | None = None,
            other: Callable[[Any], Any] = _no_number) -> Any:
  """The value that `plain` encoded. Raises LookupError, TypeError or ValueError for other JSON.

  objects: those met so far in this exchange; other: what a number stands for.
  """
  objects = Objects() if objects is None else objects
  if isinstance(value, list):
    made: Any = []
    objects.add(made)
    fill(made, value, objects, other)
    return made
  if not isinstance(value, dict):
    return value
  (kind, inner), = value.items()
  if kind == "same":
    return objects.all[inner]
  if kind == "opaque":
    return other(inner)
  if kind in _EMPTY:
    made = _EMPTY[kind](inner)
    objects.add(made)
    fill(made, value, objects, other)
    return made
  if kind in _SEQUENCES:
    return _SEQUENCES[kind]([rebuilt(item, objects, other) for item in inner])
  return _IMMUTABLE[kind](inner)


def fill(target: Any, held: Any, objects: Objects,
         other: Callable[[Any], Any] = _no_number) -> None:
  """Makes a mutable object hold what `content` encoded, in place."""
  if isinstance(target, list):
    list.__setitem__(target, slice(None), [rebuilt(item, objects, other) for item in held])
  elif isinstance(target, dict):
    pairs = [(rebuilt(key, objects, other), rebuilt(item, objects, other))
             for key, item in held["dict"]]
    dict.clear(target)
    dict.update(target, pairs)
  elif isinstance(target, set):
    items = [rebuilt(item, objects, other) for item in held["set"]]
    set.clear(target)
    set.update(target, items)
  elif isinstance(target, deque):
    items = [rebuilt(item, objects, other) for item in held["deque"][1]]
    deque.clear(target)
    deque.extend(target, items)
  else:
    bytearray.__setitem__(target, slice(None), bytes.fromhex(held["bytearray"]))


def packed(message: dict[str, Any]) -> bytes:
  """A message as a line. Raises ValueError over MAX_MESSAGE bytes."""
  line = json.dumps(message).encode() + b"\n"
  if len(line) > MAX_MESSAGE:
    raise ValueError(f"{len(line)} bytes, at most {MAX_MESSAGE} can cross")
  return line


class Channel:
  """Lines of JSON over two pipes, of bounded length."""

  def __init__(self, inbox: int, outbox: int) -> None:
    self.inbox, self.outbox = inbox, outbox
    self.buffer = bytearray()  # read, but not yet a whole line

  def write(self, line: bytes) -> None:
    """Writes a line that `packed` made."""
    while line:
      line = line[os.write(self.outbox, line):]

  def receive(self) -> dict[str, Any] | None:
    """Reads a message; None when the other side has ended or its line is too long."""
    while b"\n" not in self.buffer:
      part = os.read(self.inbox, 1 << 16)
      self.buffer += part
      if not part or len(self.buffer) > MAX_MESSAGE:
        return None
    line, _, self.buffer = self.buffer.partition(b"\n")
    return json.loads(line)
