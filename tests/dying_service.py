"""A service of workers whose jobs try what a hostile answer might."""

import ctypes
import os
import pathlib
import socket
import subprocess
import sys


def load():
  """Needs nothing."""


def prepare(context):
  """Shares nothing."""
  del context


def status_of(process):
  """(NoNewPrivs, Seccomp) of a process: (1, 2) where it is confined by a filter."""
  with open(f"/proc/{process}/status") as file:
    fields = dict(line.split(":\t", 1) for line in file)
  return int(fields["NoNewPrivs"]), int(fields["Seccomp"])


def attempts(*ways):
  """Names of those that were not refused."""
  done = []
  for at, way in enumerate(ways):
    try:
      way()
    except OSError:
      continue
    done.append(at)
  return done


def work(prepared, kind):
  """(what came of it, False)."""
  del prepared
  path = "/tmp/entrolab-worker-escape"
  file = __file__
  if kind == "where":
    return [os.getpid(), *status_of("self")], False
  if kind == "leave":
    os._exit(0)
  if kind == "segfault":
    ctypes.string_at(0)
  if kind == "memory":
    bytearray(1 << 30)
  if kind == "write":
    return attempts(lambda: open(path, "w"), lambda: open(path, "a"), lambda: open(file, "r+"),
                    lambda: os.mkdir(path), lambda: os.remove(file), lambda: os.rename(file, path),
                    lambda: os.symlink(file, path), lambda: os.link(file, path),
                    lambda: os.truncate(file, 0), lambda: os.chmod(file, 0o777),
                    lambda: os.utime(file), lambda: os.mkfifo(path),
                    lambda: os.open(file, os.O_RDONLY | os.O_TRUNC),
                    lambda: os.open("/tmp", os.O_TMPFILE | os.O_RDWR),
                    lambda: pathlib.Path(path).touch(), lambda: os.memfd_create("x"),
                    lambda: os.rmdir("/tmp/no-such"), lambda: os.mknod(path)), False
  if kind == "network":
    return attempts(lambda: socket.create_connection(("127.0.0.1", 1), timeout=1),
                    lambda: socket.socket(socket.AF_UNIX)), False
  if kind == "fork":
    return attempts(os.fork, lambda: subprocess.run(["/bin/true"], check=False),
                    lambda: os.execv("/bin/true", ["true"])), False
  if kind == "signal":
    return attempts(lambda: os.kill(os.getppid(), 0), lambda: os.kill(os.getppid(), 9),
                    lambda: open(f"/proc/{os.getppid()}/mem", "r+b")), False
  if kind == "forge":  # what it writes itself is read as its answer, and the next job is another's
    _everywhere(b"\xff" * 64)
  if kind == "half":
    _everywhere(b"\x40\0\0\0{")
    while True:
      pass
  if kind == "long":
    return "x" * (1 << 21), False
  if kind == "deep":
    return _nested(sys.getrecursionlimit() * 3), False
  return kind, False


def _everywhere(data):
  for fd in range(3, 64):
    try:
      os.write(fd, data)
    except OSError:
      continue


def _nested(depth):
  value = []
  for _ in range(depth):
    value = [value]
  return value
