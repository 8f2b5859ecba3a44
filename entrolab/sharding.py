"""Where arrays live: one table from logical axes to mesh axes, meshes, and several hosts.

Mesh axes: `data` copies the parameters, `fsdp` shards them and the batch, `tensor` shards heads,
the feed-forward width and the vocabulary.

Knows no model: which logical axes a parameter has stands in `models/parameters.py`.
"""

import dataclasses
import functools
import hashlib
import math
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
RULES = {  # logical axis -> the mesh axis, or axes, that shard it
    "batch": ROWS, "vocab": "tensor", "width": "fsdp", "layers": None, "kv_heads": "tensor",
    "queries": None, "qkv": None, "head_dim": None, "gate_up": None, "mlp": "tensor"}
START_TIMEOUT_S = 300  # for all hosts of a job to appear
HEARTBEAT_S = 60  # silence after which a host counts as dead, and its job ends
HOST = 64  # bytes of a host name that processes exchange when they compare values


@dataclasses.dataclass(frozen=True)
class Layout:
  """The mesh axes that shard rows, the vocabulary and the width of parameters; hashable."""
  mesh: Mesh  # its axes are those below
  rows: tuple[str, ...] = ROWS  # axes that shard rows, together
  vocab: str | None = "tensor"  # the axis that shards the vocabulary; None: whole everywhere
  width: str | None = None  # the axis of `rows` that shards parameters; None: whole everywhere


def spec(*logical: str) -> P:
  """The PartitionSpec of logical axes. Raises ValueError for an unknown or twice used mesh axis."""
  for name in logical:
    if name not in RULES:
      raise ValueError(f"no rule for logical axis {name!r}; have: {', '.join(RULES)}")
  axes = [RULES[name] for name in logical]
  used = [a for entry in axes if entry for a in (entry if isinstance(entry, tuple) else (entry,))]
  if len(set(used)) < len(used):
    raise ValueError(f"logical axes {logical} use a mesh axis twice: {axes}")
  return P(*axes)


def make_mesh(data: int, fsdp: int, tensor: int, devices: Any = None) -> Mesh:
  """A mesh of Auto axes over the first data x fsdp x tensor devices; data=-1 takes all.

  Raises ValueError when there are not enough, or when several processes would not all take part.
  """
  devices = jax.devices() if devices is None else list(devices)
  count = len(devices)
  if data == -1 and fsdp > 0 and tensor > 0 and count % (fsdp * tensor) == 0:
    data = count // (fsdp * tensor)
  size = data * fsdp * tensor
  if min(data, fsdp, tensor) < 1 or size > count or (jax.process_count() > 1 and size != count):
    raise ValueError(f"mesh data={data} x fsdp={fsdp} x tensor={tensor} needs their product to be "
                     f"the number of devices, {count}; data=-1 takes what is left")
  return Mesh(arranged((data, fsdp, tensor), devices[:size]), AXES,
              axis_types=(AxisType.Auto,) * 3)


def arranged(sizes: tuple[int, int, int], devices: Sequence[Any]) -> np.ndarray:
  """Devices [data, fsdp, tensor], as the links of the hardware have them close to one another."""
  # an axis may be a part of one of the torus: 16 x 4 on the 8 x 8 chips of a v6e-64
  return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def row_devices(mesh: Mesh) -> int:
  """How many parts rows are sharded into."""
  return math.prod(mesh.shape[axis] for axis in ROWS)


def processes_of(devices: np.ndarray) -> np.ndarray:
  """Devices [data, fsdp, tensor] -> [row shards, tensor], the process of every device."""
  processes = [device.process_index for device in devices.ravel()]
  return np.asarray(processes).reshape(-1, devices.shape[2])


@functools.lru_cache(maxsize=8)
def row_processes(mesh: Mesh) -> np.ndarray:
  """`processes_of` the devices of a mesh: on a torus they are in no order of processes."""
  return processes_of(mesh.devices)


def rows(mesh: Mesh) -> NamedSharding:
  """The first axis over data and fsdp, all others whole."""
  return NamedSharding(mesh, spec("batch"))


def whole(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, P())


def place(local: Any, sharding: NamedSharding) -> Any:
  """Each process passes the rows of its shards, by their places; returns the global arrays.

  Processes that hold the same shards must pass the same rows: see `row_groups`.
  """
  if jax.process_count() == 1:
    return jax.device_put(local, sharding)
  processes = row_processes(sharding.mesh)
  held = int((processes == jax.process_index()).any(axis=1).sum())

  def put(x):
    # without the global shape, jax takes it that no other process holds these rows, and makes of
    # rows that are shared an array that has fewer
    shape = (len(x) * len(processes) // held, *np.shape(x)[1:])
    return jax.make_array_from_process_local_data(sharding, np.asarray(x), global_shape=shape)

  return jax.tree.map(put, local)


def put(value: Any, sharding: NamedSharding) -> jax.Array:
  """Each process passes the same whole array; returns the global array, sharded.

  That the arrays are the same is not checked: `agree` does that. NaN is allowed.
  """
  if jax.process_count() == 1:
    return jax.device_put(value, sharding)
  whole = np.asarray(value)
  return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def local(tree: Any) -> Any:
  """The rows of this process of global arrays, by their places, as numpy arrays: the inverse of
  `place`."""
  def rows_here(x):
    if jax.process_count() == 1:
      return np.asarray(x)
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[at]) for at in sorted(parts)])

  return jax.tree.map(rows_here, tree)


def start_hosts() -> None:
  """Joins the processes of a job; does nothing for a process that is alone.

  Under SLURM and GKE their environment variables say who takes part; elsewhere
  ENTROLAB_COORDINATOR=host:port, ENTROLAB_PROCESSES and ENTROLAB_PROCESS do, or
  ENTROLAB_COORDINATOR=auto lets jax find out (TPU virtual machines).
  """
  given = os.environ.get("ENTROLAB_COORDINATOR", "")
  if given not in ("", "auto"):
    jax.distributed.initialize(
        given, int(os.environ["ENTROLAB_PROCESSES"]), int(os.environ["ENTROLAB_PROCESS"]),
        initialization_timeout=START_TIMEOUT_S, heartbeat_timeout_seconds=HEARTBEAT_S)
  elif (given == "auto" or int(os.environ.get("SLURM_NTASKS", "1")) > 1
        or len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1):
    jax.distributed.initialize(initialization_timeout=START_TIMEOUT_S,
                               heartbeat_timeout_seconds=HEARTBEAT_S)


def agree(values: Mapping[str, Any], when: str = "at the start") -> None:
  """Raises RuntimeError that names the hosts whose values differ from process 0's, and the values.

  values: name in the error -> anything with a stable repr. Every process must call it with the
  same names at the same point of its program: it also is a barrier.
  """
  if jax.process_count() == 1:
    return
  digest = lambda x: hashlib.sha256(repr(x).encode()).digest()[:8]
  host = socket.gethostname().encode()[:HOST].ljust(HOST, b"\0")
  # of equal length in every process: 8 bytes a value, then the host
  message = np.frombuffer(b"".join(map(digest, values.values())) + host, np.uint8)
  rows = np.asarray(multihost_utils.process_allgather(message))
  differences = []
  for process, row in enumerate(rows):
    differ = [name for at, name in enumerate(values)
              if (row[8 * at:8 * at + 8] != rows[0, 8 * at:8 * at + 8]).any()]
    if differ:
      name = row[-HOST:].tobytes().rstrip(b"\0").decode()
      differences.append(f"process {process} on host {name} differs from process 0 in "
                         f"{' and '.join(differ)}")
  if differences:
    shown = ", ".join(f"{name} {value!r}" for name, value in values.items())
    raise RuntimeError(f"{when}: {'; '.join(differences)}; here, process {jax.process_index()} has "
                       f"{shown}. Start every host with the same code, config, data and folder")


def where(flag: bool) -> list[int]:
  """The processes in which the flag is true."""
  if jax.process_count() == 1:
    return [0] if flag else []
  flags = np.asarray(multihost_utils.process_allgather(np.asarray([flag], np.int32)))
  return np.flatnonzero(flags).tolist()
