"""The seccomp filter, by an interpreter of its instructions."""

import os
import struct

import pytest

from entrolab.verify.sandbox import seccomp


def decide(program: bytes, arch: int, number: int, *args: int) -> int:
  """What the kernel would return for a call: an interpreter of the filter's five instructions."""
  data = struct.pack("<iIQ6Q", number, arch, 0, *(list(args) + [0] * 6)[:6])
  lines = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
  at = loaded = 0
  while True:
    what, yes, no, value = lines[at]
    at += 1
    if what == 0x20:
      loaded, = struct.unpack_from("<I", data, value)
    elif what == 0x54:
      loaded &= value
    elif what == 0x06:
      return value
    else:
      at += yes if (loaded == value if what == 0x15 else loaded > value) else no


PASS, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


@pytest.mark.parametrize("machine, arch, column", [("x86_64", 0xC000003E, 0),
                                                   ("aarch64", 0xC00000B7, 1)])
def test_the_filter_on_both_machines(machine, arch, column):
  strict = seccomp.program(machine, fork=False, threads=True, execute=False, alone=True)
  loose = seccomp.program(machine, fork=True, threads=True, execute=True, alone=False)
  call = lambda *numbers: numbers[column]
  table = [  # call, arguments, in the strict filter, in the loose one
      (call(0, 63), (), PASS, PASS), (call(9, 222), (), PASS, PASS),           # read, mmap
      (call(41, 198), (2, 1), EPERM, EPERM), (call(101, 117), (16,), EPERM, EPERM),
      (call(59, 221), (), EPERM, PASS), (call(62, 129), (1, 9), EPERM, PASS),
      (call(56, 220), (0x3D0F00,), PASS, PASS), (call(56, 220), (17,), EPERM, PASS),
      (call(56, 220), (0x10000011,), EPERM, EPERM),                            # a user namespace
      (435, (), ENOSYS, ENOSYS), (437, (), ENOSYS, ENOSYS), (425, (), EPERM, EPERM),
      (467, (), ENOSYS, ENOSYS), (0x40000000 + 41, (2, 1), ENOSYS, ENOSYS),    # newer, x32
      (call(157, 167), (1, 0), EPERM, EPERM), (call(157, 167), (15, 0), PASS, PASS),
      (call(302, 261), (0, 7), PASS, PASS), (call(302, 261), (4321, 7), EPERM, PASS),
      (call(257, 56), (0, 0, os.O_TRUNC), EPERM, PASS),
      (call(257, 56), (0, 0, os.O_WRONLY | os.O_TRUNC), PASS, PASS),
      (call(72, 25), (3, 8, 4321), EPERM, EPERM), (call(72, 25), (3, 1), PASS, PASS)]
  for number, args, tight, wide in table:
    assert decide(strict, arch, number, *args) == tight, (number, args)
    assert decide(loose, arch, number, *args) == wide, (number, args)
  assert decide(strict, 0x40000003, 0) == KILL                                 # 32 bits
  assert decide(seccomp.program(machine, fork=False, threads=False, execute=True, alone=True),
                arch, call(56, 220), 0x3D0F00) == EPERM
  with pytest.raises(OSError, match="knows x86_64, aarch64, arm64, not riscv64"):
    seccomp.program("riscv64", fork=False, threads=False, execute=False, alone=True)
