"""Ways out of a sandbox that were tried: reading what is expected, forging a verdict, escaping."""

import os
import socket

import pytest

from entrolab.verify import code, codes
from tests.sandbox.programs import DOUBLE, verdicts

NEEDLE = 918273645019  # what the tests expect, and a program must not find

# Ways to learn what is expected. Each program returns what it finds; the number
# is known by its remainders, so that no program holds it.
SEARCH = """
import gc, glob, inspect, os, re, sys
def walk(thing, depth=4):
  for digits in re.findall("9[0-9]{11}", str(thing)[:1 << 22]):
    if int(digits) % 999983 == 255932 and int(digits) % 65537 == 3409: return int(digits)
  if depth and isinstance(thing, (dict, list, tuple, set)):
    for item in list(thing.values() if isinstance(thing, dict) else thing)[:2000]:
      found = walk(item, depth - 1)
      if found: return found
def first(things):
  for thing in things:
    try: found = walk(thing)
    except Exception: continue
    if found: return found
def read(path):
  with open(path, "rb", buffering=0) as file: return file.read(1 << 20).decode("latin-1")
def memory(pid):
  for line in read(f"/proc/{pid}/maps").splitlines():
    low, high = (int(end, 16) for end in line.split()[0].split("-"))
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
      file.seek(low)
      yield file.read(min(high - low, 1 << 22)).decode("latin-1")
def files(*roots):
  for root in roots:
    for folder, _, names in os.walk(root):
      for name in names[:200]:
        try: yield read(os.path.join(folder, name))
        except OSError: pass
"""
FINDERS = {
    "frames": "first(vars for frame in inspect.stack() for vars in (frame.frame.f_locals,"
              " frame.frame.f_globals))",
    "caller": "first([sys._getframe(n).f_locals for n in range(1, 6)])",
    "collector": "first(thing for thing in gc.get_objects() if isinstance(thing, (dict, list)))",
    "modules": "first(vars(module) for module in list(sys.modules.values()))",
    "arguments": "first([sys.argv, sys.orig_argv, dict(os.environ)])",
    "descriptors": "first(os.pread(fd, 1 << 16, 0) for fd in range(64) if not os.isatty(fd))",
    "disk": "first(files('TESTS', '/tmp', '/dev/shm', '/scratch', os.getcwd()))",
    "processes": "first(read(path) for name in ('cmdline', 'environ', 'status', 'fd/0', 'fd/3',"
                 " 'fd/4') for path in glob.glob(f'/proc/[0-9]*/{name}'))",
    "memory": "first(text for pid in os.listdir('/proc') if pid.isdigit() and pid != 'self'"
              " and int(pid) != os.getpid() for text in memory(pid))"}
SAFE = """
def f(x):
  try: return {}
  except Exception: return None
"""


def test_nothing_shows_what_is_expected(box, tmp_path):
  for folder in (tmp_path, *tmp_path.parents[:-2]):
    folder.chmod(0o755)                        # as a data set would lie there
  (tmp_path / "tests.jsonl").write_text(f"assert f(3) == {NEEDLE}")
  programs = [SEARCH + SAFE.format(finder.replace("TESTS", str(tmp_path)))
              for finder in FINDERS.values()]
  found = verdicts(box, programs, f"assert f(3) == {NEEDLE}", f"assert f(4) == {NEEDLE}")
  for name, verdict in zip(FINDERS, found, strict=True):
    assert verdict.status == "wrong" and "test 1: AssertionError" in verdict.why, (name, verdict)
  seen = verdicts(box, [SEARCH + SAFE.format(FINDERS[name]) for name in ("frames", "collector")],
                  f"assert f([{NEEDLE}]) == {NEEDLE}")
  assert codes(seen) == [1, 1], "the searches find what is there to be found"


FORGERIES = {
    "equal to all": "class E:\n  __eq__ = lambda s, o: True\n  __hash__ = None\n"
                    "def f(x): return E()",
    "equal integer": "class E(int):\n  __eq__ = lambda s, o: True\n  __hash__ = int.__hash__\n"
                     "def f(x): return E(1)",
    "builtins": "import builtins\nclass A(BaseException): pass\nbuiltins.AssertionError = A\n"
                "builtins.isinstance = lambda *a: True\nbuiltins.int = lambda *a: 6\n"
                "def f(x): return None",
    "harness": "import json, sys\nm = sys.modules['__main__']\nm.plain = lambda v: v\n"
               "m.judge = m.Channel.receive = lambda *a, **k: None\ndef f(x): return None",
    "verdict on all descriptors": "import os\ndef f(x):\n  for fd in range(64):\n"
               "    for line in (b'{\"secret\": \"\", \"test\": 0, \"passed\": true}\\n',"
               " b'{\"end\": true}\\n', b'\\xff[[[\\n'):\n"
               "      try: os.write(fd, line)\n      except OSError: pass\n  return 6",
    "deep reply": "import os\ndef f(x):\n  for fd in range(3, 64):\n"
                  "    try: os.write(fd, b'{\"value\":' + b'[' * 60000 + b'\\n')\n"
                  "    except OSError: pass",
    "exit": "import os\ndef f(x): os._exit(0)", "exit while loading": "import os\nos._exit(0)",
    "SystemExit": "import sys\ndef f(x): sys.exit(0)",
    "atexit": "import atexit, os, sys\natexit.register(os._exit, 0)\n"
              "def f(x): atexit._run_exitfuncs()",
    "AssertionError": "def f(x): raise AssertionError",
    "recursion": "def f(x): return f(x)",
    "end of the stack": "import sys\nsys.setrecursionlimit(10 ** 9)\n"
                        "def f(x): return sorted([x], key=f)",
    "recursive data": "def f(x):\n  a = []\n  a.append(a)\n  return a",
    "long data": "def f(x): return 'x' * (1 << 22)",
    "memory": "def f(x): return bytes(1 << 33)",
    "name of a test": "__name__ = 'tests'\ndef f(x): import tests; return 6",
    "crash": "import ctypes\ndef f(x): ctypes.string_at(0)",
    "suicide": "import os\ndef f(x):\n  os.kill(0, 9)\n  os.kill(-1, 9)"}


def test_forgeries_and_exits_are_wrong(box):
  honest = "def f(x): return x * 2"
  found = code.verify([honest, *FORGERIES.values(), honest], [DOUBLE] * (len(FORGERIES) + 2),
                      sandbox=box)
  assert codes([found[0][0], found[-1][0]]) == [1, 1]
  for name, (verdict, score) in zip(FORGERIES, found[1:-1], strict=True):
    assert verdict.status == "wrong" and score.passed < 3, (name, verdict)


# Ways out. Each program returns the list of what it managed to do.
WAYS = {
    "network": """
import ctypes, socket
for family, address in ((socket.AF_INET, ("127.0.0.1", PORT)), (socket.AF_INET6, ("::1", PORT)),
                        (socket.AF_UNIX, "\\0abstract")):
  attempt(family, lambda: socket.socket(family, socket.SOCK_DGRAM))
  attempt(address, lambda: socket.create_connection(("127.0.0.1", PORT), timeout=1))
attempt("raw call", lambda: call(41 if x86 else 198, 2, 1, 0))
attempt("io_uring", lambda: call(425, 1, ctypes.create_string_buffer(200)))
""",
    "files": """
for path in ("OUTSIDE/new", "OUTSIDE/old", "/tmp/entrolab-escape", "/dev/shm/entrolab-escape",
             "/var/tmp/entrolab-escape", "/usr/entrolab-escape", "/entrolab-escape",
             os.path.expanduser("~root/entrolab-escape"), sys.modules["__main__"].__file__):
  attempt(path, lambda: open(path, "w"))
  attempt(path, lambda: open(path, "a"))
  attempt(path, lambda: os.mkdir(path + "-folder"))
for path in ("OUTSIDE/old", sys.modules["__main__"].__file__, os.__file__):
  attempt("truncate", lambda: os.truncate(path, 0))
  attempt("empty", lambda: os.open(path, os.O_RDONLY | os.O_TRUNC))
  attempt("mode", lambda: os.chmod(path, 0o777))
  attempt("time", lambda: os.utime(path))
  attempt("link", lambda: os.link(path, path + ".link"))
  attempt("symbolic link", lambda: os.symlink(path, path + ".link"))
  attempt("rename", lambda: os.rename(path, path + ".moved"))
  attempt("remove", lambda: os.remove(path))
attempt("read", lambda: open("OUTSIDE/old").read())
attempt("shadow", lambda: open("/etc/shadow").read())
attempt("memory file", lambda: os.memfd_create("x"))
attempt("shared memory", lambda: call(29 if x86 else 194, 0, 4096, 0o1777))
""",
    "processes": """
import ctypes, subprocess
attempt("fork", os.fork)
attempt("command", lambda: subprocess.run(["/bin/true"]))
attempt("exec", lambda: os.execv("/bin/true", ["true"]))
attempt("raw fork", lambda: call(57 if x86 else 220, 17, 0, 0, 0, 0))
attempt("clone3", lambda: call(435, ctypes.create_string_buffer(88), 88))
attempt("kill", lambda: os.kill(PARENT, 9))
attempt("probe", lambda: os.kill(PARENT, 0))
attempt("trace", lambda: call(101 if x86 else 117, 16, PARENT, 0, 0))
attempt("read memory", lambda: open(f"/proc/PARENT/mem", "rb").read(1))
attempt("peek", lambda: call(310 if x86 else 270, PARENT, None, 0, None, 0, 0))
attempt("limits of others", lambda: call(302 if x86 else 261, PARENT, 0, None, None))
attempt("descriptor", lambda: call(438, 0, 0, 0))
attempt("survive", lambda: prctl(1, 0))
attempt("namespace", lambda: call(272 if x86 else 97, 0x10000000))
attempt("mount", lambda: call(165 if x86 else 40, b"x", b"/", b"tmpfs", 0, None))
attempt("root", lambda: os.setuid(0) if os.getuid() else done.append("is root"))
attempt("more", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)))
attempt("x32", lambda: call(0x40000000 + 41, 2, 1, 0) if x86 else call(9999))
done += [] if prctl(39, 0) == 1 and prctl(21, 0) == 2 else ["no filter"]
"""}
WAY = """
import os, resource, sys, ctypes
x86 = os.uname().machine == "x86_64"
libc = ctypes.CDLL(None, use_errno=True)
done = []
def checked(result):
  if result < 0: raise OSError(ctypes.get_errno(), "refused")
  return result
def call(number, *values):
  return checked(libc.syscall(ctypes.c_long(number), *(
      ctypes.c_long(v) if isinstance(v, int) else v for v in values)))
def prctl(option, value):
  zero = ctypes.c_ulong(0)
  return checked(libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero))
def attempt(name, way):
  try: way()
  except (OSError, ValueError, LookupError, ImportError): return
  done.append(str(name))
def f():
  global done
BODY
  return done
"""


def test_every_way_out_is_closed(box, tmp_path):
  tmp_path.chmod(0o777)
  old = tmp_path / "old"
  old.write_text("kept")
  old.chmod(0o666)
  with socket.create_server(("127.0.0.1", 0)) as server:
    server.setblocking(False)
    words = {"OUTSIDE": str(tmp_path), "PARENT": str(os.getpid()),
             "PORT": str(server.getsockname()[1])}
    programs = []
    for way in WAYS.values():
      program = WAY.replace("BODY", "\n".join("  " + line for line in way.splitlines()))
      for word, value in words.items():
        program = program.replace(word, value)
      programs.append(program)
    found = verdicts(box, programs, "done = f()\nassert done == [], done")
    with pytest.raises(BlockingIOError):
      server.accept()
  for name, verdict in zip(WAYS, found, strict=True):
    assert verdict.status == "right", (name, verdict)
  assert [path.name for path in tmp_path.iterdir()] == ["old"] and old.read_text() == "kept"
