"""The two roles of a confined process that know Python: a program, and the judge of its tests.

They are processes in two sandboxes with two pipes between them. What crosses is JSON (see
`values`), from which the reader builds new values: an `__eq__` that the program defines stays in
its process, and so do frames, objects, builtins and exit codes. The program receives the arguments
of a call, never the expected result.

A test is decided where all that it looked at could cross. An object of the program's own crosses as
a number: it equals nothing but itself, it can be passed back and called, and a test that looks
further into it is undecided.
"""

import builtins
import contextlib
import json
import sys
import types
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from typing import Any

from entrolab.verify.sandbox.values import (
    Channel,
    Objects,
    Stand,
    content,
    fill,
    packed,
    plain,
    rebuilt,
)

MAX_REASON = 200  # characters of what the program reports about itself
_SIZED = ("str", "bytes", "bytearray", "list", "tuple", "dict", "set", "frozenset")


class NoAnswer(BaseException):
  """The program cannot answer this call. No `except Exception` of a test catches it."""


class Undecided(BaseException):
  """A test needs what cannot cross."""


class Raised(Exception):
  """An exception of the program that is of no builtin class."""


class _Text(SourceFileLoader):
  """A module loader whose source is a string."""

  def __init__(self, name: str, text: str) -> None:
    super().__init__(name, f"<{name}>")
    self.text = text

  def get_code(self, fullname: str) -> types.CodeType:
    return self.source_to_code(self.text, self.path)


def _module(name: str) -> types.ModuleType:
  return sys.modules.setdefault(name, types.ModuleType(name))


def _described(error: BaseException) -> str:
  """Class and text of an exception."""
  try:
    return f"{type(error).__name__}: {error}"[:160].rstrip(": ")
  except Exception:  # its __str__ may be the program's code
    return type(error).__name__[:160]


class _Program:
  """The program, which answers calls of its functions."""

  def __init__(self, source: str) -> None:
    self.module = _module("solution")
    self.broken = ""  # why it did not reach its end
    self.numbered = Objects()  # what crossed as a number
    self.value: Any = None  # of the last call
    try:
      _Text("solution", source).exec_module(self.module)
    except BaseException as error:  # also SystemExit
      self.broken = f"the program raises {_described(error)}"

  def number(self, value: Any) -> Any:
    """{"opaque": [number, class, whether it is the program's class, or equals nothing else]}"""
    if id(value) not in self.numbered.numbers:
      self.numbered.add(value)
    kind = type(value)
    silent = kind.__module__ == "solution" or kind.__eq__ is object.__eq__
    return {"opaque": [self.numbered.numbers[id(value)], kind.__name__, silent]}

  def answer(self, call: dict[str, Any]) -> dict[str, Any]:
    """{call, args, named} -> {value, changed} | {raised, text, changed} | {none: why}

    call: a name, or the number of what the judge was given; changed: [number, content] pairs of the
    arguments that the call has changed.
    """
    if self.broken or "call" not in call:
      return {"none": self.broken} if self.broken else {"value": None}
    name = call["call"]
    known = self.numbered.all
    function = known[name] if isinstance(name, int) else vars(self.module).get(name)
    if function is None:
      return {"none": f"the program defines no {name}"}
    objects = Objects()
    args = rebuilt(call["args"], objects, known.__getitem__)
    named = rebuilt(call["named"], objects, known.__getitem__)
    given = len(objects.all)
    before = [self.held(objects, at) for at in range(given)]
    try:
      self.value = function(*args, **named)
    except Exception as error:
      reply = {"raised": type(error).__name__, "text": _described(error).partition(": ")[2]}
    except BaseException as error:
      return {"none": f"{name} raises {_described(error)}"}
    else:
      reply = {"value": plain(self.value, objects, self.number)}
    changed = [[at, json.loads(held)] for at in range(given)
               if (held := self.held(objects, at)) != before[at]]
    return reply | ({"changed": changed} if changed else {})

  def held(self, objects: Objects, at: int) -> str:
    """What an argument holds, to see whether a call has changed it."""
    return json.dumps(content(objects.all[at], objects, self.number))

  def reply(self, call: dict[str, Any]) -> bytes:
    """The line that answers a call."""
    try:
      return packed(self.answer(call))
    except Exception:  # too long or too deep to cross
      at, kind, _ = self.number(self.value)["opaque"]
      return packed({"value": {"opaque": [at, kind, False]}})


def program(source: str, channel: Channel) -> None:
  """Runs the source and serves calls of its functions."""
  served = _Program(source)
  while (call := channel.receive()) is not None:
    channel.write(served.reply(call))


class _Remote:
  """The program as the tests see it: functions by name."""

  def __init__(self, channel: Channel) -> None:
    self.channel = channel
    self.gone = ""  # why the program answers no further call
    self.last: Exception | None = None  # the last exception that the program raised
    self.known: dict[int, _Object] = {}  # the program's objects by number
    self.begin()

  def begin(self) -> None:
    """Forgets what the last test met."""
    self.lost = ""  # why a call was not answered
    self.open = ""  # why the test is undecided
    self.note = ""  # which value has no plain form
    self.based = ""  # the class of an argument that crossed as its base

  def undecided(self, why: str) -> Undecided:
    """The exception to raise where a test needs what cannot cross."""
    self.open = self.open or why[:MAX_REASON]
    return Undecided(why)

  def load(self) -> str:
    """Why the program did not reach its end; empty if it did."""
    try:
      return str(self._send(packed({})).get("none", ""))[:MAX_REASON]
    except (EOFError, ValueError, RecursionError, AttributeError) as error:
      self.gone = str(error) if isinstance(error, EOFError) else "the program sent no proper answer"
      return self.gone

  def call(self, name: str | int, args: tuple, named: dict[str, Any]) -> Any:
    """Calls a function of the program: returns its value or raises its exception."""
    objects = Objects()
    try:
      request = packed({"call": name, "args": plain(list(args), objects, self.number),
                        "named": plain(named, objects, self.number)})
    except (TypeError, ValueError, RecursionError) as error:
      raise self.undecided(f"arguments of {name}: {_described(error)}") from None
    self.based = self.based or objects.based
    # The reply is whatever the program wrote to its pipe: every way in which it may be malformed
    # ends here, and no value in it has a class that the program defined.
    try:
      reply = self._send(request)
      value = rebuilt(reply.get("value"), objects, lambda form: self.object(name, *form))
      for at, held in reply.get("changed", ()):
        fill(objects.all[at], held, objects, lambda form: self.object(name, *form))
      if "value" in reply:
        return value
      self.lost = str(reply.get("none", ""))[:MAX_REASON]
      self.last = _exception(str(reply.get("raised")), str(reply.get("text"))[:MAX_REASON])
    except EOFError as error:
      self.lost = self.gone = str(error)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, MemoryError):
      self.lost = self.gone = "the program sent no proper answer"
    if self.lost:
      raise NoAnswer(self.lost)
    assert self.last
    raise self.last

  def number(self, value: Any) -> Any:
    """The form of an object of the program that goes back to it. Raises TypeError for others."""
    if not isinstance(value, _Object):
      raise TypeError(f"{type(value).__name__} is no plain data")
    return {"opaque": value.number_}

  def object(self, name: str | int, number: int, kind: str, silent: bool) -> "_Object":
    """What stands for an object of the program, the same for the same number."""
    self.note = f"{name} returns no plain data ({str(kind)[:80]})"
    return self.known.setdefault(int(number), _Object(self, int(number), str(kind), bool(silent)))

  def _send(self, request: bytes) -> dict[str, Any]:
    """The reply to a request. Raises EOFError when the program has ended."""
    if self.gone:
      raise EOFError(self.gone)
    with contextlib.suppress(BrokenPipeError):
      self.channel.write(request)
      reply = self.channel.receive()
      if reply is not None:
        return reply
    raise EOFError("the program ended early")


def _looks_into(self: Any, *_: Any, **__: Any) -> Any:
  raise self.remote_.undecided(self.remote_.note or "an object of the program is looked into")


_LOOKS = """getattr bool len iter next contains getitem setitem delitem lt le gt ge add radd sub
rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul and or xor neg pos abs
invert int float complex index round str repr format enter exit""".split()


class _Object(type("_Looks", (Stand,), {f"__{name}__": _looks_into for name in _LOOKS})):
  """An object of the program as the tests see it: it can be passed back and called."""

  def __init__(self, remote: _Remote, number: int, kind: str, silent: bool) -> None:
    self.remote_, self.number_, self.kind_, self.silent_ = remote, number, kind, silent

  def __call__(self, *args: Any, **named: Any) -> Any:
    return self.remote_.call(self.number_, args, named)

  def __eq__(self, other: Any) -> bool:
    """Equal to itself. What the program defines as equal to plain data is not believed."""
    if other is self:
      return True
    if not isinstance(other, _Object):
      if self.silent_ or other is None:
        return False
      if self.kind_ in _SIZED and type(other).__name__ != self.kind_:  # only too long to cross
        return False
    return _looks_into(self)

  __hash__ = object.__hash__


def _exception(name: str, text: str) -> Exception:
  """A builtin exception by its name, or `Raised`."""
  kind = vars(builtins).get(name)
  silent = name in ("StopIteration", "StopAsyncIteration")  # would end a loop of the test early
  if isinstance(kind, type) and issubclass(kind, Exception) and not silent:
    with contextlib.suppress(TypeError):
      return kind(text)
  return Raised(f"{name}: {text}")


def judge(orders: dict[str, Any], channel: Channel, report: Callable[..., None]) -> None:
  """Runs setup and tests.

  Reports {passed, undecided, why, gone} for each test, {unknown: why} where a test is at fault, and
  {end} after the last one, without which no answer is right. Where the program did not reach its
  end no test passes, not even one that calls nothing.
  """
  module, remote = _module("tests"), _Remote(channel)
  try:
    _Text("tests", orders["setup"]).exec_module(module)
  except Exception as error:
    return report(unknown=f"the tests' setup raises {_described(error)}")
  for name in orders["names"]:
    vars(module)[name] = lambda *args, _name=name, **named: remote.call(_name, args, named)
  broken = remote.load()
  for number, text in enumerate(orders["tests"], 1):
    loader = _Text("tests", text)
    remote.begin()
    why = broken
    try:
      loader.get_code("tests")
    except (SyntaxError, ValueError) as error:
      return report(unknown=f"test {number} is no Python: {_described(error)}")
    try:
      if not broken:
        loader.exec_module(module)
    except (NameError, ImportError) as error:
      if error is not remote.last:  # raised by the test, not by the program
        return report(unknown=f"test {number} raises {_described(error)}")
      why = _described(error)
    except BaseException as error:  # whatever a test raises, it has not passed
      why = _described(error)
    why = remote.lost or why  # also where a bare `except` of the test caught NoAnswer
    if why and remote.based and not remote.lost:
      remote.undecided(f"an argument of class {remote.based} crosses as its base")
    why = f"{remote.note}; {why}" if why and remote.note else why
    report(passed=not (why or remote.open), undecided=bool(remote.open) and not remote.lost,
           why=f"test {number}: {remote.open or why}" if remote.open or why else "",
           gone=bool(remote.gone))
  report(end=True)
  return None
