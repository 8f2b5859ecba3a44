"""A confined process: `python inside.py`, without imports of this package, orders on descriptor 0.

It reads its orders as JSON, confines itself, writes "ready" to descriptor 2, closes that, and only
then runs code that nobody trusts, in one of three roles:

program   runs the source of an answer and serves calls of its functions
judge     has the tests and a secret, calls those functions, reports each test under the secret
command   becomes any interpreter, with the answer in a file

The roles of Python are in `roles`, what crosses between them in `values`.

Confinement is: rlimits; Landlock where no namespace hides the files (the process can write no file,
read only the interpreter, and neither trace nor signal others); another user id when started by
root; no new privileges; a seccomp filter for x86_64 and aarch64.
"""

import ctypes
import errno
import importlib.util
import json
import os
import resource
import signal
import struct
import sys
from typing import Any


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


class _Capabilities(ctypes.Structure):
  """`struct __user_cap_data_struct`, of which there are two for 64 capabilities."""
  _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32),
              ("inheritable", ctypes.c_uint32)]


READ_ANYWHERE, PASS_ANYWHERE = 2, 1  # CAP_DAC_READ_SEARCH; CAP_DAC_OVERRIDE, which writes as well


def _become(user: int, alone: bool) -> None:
  """Takes a user id, and of root's powers keeps that of reading files, over `execve` too.

  An interpreter of root may lie where no other user can read it, and its library is imported when
  it is needed. What may be read is decided by the namespace or by Landlock; only where Landlock
  refuses every write (`alone`) may the power be the one that writes as well.
  """
  head = (ctypes.c_uint32 * 2)(0x20080522, 0)
  held = (_Capabilities * 2)()
  if _libc.capget(head, held):
    raise OSError(ctypes.get_errno(), "capget")
  choices = (READ_ANYWHERE, PASS_ANYWHERE) if alone else (READ_ANYWHERE,)
  kept = next((bit for bit in choices if held[0].permitted >> bit & 1), None)
  _control("PR_SET_KEEPCAPS", 8, 1)
  os.setgroups([])
  os.setresgid(*[user] * 3)
  os.setresuid(*[user] * 3)
  bits = 0 if kept is None else 1 << kept
  held[0] = _Capabilities(bits, bits, bits)
  held[1] = _Capabilities(0, 0, 0)
  if _libc.capset(head, held):
    raise OSError(ctypes.get_errno(), "capset")
  if kept is not None and _libc.prctl(47, 2, ctypes.c_ulong(kept), ctypes.c_ulong(0),
                                      ctypes.c_ulong(0)):
    raise OSError(ctypes.get_errno(), "prctl PR_CAP_AMBIENT_RAISE")


def install(code: bytes) -> None:
  """Installs a filter of `seccomp.program`, which nothing can take away again. Raises OSError."""
  _control("PR_SET_NO_NEW_PRIVS", 38, 1)
  _control("PR_SET_SECCOMP", 22, 2, _Filter(len(code) // 8, code))


def _confine(orders: dict[str, Any]) -> None:
  """Limits, files, user and filter, in the order in which each is still possible."""
  for name, value in orders["limits"].items():
    limit = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(limit)[1]
    lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (lower, lower))
  sys.path += orders["path"]
  if orders["alone"]:
    _landlock(orders["read"])
  if orders["user"]:  # after Landlock: that user may not be able to open every path of its rules
    _become(orders["user"], orders["alone"])
  if orders["alone"]:
    _control("PR_SET_PDEATHSIG", 1, signal.SIGKILL)  # a change of user id clears it: so after that
    if os.getppid() != orders["parent"]:  # it ended before the signal was set
      raise OSError(errno.ESRCH, "the parent is gone")
  install(bytes.fromhex(orders["filter"]))


def _command(orders: dict[str, Any], status: int) -> None:
  """Becomes the interpreter; returns only when it cannot be run."""
  os.dup2(orders["input"], 0)
  for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and children inherit that
    signal.signal(number, signal.SIG_DFL)
  try:
    os.execve(orders["argv"][0], orders["argv"], orders["environment"])
  except OSError as error:
    os.write(status, f"failed: cannot run {orders['argv'][0]}: {error.strerror}".encode())


def _beside(name: str) -> Any:
  """A module beside this file, by its path: in a sandbox there is no package to import it from."""
  full = f"entrolab.verify.sandbox.{name}"
  path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
  spec = importlib.util.spec_from_file_location(full, path)
  assert spec and spec.loader
  module = sys.modules[full] = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def main() -> int:
  """Reads the orders from descriptor 0, confines this process, then takes its role."""
  values, roles = _beside("values"), _beside("roles")
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
  if "random" in orders["text"]:  # the same program gets the same verdict
    importlib.import_module("random").seed(0)
  channel = values.Channel(orders["inbox"], orders["outbox"])
  if orders["role"] == "program":
    roles.program(orders["text"], channel)
    return 0
  output = os.dup(1)
  os.dup2(quiet, 1)  # what tests print is no report

  def report(**message: Any) -> None:
    line = values.packed({"secret": orders["secret"], **message})
    values.Channel(-1, output).write(line)

  roles.judge(orders, channel, report)
  return 0


if __name__ == "__main__":
  os._exit(main())  # not sys.exit: no handler that the program has registered runs
