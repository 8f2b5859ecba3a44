"""A confined process: `python inside.py`, without imports of this package, orders on descriptor 0.

It reads its orders as JSON, confines itself, writes "ready" to descriptor 2, closes that, and only
then runs code that nobody trusts, in one of three roles:

program   runs the source of an answer and serves calls of its functions
judge     has the tests and a secret, calls those functions, reports each test under the secret
command   becomes any interpreter, with the answer in a file

Program and judge are processes in two sandboxes with two pipes between them. What crosses is JSON
of plain data, from which the reader builds new values: an `__eq__` that the program defines stays
in its process, and so do frames, objects, builtins and exit codes. The program receives the
arguments of a call, never the expected result.

Confinement is: rlimits; Landlock where no namespace hides the files (the process can write no file,
read only the interpreter, and neither trace nor signal others); another user id when started by
root; no new privileges; a seccomp filter for x86_64 and aarch64.
"""

import builtins
import contextlib
import ctypes
import errno
import importlib
import itertools
import json
import os
import re
import resource
import signal
import struct
import sys
import types
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from typing import Any

MAX_MESSAGE = 1 << 20  # bytes of a message between judge and program
MAX_REASON = 200  # characters of what the program reports about itself


class _Filter(ctypes.Structure):
  """`struct sock_fprog` of linux/filter.h."""
  _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_char_p)]


_libc = ctypes.CDLL(None, use_errno=True)


def _control(what: str, option: int, value: int, more: Any = None) -> None:
  """prctl(option, value, more, 0, 0). Raises OSError."""
  zero = ctypes.c_ulong(0)
  last = ctypes.c_void_p(None) if more is None else ctypes.byref(more)
  if _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), last, zero, zero):
    raise OSError(ctypes.get_errno(), f"prctl {what}")


def _system(what: str, number: int, *values: Any) -> int:
  """A system call by its number, which x86_64 and aarch64 share here. Raises OSError."""
  result = _libc.syscall(ctypes.c_long(number), *values)
  if result < 0:
    raise OSError(ctypes.get_errno(), what)
  return result


def _landlock(read: list[str]) -> None:
  """From here on files under `read` can be read and run, /dev/null written, and nothing else."""
  size, null = ctypes.c_size_t, ctypes.c_void_p(None)
  version = _system("Landlock is absent (kernel 5.13 or newer, lsm=landlock)", 444, null, size(0),
                    ctypes.c_uint(1))
  every_right = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
  handled = struct.pack("QQQ", every_right, 3, 3)  # files; TCP; sockets and signals to outside
  known = 8 if version < 4 else 16 if version < 6 else 24  # bytes that this kernel reads of it
  rules_fd = _system("landlock_create_ruleset", 444, handled, size(known), ctypes.c_uint(0))
  for path in (*read, "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"):
    try:
      fd = os.open(path, os.O_PATH)
    except FileNotFoundError:
      continue
    # bits: execute, write, read a file, list a folder
    rights = 0b1101 if os.path.isdir(path) else 0b0110 if path == "/dev/null" else 0b0101
    _system(f"landlock_add_rule {path}", 445, ctypes.c_int(rules_fd), ctypes.c_int(1),
            struct.pack("=Qi", rights, fd), ctypes.c_uint(0))
    os.close(fd)
  _control("PR_SET_NO_NEW_PRIVS", 38, 1)
  _system("landlock_restrict_self", 446, ctypes.c_int(rules_fd), ctypes.c_uint(0))
  os.close(rules_fd)


# Modules that an answer names are imported before the process gives up its user id: an interpreter
# of root may lie where no other user can read it.
_KNOWN = """abc array ast asyncio base64 bisect binascii calendar cmath codecs collections
contextlib copy csv ctypes dataclasses datetime decimal difflib enum fnmatch fractions functools
glob hashlib heapq html inspect io itertools json keyword locale logging math numbers operator os
pathlib platform pprint queue random re secrets sched shlex shutil signal socket statistics string
struct subprocess sys tempfile textwrap threading time timeit tokenize traceback types typing
unicodedata urllib uuid warnings weakref zlib""".split()
_HIDDEN = {"datetime": ("_strptime",), "time": ("_strptime",), "urllib": ("urllib.parse",),
           "collections": ("collections.abc", "heapq"), "codecs": ("encodings.rot_13",)}


def _preload(text: str) -> None:
  """Imports the modules of the standard library that `text` names, and those they import late."""
  words = set(re.findall(r"[a-z_0-9]+", text))
  for module in _KNOWN:
    if module in words:
      for name in (module, *_HIDDEN.get(module, ())):
        with contextlib.suppress(ImportError):
          importlib.import_module(name)
  if "random" in words:  # the same program gets the same verdict
    importlib.import_module("random").seed(0)


def _confine(orders: dict[str, Any]) -> None:
  """Limits, files, user and filter, in the order in which each is still possible."""
  for name, value in orders["limits"].items():
    limit = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(limit)[1]
    lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (lower, lower))
  sys.path += orders["path"]
  if orders["role"] != "command":
    _preload(orders["text"])
  if orders["alone"]:
    _landlock(orders["read"])
  if orders["user"]:  # after Landlock: that user may not be able to open every path of its rules
    os.setgroups([])
    os.setresgid(*[orders["user"]] * 3)
    os.setresuid(*[orders["user"]] * 3)
  if orders["alone"]:
    _control("PR_SET_PDEATHSIG", 1, signal.SIGKILL)  # a change of user id clears it: so after that
    if os.getppid() != orders["parent"]:  # it ended before the signal was set
      raise OSError(errno.ESRCH, "the parent is gone")
  _control("PR_SET_NO_NEW_PRIVS", 38, 1)
  code = bytes.fromhex(orders["filter"])
  _control("PR_SET_SECCOMP", 22, 2, _Filter(len(code) // 8, code))


class NoAnswer(BaseException):
  """The program cannot answer this call. No `except Exception` of a test catches it."""


class NotPlain(BaseException):
  """A test passes an argument that cannot cross to the program."""


class Raised(Exception):
  """An exception of the program that is of no builtin class."""


def plain(value: Any) -> Any:
  """Plain data as JSON that preserves its type; subclasses become their base. Raises TypeError for
  other values."""
  if value is None or isinstance(value, bool | str | float):
    return value
  if isinstance(value, int):
    return int(value) if abs(value) < 1 << 63 else {"int": hex(value)}
  if isinstance(value, list):
    return [plain(item) for item in value]
  if isinstance(value, dict):
    return {"dict": [[plain(key), plain(item)] for key, item in value.items()]}
  for kind in (tuple, set, frozenset):
    if isinstance(value, kind):
      return {kind.__name__: [plain(item) for item in value]}
  if isinstance(value, bytes | bytearray):
    return {type(value).__name__: value.hex()}
  if isinstance(value, complex):
    return {"complex": [value.real, value.imag]}
  if isinstance(value, range):
    return {"range": [value.start, value.stop, value.step]}
  if isinstance(value, Iterator):  # perhaps endless; MAX_MESSAGE items are too long to cross
    return {"iter": [plain(item) for item in itertools.islice(value, MAX_MESSAGE)]}
  raise TypeError(f"{type(value).__name__} is no plain data")


_REBUILD = {"int": lambda x: int(x, 16), "tuple": lambda x: tuple(map(rebuilt, x)),
            "dict": lambda x: {rebuilt(key): rebuilt(item) for key, item in x},
            "set": lambda x: set(map(rebuilt, x)), "iter": lambda x: iter([*map(rebuilt, x)]),
            "frozenset": lambda x: frozenset(map(rebuilt, x)), "bytes": bytes.fromhex,
            "bytearray": bytearray.fromhex, "complex": lambda x: complex(*x),
            "range": lambda x: range(*x)}


def rebuilt(value: Any) -> Any:
  """The value that `plain` encoded."""
  if isinstance(value, list):
    return [rebuilt(item) for item in value]
  if isinstance(value, dict):
    (kind, inner), = value.items()
    return _REBUILD[kind](inner)
  return value


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


def program(source: str, channel: Channel) -> None:
  """Runs the source and serves calls of its functions.

  {call, args, named} -> {value} | {raised, text} | {none: why}
  """
  module, broken = _module("solution"), ""
  try:
    _Text("solution", source).exec_module(module)
  except BaseException as error:  # also SystemExit
    broken = f"the program raises {_described(error)}"
  while (call := channel.receive()) is not None:
    function = vars(module).get(call["call"])
    if broken or function is None:
      channel.write(packed({"none": broken or f"the program defines no {call['call']}"}))
      continue
    try:
      value = function(*rebuilt(call["args"]), **rebuilt(call["named"]))
    except Exception as error:
      text = _described(error).partition(": ")[2]
      channel.write(packed({"raised": type(error).__name__, "text": text}))
      continue
    except BaseException as error:
      channel.write(packed({"none": f"{call['call']} raises {_described(error)}"}))
      continue
    try:
      channel.write(packed({"value": plain(value)}))
    except Exception as error:
      channel.write(packed({"none": f"{call['call']} returns no plain data ({_described(error)})"}))


class _Remote:
  """The program as the tests see it: functions by name."""

  def __init__(self, channel: Channel) -> None:
    self.channel = channel
    self.gone = ""  # why the program answers no further call
    self.lost = ""  # why a call of the current test was not answered
    self.last: Exception | None = None  # the last exception that the program raised

  def call(self, name: str, args: tuple, named: dict[str, Any]) -> Any:
    """Calls a function of the program: returns its value or raises its exception."""
    try:
      request = packed({"call": name, "args": plain(list(args)), "named": plain(named)})
    except (TypeError, ValueError, RecursionError) as error:
      raise NotPlain(f"arguments of {name}: {_described(error)}") from None
    # The reply is whatever the program wrote to its pipe: every way in which it may be malformed
    # ends here, and no value in it has a class that the program defined.
    try:
      reply = self._send(request)
      if "value" in reply:
        return rebuilt(reply["value"])
      self.lost = str(reply.get("none", ""))[:MAX_REASON]
      self.last = _exception(str(reply.get("raised")), str(reply.get("text"))[:MAX_REASON])
    except EOFError as error:
      self.lost = self.gone = str(error)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError):
      self.lost = self.gone = "the program sent no proper answer"
    if self.lost:
      raise NoAnswer(self.lost)
    assert self.last
    raise self.last

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

  Reports {passed, why, gone} for each test, {unknown: why} where a test is at fault, and {end}
  after the last one, without which no answer is right.
  """
  module, remote = _module("tests"), _Remote(channel)
  try:
    _Text("tests", orders["setup"]).exec_module(module)
  except Exception as error:
    return report(unknown=f"the tests' setup raises {_described(error)}")
  for name in orders["names"]:
    vars(module)[name] = lambda *args, _name=name, **named: remote.call(_name, args, named)
  for number, text in enumerate(orders["tests"], 1):
    loader = _Text("tests", text)
    why = remote.lost = ""
    try:
      loader.get_code("tests")
    except (SyntaxError, ValueError) as error:
      return report(unknown=f"test {number} is no Python: {_described(error)}")
    try:
      loader.exec_module(module)
    except NotPlain as error:
      return report(unknown=f"test {number}: {error}")
    except (NameError, ImportError) as error:
      if error is not remote.last:  # raised by the test, not by the program
        return report(unknown=f"test {number} raises {_described(error)}")
      why = _described(error)
    except BaseException as error:  # whatever a test raises, it has not passed
      why = _described(error)
    why = remote.lost or why  # also where a bare `except` of the test caught NoAnswer
    report(passed=not why, why=why and f"test {number}: {why}", gone=bool(remote.gone))
  report(end=True)
  return None


def _command(orders: dict[str, Any], status: int) -> None:
  """Becomes the interpreter; returns only when it cannot be run."""
  os.dup2(orders["input"], 0)
  for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and children inherit that
    signal.signal(number, signal.SIG_DFL)
  try:
    os.execve(orders["argv"][0], orders["argv"], orders["environment"])
  except OSError as error:
    os.write(status, f"failed: cannot run {orders['argv'][0]}: {error.strerror}".encode())


def main() -> int:
  """Reads the orders from descriptor 0, confines this process, then takes its role."""
  status = os.dup(2)
  quiet = os.open(os.devnull, os.O_RDWR)
  with open(0, "rb", closefd=False) as file:
    orders = json.loads(file.read())
  os.dup2(quiet, 0)  # the orders, with the secret of a judge, can be read no more
  try:
    if orders["role"] == "command":  # a memory file, which the filter refuses to make later
      orders["input"] = os.memfd_create("input")
      os.write(orders["input"], orders["text"].encode(errors="replace"))
      os.lseek(orders["input"], 0, os.SEEK_SET)
    _confine(orders)
  except OSError as error:
    os.write(status, f"failed: {error.strerror or error}".encode())
    return 1
  os.write(status, b"ready\n")
  os.dup2(quiet, 2)
  if orders["role"] == "command":
    _command(orders, status)
    return 1
  os.close(status)
  channel = Channel(orders["inbox"], orders["outbox"])
  if orders["role"] == "program":
    program(orders["text"], channel)
    return 0
  output = os.dup(1)
  os.dup2(quiet, 1)  # what tests print is no report

  def report(**message: Any) -> None:
    Channel(-1, output).write(packed({"secret": orders["secret"], **message}))

  judge(orders, channel, report)
  return 0


if __name__ == "__main__":
  os._exit(main())  # not sys.exit: no handler that the program has registered runs
