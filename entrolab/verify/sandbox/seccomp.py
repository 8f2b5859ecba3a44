"""The seccomp filter of a sandbox, as bytes of BPF for x86_64 and aarch64.

It refuses system calls that a computation does not need: network, tracing, signals to other
processes, mounts and namespaces, kernel keys, shared memory that outlives the process, io_uring
(whose operations no filter sees), and calls newer than this file. Calls that a namespace makes
harmless are refused only where there is none: changes to other processes, and to owners, times and
modes of files. Where nothing hides the files, the filter alone can refuse every change to them.
"""

import errno
import os
import re
import struct

# System calls by number on x86_64 and aarch64; "-" where one has no such call.
_NUMBERS = """
socket 41 198, connect 42 203, bind 49 200, listen 50 201, accept 43 202, accept4 288 242
sendto 44 206, sendmmsg 307 269, ptrace 101 117, process_vm_readv 310 270
process_vm_writev 311 271, kcmp 312 272, pidfd_getfd 438 438, pidfd_send_signal 424 424
tkill 200 130, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, process_madvise 440 440
process_mrelease 448 448, mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51
open_tree 428 428, move_mount 429 429, fsopen 430 430, fsconfig 431 431, fsmount 432 432
fspick 433 433, mount_setattr 442 442, swapon 167 224, swapoff 168 225, quotactl 179 60
unshare 272 97, setns 308 268, bpf 321 280, perf_event_open 298 241, userfaultfd 323 282
io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427, add_key 248 217
request_key 249 218, keyctl 250 219, init_module 175 105, finit_module 313 273
delete_module 176 106, kexec_load 246 104, kexec_file_load 320 294, reboot 169 142
syslog 103 116, acct 163 89, settimeofday 164 170, clock_settime 227 112
clock_adjtime 305 266, adjtimex 159 171, sethostname 170 161, setdomainname 171 162
personality 135 92, memfd_create 319 279, memfd_secret 447 447, shmget 29 194, shmat 30 196
msgget 68 186, semget 64 190, mq_open 240 180, name_to_handle_at 303 264
open_by_handle_at 304 265, fanotify_init 300 262, migrate_pages 256 238, move_pages 279 239
"""
_FORKS = "fork 57 -, vfork 58 -"
_EXECS = "execve 59 221, execveat 322 281"
# What a namespace makes harmless: calls on other processes, and on owners and modes of files.
_OTHERS = """
kill 62 129, tgkill 234 131, setpriority 141 140, sched_setaffinity 203 122
sched_setscheduler 144 119, sched_setparam 142 118, sched_setattr 314 274, ioprio_set 251 30
chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -, lchown 94 -
fchown 93 55, fchownat 260 54
utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, setxattr 188 5, lsetxattr 189 6
fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16
setxattrat 463 463, removexattrat 466 466, truncate 76 45
"""
# Changes to files and folders, for a process that may make none; opening a file is looked at below.
_WRITES = """
creat 85 -, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -
renameat 264 38, renameat2 316 276, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36
mknod 133 -, mknodat 259 33, ftruncate 77 46, fallocate 285 47
"""
# These pass a structure in memory, which no filter can read. They are answered by ENOSYS, and libc
# falls back to calls whose arguments are plain integers.
_ABSENT = "clone3 435 435, openat2 437 437"
_NEWEST = 466  # the highest call that is known here; those above are refused

# By machine: the column of the tables above, and the kernel's identifier (AUDIT_ARCH_*).
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7), "arm64": (1, 0xC00000B7)}

# Bits of arguments.
_THREAD = 0x10000  # CLONE_THREAD
_NAMESPACES = 0x7E020080  # the CLONE_NEW* of clone
_TRUNCATE = os.O_TRUNC | os.O_ACCMODE
_OPEN_TO_WRITE = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
_WHOLE = 0xFFFFFFFF

# Instructions of BPF as (operation, jump if true, jump if false, operand).
_LOAD, _EQUAL, _ABOVE, _AND, _RETURN = 0x20, 0x15, 0x25, 0x54, 0x06
_PASS = (_RETURN, 0, 0, 0x7FFF0000)  # SECCOMP_RET_ALLOW
_KILL = (_RETURN, 0, 0, 0x80000000)  # SECCOMP_RET_KILL_PROCESS


def _calls(table: str, column: int) -> list[int]:
  """The numbers in a column of a table."""
  rows = (row.split() for row in re.split("[,\n]", table) if row.strip())
  return [int(row[1 + column]) for row in rows if row[1 + column] != "-"]


def _refuse(number: int = errno.EPERM) -> tuple[int, int, int, int]:
  """SECCOMP_RET_ERRNO: the call fails with this error."""
  return _RETURN, 0, 0, 0x00050000 | number


def _checked(call: int, argument: int, mask: int, values: list[int],
             unless: bool = False) -> list[tuple[int, int, int, int]]:
  """Refuses `call` when its masked argument is among `values`; with `unless`, when it is not.

  An argument of 64 bits is read by its lower half, at offset 16 + 8 n of `struct seccomp_data`.
  """
  hit, miss = (_PASS, _refuse()) if unless else (_refuse(), _PASS)
  block = [(_LOAD, 0, 0, 16 + 8 * argument), (_AND, 0, 0, mask)]
  for value in values:
    block += [(_EQUAL, 0, 1, value), hit]
  return [(_EQUAL, 0, len(block) + 1, call), *block, miss]


def program(machine: str, *, fork: bool, threads: bool, execute: bool, alone: bool,
            write: bool = True) -> bytes:
  """The filter as an array of `struct sock_filter`.

  fork, threads, execute: whether the process may start processes, start threads, become another
  program; alone: no namespace protects other processes from it; write: whether it may change files.
  Raises OSError for a machine that is neither x86_64 nor aarch64.
  """
  if machine not in MACHINES:
    raise OSError(f"the seccomp filter knows {', '.join(MACHINES)}, not {machine}")
  column, audit = MACHINES[machine]
  call = lambda x86, arm: (x86, arm)[column]
  # another machine's numbers mean other calls (32-bit programs on x86_64): the process is killed
  lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit), _KILL]
  # then the number of the call; x32 calls have a high bit, so are refused as unknown too
  lines += [(_LOAD, 0, 0, 0), (_ABOVE, 0, 1, _NEWEST), _refuse(errno.ENOSYS)]
  refused = _calls(_NUMBERS, column)
  if not fork:
    refused += _calls(_FORKS, column)
  if not execute:
    refused += _calls(_EXECS, column)
  if alone:
    refused += _calls(_OTHERS, column)
  if not write:
    refused += _calls(_WRITES, column)
  if not threads:
    refused.append(call(56, 220))  # clone
  for number in refused:
    lines += [(_EQUAL, 0, 1, number), _refuse()]
  for number in _calls(_ABSENT, column):
    lines += [(_EQUAL, 0, 1, number), _refuse(errno.ENOSYS)]
  if threads:  # clone: any process without new namespaces, or threads alone
    mask, value = (_NAMESPACES, 0) if fork else (_THREAD, _THREAD)
    lines += _checked(call(56, 220), 0, mask, [value], unless=True)
  # prctl: PR_SET_PDEATHSIG, which ends the process with its parent, cannot be taken back
  lines += _checked(call(157, 167), 0, _WHOLE, [1])
  # fcntl: F_SETOWN, F_SETSIG and F_SETOWN_EX send signals to other processes
  lines += _checked(call(72, 25), 1, _WHOLE, [8, 10, 15])
  if alone:
    lines += _checked(call(302, 261), 0, _WHOLE, [0], unless=True)  # prlimit64: of itself alone
  if alone or not write:
    # openat and open: a file that can only be read must not be emptied
    mask, values = (_TRUNCATE, [os.O_TRUNC]) if write else (_OPEN_TO_WRITE, [0])
    lines += _checked(call(257, 56), 2, mask, values, unless=not write)
    if column == 0:
      lines += _checked(2, 1, mask, values, unless=not write)
  return b"".join(struct.pack("=HBBI", *line) for line in [*lines, _PASS])
