"""Files that are there whole or not at all, and folders that all processes of a run share."""

import contextlib
import os
import pathlib
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator

import jax

from entrolab import row_groups, sharding

SEEN_S = 30  # seconds after which a file that process 0 has written must be seen by the others


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes beside the target and renames: a reader or a kill never meets half a file."""
  with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
    file.write(text)
  os.chmod(file.name, 0o644)
  os.replace(file.name, path)


def check_shared(folder: pathlib.Path) -> None:
  """Raises OSError that names the hosts which do not see what process 0 writes into the folder."""
  if jax.process_count() == 1:
    return
  nonce = row_groups.exchanged(secrets.token_hex(8).encode())[0].decode()
  path = folder / f".shared-{nonce}"  # a new name: no file system has its absence in a cache
  folder.mkdir(parents=True, exist_ok=True)
  if jax.process_index() == 0:
    write_text(path, nonce)
  sharding.agree({"the start": None})  # a barrier: the file is there now
  end = time.monotonic() + SEEN_S
  while not path.is_file() and time.monotonic() < end:
    time.sleep(0.05)
  # also a barrier: the file stays until everybody has looked
  hosts = row_groups.exchanged(b"" if path.is_file() else socket.gethostname().encode())
  if jax.process_index() == 0:
    path.unlink()
  blind = [f"process {process} on host {host.decode()}" for process, host in enumerate(hosts)
           if host]
  if blind:
    raise OSError(f"{folder} is not one folder for all hosts: {', '.join(blind)} cannot see there "
                  "what process 0 writes. Give every host the same --workdir on a file system that "
                  "all of them share: NFS, Lustre, Filestore or a mounted bucket")


@contextlib.contextmanager
def scratch(beside: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder for all processes, removed at the end with what is in it.

  One process takes one of the system's; several need a file system that all of them see, as
  `beside`, the folder of their run, is on.
  """
  if jax.process_count() == 1:
    with tempfile.TemporaryDirectory() as folder:
      yield pathlib.Path(folder)
    return
  nonce = row_groups.exchanged(secrets.token_hex(8).encode())[0].decode()
  folder = beside.with_name(f".{beside.name}-dry-run-{nonce}")
  try:
    yield folder
  finally:
    if jax.process_index() == 0:  # whoever fails does not wait for the others
      shutil.rmtree(folder, ignore_errors=True)
