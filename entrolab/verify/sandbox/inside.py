"""The inside of a sandbox: `python confined.py`, alone, with its orders as JSON on descriptor 0.

It takes its limits, closes every door behind itself, says "ready" on descriptor 2, closes that
too, and only then runs what nobody trusts, in one of three roles:

program   the source of an answer; answers calls of its functions with plain data
judge     the tests and a secret; calls those functions and reports each test under the secret
command   becomes any interpreter, with the answer in a file

Program and judge are two processes in two sandboxes with two pipes between them. What crosses is
JSON of plain data, rebuilt by the reader: an `__eq__` of the program's stays on its side, and so
do frames, objects, builtins and exit codes. The program sees the arguments of a call, never
what is expected of it.

The doors: rlimits; Landlock where no namespace hides the files (nothing can be written, only the
interpreter can be read, nothing outside can be traced or signalled); another user id when
started by root; no new privileges; a seccomp filter for x86_64 and aarch64.
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

LARGEST = 1 << 20     # bytes of a message between judge and program


class _Filter(ctypes.Structure):
  _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_char_p)]


_libc = ctypes.CDLL(None, use_errno=True)


def _control(what: str, option: int, value: int, more: Any = None) -> None:
  zero, last = ctypes.c_ulong(0), ctypes.c_void_p(None) if more is None else ctypes.byref(more)
  if _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), last, zero, zero):
    raise OSError(ctypes.get_errno(), f"prctl {what}")


def _system(what: str, number: int, *values: Any) -> int:
  result = _libc.syscall(ctypes.c_long(number), *values)
  if result < 0:
    raise OSError(ctypes.get_errno(), what)
  return result


def _landlock(read: list[str]) -> None:
  """Files under `read` can be read and run, /dev/null written, and nothing else."""
  size, null = ctypes.c_size_t, ctypes.c_void_p(None)
  version = _system("Landlock is absent (kernel 5.13 or newer, lsm=landlock)", 444, null, size(0),
                    ctypes.c_uint(1))
  every = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
  wanted = struct.pack("QQQ", every, 3, 3)       # files; TCP; sockets and signals to outside
  known = 8 if version < 4 else 16 if version < 6 else 24
  rules_fd = _system("landlock_create_ruleset", 444, wanted, size(known), ctypes.c_uint(0))
  for path in (*read, "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"):
    try:
      fd = os.open(path, os.O_PATH)
    except FileNotFoundError:
      continue
    rights = 0b1101 if os.path.isdir(path) else 0b0110 if path == "/dev/null" else 0b0101
    _system(f"landlock_add_rule {path}", 445, ctypes.c_int(rules_fd), ctypes.c_int(1),
            struct.pack("=Qi", rights, fd), ctypes.c_uint(0))
    os.close(fd)
  _control("PR_SET_NO_NEW_PRIVS", 38, 1)
  _system("landlock_restrict_self", 446, ctypes.c_int(rules_fd), ctypes.c_uint(0))
  os.close(rules_fd)


# Modules that an answer names are imported before the user id is dropped: root's interpreter may
# lie where nobody else can read it.
_KNOWN = """abc array ast asyncio base64 bisect binascii calendar cmath codecs collections
contextlib copy csv ctypes dataclasses datetime decimal difflib enum fnmatch fractions functools
glob hashlib heapq html inspect io itertools json keyword locale logging math numbers operator os
pathlib platform pprint queue random re secrets sched shlex shutil signal socket statistics string
struct subprocess sys tempfile textwrap threading time timeit tokenize traceback types typing
unicodedata urllib uuid warnings weakref zlib""".split()
_HIDDEN = {"datetime": ("_strptime",), "time": ("_strptime",), "urllib": ("urllib.parse",),
           "collections": ("collections.abc", "heapq"), "codecs": ("encodings.rot_13",)}


def _preload(text: str) -> None:
  words = set(re.findall(r"[a-z_0-9]+", text))
  for name in (name for known in _KNOWN if known in words
               for name in (known, *_HIDDEN.get(known, ()))):
    with contextlib.suppress(ImportError):
      importlib.import_module(name)
  if "random" in words:                          # one program, one verdict
    importlib.import_module("random").seed(0)


def _confine(orders: dict[str, Any]) -> None:
  """Limits, files, user, filter, in the order in which each is still possible."""
  for name, value in orders["limits"].items():
    what = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(what)[1]
    least = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (least, least))
  sys.path += orders["path"]
  if orders["role"] != "command":
    _preload(orders["text"])
  if orders["alone"]:
    _landlock(orders["read"])
  if orders["user"]:
    os.setgroups([])
    os.setresgid(*[orders["user"]] * 3)
    os.setresuid(*[orders["user"]] * 3)
  if orders["alone"]:
    _control("PR_SET_PDEATHSIG", 1, signal.SIGKILL)
    if os.getppid() != orders["parent"]:
      raise OSError(errno.ESRCH, "the parent is gone")
  _control("PR_SET_NO_NEW_PRIVS", 38, 1)
  code = bytes.fromhex(orders["filter"])
  _control("PR_SET_SECCOMP", 22, 2, _Filter(len(code) // 8, code))


class NoAnswer(BaseException):
  """The program cannot answer this call or any further one; no test may catch that."""


class NotPlain(BaseException):
  """A test hands over what cannot cross to the program."""


class Raised(Exception):
  """An exception of the program's that no builtin one stands for."""


def plain(value: Any) -> Any:
  """JSON for plain data, types kept; subclasses become their base. TypeError for the rest."""
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
  if isinstance(value, Iterator):                # of LARGEST items none can cross
    return {"iter": [plain(item) for item in itertools.islice(value, LARGEST)]}
  raise TypeError(f"{type(value).__name__} is no plain data")


_REBUILD = {"int": lambda x: int(x, 16), "tuple": lambda x: tuple(map(rebuilt, x)),
            "dict": lambda x: {rebuilt(key): rebuilt(item) for key, item in x},
            "set": lambda x: set(map(rebuilt, x)), "iter": lambda x: iter([*map(rebuilt, x)]),
            "frozenset": lambda x: frozenset(map(rebuilt, x)), "bytes": bytes.fromhex,
            "bytearray": bytearray.fromhex, "complex": lambda x: complex(*x),
            "range": lambda x: range(*x)}


def rebuilt(value: Any) -> Any:
  """What `plain` was given."""
  if isinstance(value, list):
    return [rebuilt(item) for item in value]
  if isinstance(value, dict):
    (kind, inner), = value.items()
    return _REBUILD[kind](inner)
  return value


def packed(message: dict[str, Any]) -> bytes:
  """One message as a line; ValueError over LARGEST bytes."""
  line = json.dumps(message).encode() + b"\n"
  if len(line) > LARGEST:
    raise ValueError(f"{len(line)} bytes, at most {LARGEST} can cross")
  return line


class Channel:
  """Lines of JSON over two pipes, each bounded in length."""

  def __init__(self, inbox: int, outbox: int) -> None:
    self.inbox, self.outbox, self.buffer = inbox, outbox, bytearray()

  def write(self, line: bytes) -> None:
    """Writes what `packed` returned."""
    while line:
      line = line[os.write(self.outbox, line):]

  def receive(self) -> dict[str, Any] | None:
    """Reads one message; None when the other side has ended or says too much."""
    while b"\n" not in self.buffer:
      part = os.read(self.inbox, 1 << 16)
      self.buffer += part
      if not part or len(self.buffer) > LARGEST:
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


def _told(error: BaseException) -> str:
  try:
    return f"{type(error).__name__}: {error}"[:160].rstrip(": ")
  except Exception:  # its __str__ is the program's
    return type(error).__name__[:160]


def program(source: str, channel: Channel) -> None:
  """Serves calls: {call, args, named} -> {value} | {raised, text} | {none: why}."""
  module, broken = _module("solution"), ""
  try:
    _Text("solution", source).exec_module(module)
  except BaseException as error:  # SystemExit included
    broken = f"the program raises {_told(error)}"
  while (call := channel.receive()) is not None:
    function = vars(module).get(call["call"])
    if broken or function is None:
      channel.write(packed({"none": broken or f"the program defines no {call['call']}"}))
      continue
    try:
      value = function(*rebuilt(call["args"]), **rebuilt(call["named"]))
    except Exception as error:
      told = _told(error).partition(": ")[2]
      channel.write(packed({"raised": type(error).__name__, "text": told}))
      continue
    except BaseException as error:
      channel.write(packed({"none": f"{call['call']} raises {_told(error)}"}))
      continue
    try:
      channel.write(packed({"value": plain(value)}))
    except Exception as error:
      channel.write(packed({"none": f"{call['call']} returns no plain data ({_told(error)})"}))


class _Remote:
  """The program as the tests see it: functions by name."""

  def __init__(self, channel: Channel) -> None:
    self.channel = channel
    self.gone = ""                       # why there is no program any more
    self.lost = ""                       # why a call of this test was not answered
    self.last: Exception | None = None   # what the program raised last

  def call(self, name: str, args: tuple, named: dict[str, Any]) -> Any:
    try:
      request = packed({"call": name, "args": plain(list(args)), "named": plain(named)})
    except (TypeError, ValueError, RecursionError) as error:
      raise NotPlain(f"arguments of {name}: {_told(error)}") from None
    try:
      answer = self._ask(request)
      if "value" in answer:
        return rebuilt(answer["value"])
      self.lost = str(answer.get("none", ""))[:200]
      self.last = _exception(str(answer.get("raised")), str(answer.get("text"))[:200])
    except EOFError as error:
      self.lost = self.gone = str(error)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError):
      self.lost = self.gone = "the program sent no proper answer"
    if self.lost:
      raise NoAnswer(self.lost)
    assert self.last
    raise self.last

  def _ask(self, request: bytes) -> dict[str, Any]:
    if self.gone:
      raise EOFError(self.gone)
    with contextlib.suppress(BrokenPipeError):
      self.channel.write(request)
      answer = self.channel.receive()
      if answer is not None:
        return answer
    raise EOFError("the program ended early")


def _exception(name: str, text: str) -> Exception:
  kind = getattr(builtins, name, None)
  silent = name in ("StopIteration", "StopAsyncIteration")    # would cut short a test's own loop
  if isinstance(kind, type) and issubclass(kind, Exception) and not silent:
    with contextlib.suppress(TypeError):
      return kind(text)
  return Raised(f"{name}: {text}")


def judge(orders: dict[str, Any], channel: Channel, report: Callable[..., None]) -> None:
  """Runs setup and tests: {passed, why, gone} each, {unknown: why} where a test is at fault,
  {end} after the last one."""
  module, remote = _module("tests"), _Remote(channel)
  try:
    _Text("tests", orders["setup"]).exec_module(module)
  except Exception as error:
    return report(unknown=f"the tests' setup raises {_told(error)}")
  for name in orders["names"]:
    vars(module)[name] = lambda *args, _name=name, **named: remote.call(_name, args, named)
  for at, text in enumerate(orders["tests"]):
    why, remote.lost, loader = "", "", _Text("tests", text)
    try:
      loader.get_code("tests")
    except (SyntaxError, ValueError) as error:
      return report(unknown=f"test {at + 1} is no Python: {_told(error)}")
    try:
      loader.exec_module(module)
    except NotPlain as error:
      return report(unknown=f"test {at + 1}: {error}")
    except (NameError, ImportError) as error:
      if error is not remote.last:
        return report(unknown=f"test {at + 1} raises {_told(error)}")
      why = _told(error)
    except BaseException as error:  # whatever a test raises, it has not passed
      why = _told(error)
    why = remote.lost or why             # also where the test caught that there was no answer
    report(passed=not why, why=why and f"test {at + 1}: {why}", gone=bool(remote.gone))
  report(end=True)
  return None


def _command(orders: dict[str, Any], status: int) -> None:
  os.dup2(orders["input"], 0)
  for number in (signal.SIGPIPE, signal.SIGXFSZ):          # which Python ignores
    signal.signal(number, signal.SIG_DFL)
  try:
    os.execve(orders["argv"][0], orders["argv"], orders["environment"])
  except OSError as error:
    os.write(status, f"failed: cannot run {orders['argv'][0]}: {error.strerror}".encode())


def main() -> int:
  """Entry: orders from descriptor 0, confinement, then the role."""
  status, quiet = os.dup(2), os.open(os.devnull, os.O_RDWR)
  with open(0, "rb", closefd=False) as file:
    orders = json.loads(file.read())
  os.dup2(quiet, 0)
  try:
    if orders["role"] == "command":
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
  os.dup2(quiet, 1)
  judge(orders, channel, lambda **said: Channel(-1, output).write(
      packed({"secret": orders["secret"], **said})))
  return 0


if __name__ == "__main__":
  os._exit(main())
