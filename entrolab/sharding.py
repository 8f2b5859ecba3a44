"""Where arrays live: one table from logical axes to mesh axes, meshes, and several hosts.

Mesh axes: `data` copies the parameters, `fsdp` shards them and the batch, `tensor` shards heads,
the feed-forward width and the vocabulary.
"""

import hashlib
import math
import os
import socket
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from entrolab.models.transformer import SUMMED, Config

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
RULES = {"batch": ROWS, "width": "fsdp", "kv_heads": "tensor", "mlp": "tensor",
         "vocab": "tensor", "layers": None, "queries": None, "head_dim": None, "gate": None}
LOGICAL = {  # parameter -> logical axes
    "embed": ("vocab", "width"), "head": ("vocab", "width"), "final_norm": ("width",),
    "attn_norm": ("layers", "width"), "mlp_norm": ("layers", "width"),
    "qkv": ("layers", "width", "kv_heads", "queries", "head_dim"),
    "qkv_bias": ("layers", "kv_heads", "queries", "head_dim"),
    "q_norm": ("layers", "head_dim"), "k_norm": ("layers", "head_dim"),
    "out": ("layers", "kv_heads", "queries", "head_dim", "width"),
    "gate_up": ("layers", "width", "gate", "mlp"), "down": ("layers", "mlp", "width")}
START_TIMEOUT_S = 300
HEARTBEAT_S = 60  # silence after which a host counts as dead, and its job ends
HOST = 64  # bytes of a host name in a check


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


def param_specs(config: Config, int8: bool = False) -> dict[str, Any]:
  """PartitionSpecs in the shape of the parameter tree; int8: of parameters served so."""
  layers = ["attn_norm", "qkv", "out", "mlp_norm", "gate_up", "down"]
  layers += ["qkv_bias"] * config.qkv_bias + ["q_norm", "k_norm"] * config.qk_norm
  outer = ["embed", "final_norm"] + ["head"] * (not config.tied)

  def specs(names):
    scaled = [name for name in names if int8 and name in SUMMED]
    channels = lambda name: [x for at, x in enumerate(LOGICAL[name]) if at not in SUMMED[name]]
    return {**{name: spec(*LOGICAL[name]) for name in names},
            **{f"{name}_scale": spec(*channels(name)) for name in scaled}}

  return {**specs(outer), "layers": specs(layers)}


def make_mesh(data: int, fsdp: int, tensor: int, devices: Any = None) -> jax.sharding.Mesh:
  """A mesh of Auto axes; data=-1 takes all devices that are left, a number takes as many.

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
  # an axis may be a part of one of the torus: 16 x 4 on the 8 x 8 chips of a v6e-64
  placed = mesh_utils.create_device_mesh((data, fsdp, tensor), devices[:size],
                                         allow_split_physical_axes=True)
  return jax.sharding.Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)


def check(config: Config, mesh: jax.sharding.Mesh, rows: int, name: str) -> None:
  """Raises ValueError when the model, or `rows` rows of `name`, do not divide over the mesh."""
  tensor, ways = mesh.shape["tensor"], row_devices(mesh)
  parts = [("kv_heads", config.kv_heads, "tensor", tensor),
           ("vocab_size", config.vocab_size, "tensor", tensor),
           ("mlp_width", config.mlp_width, "tensor", tensor),
           ("width", config.width, "fsdp", mesh.shape["fsdp"]), (name, rows, "data x fsdp", ways)]
  for what, size, axis, cut in parts:
    if size % cut:
      choices = [c for c in range(1, size + 1) if size % c == 0]
      raise ValueError(f"{what}={size} does not divide over {axis}={cut}; choices for {axis}: "
                       f"{choices[:16]}")


def row_devices(mesh: jax.sharding.Mesh) -> int:
  """How many parts rows are sharded into."""
  return math.prod(mesh.shape[axis] for axis in ROWS)


def rows(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Rows over data and fsdp, whatever follows whole."""
  return NamedSharding(mesh, spec("batch"))


def whole(mesh: jax.sharding.Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, P())


def place(local: Any, sharding: NamedSharding) -> Any:
  """The rows of this process -> one global array; a row is held by one process."""
  if jax.process_count() == 1:
    return jax.device_put(local, sharding)
  put = lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x))
  return jax.tree.map(put, local)


def put(value: Any, sharding: NamedSharding) -> jax.Array:
  """What every process holds whole, and the same -> one global array. Nothing is sent to compare
  it (`agree` does that), and NaN is a value like another."""
  if jax.process_count() == 1:
    return jax.device_put(value, sharding)
  whole = np.asarray(value)
  return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def local(tree: Any) -> Any:
  """Global arrays of rows -> the rows of this process, as numpy arrays."""
  def one(x):
    if jax.process_count() == 1:
      return np.asarray(x)
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[at]) for at in sorted(parts)])

  return jax.tree.map(one, tree)


def start_hosts() -> None:
  """Joins the processes of a job: under SLURM and GKE by what they announce, elsewhere by
  ENTROLAB_COORDINATOR=host:port, ENTROLAB_PROCESSES and ENTROLAB_PROCESS, or by
  ENTROLAB_COORDINATOR=auto, as jax finds them (TPU virtual machines). Alone: does nothing."""
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
  """Raises RuntimeError naming the hosts whose values differ from those of process 0, and which.

  values: anything with a stable repr, by what it is called in the error. Every process must call
  it with the same names, at the same point of its program: it also is a barrier.
  """
  if jax.process_count() == 1:
    return
  digest = lambda x: hashlib.sha256(repr(x).encode()).digest()[:8]
  host = socket.gethostname().encode()[:HOST].ljust(HOST, b"\0")
  own = np.frombuffer(b"".join(map(digest, values.values())) + host, np.uint8)
  rows = np.asarray(multihost_utils.process_allgather(own))
  said = []
  for process, row in enumerate(rows):
    differ = [name for at, name in enumerate(values)
              if (row[8 * at:8 * at + 8] != rows[0, 8 * at:8 * at + 8]).any()]
    if differ:
      name = row[-HOST:].tobytes().rstrip(b"\0").decode()
      said.append(f"process {process} on host {name} differs from process 0 in "
                  f"{' and '.join(differ)}")
  if said:
    shown = ", ".join(f"{name} {value!r}" for name, value in values.items())
    raise RuntimeError(f"{when}: {'; '.join(said)}; here, process {jax.process_index()} has "
                       f"{shown}. Start every host with the same code, config, data and folder")


def where(flag: bool) -> list[int]:
  """The processes in which the flag is true."""
  if jax.process_count() == 1:
    return [0] if flag else []
  flags = np.asarray(multihost_utils.process_allgather(np.asarray([flag], np.int32)))
  return np.flatnonzero(flags).tolist()


def interleaved(own: np.ndarray, total: int) -> np.ndarray:
  """Rows p, p + n, p + 2 n, ... of `total` from each process p of n -> all rows, in order."""
  count = jax.process_count()
  if count == 1:
    return own
  short = -(-total // count) - len(own)
  filled = np.concatenate([own, np.zeros((short, *own.shape[1:]), own.dtype)])
  # as bytes: arrays of 64 bits would lose half of them on the way
  raw = np.ascontiguousarray(filled).view(np.uint8).reshape(len(filled), -1)
  parts = np.asarray(multihost_utils.process_allgather(raw))
  rows = np.ascontiguousarray(parts.swapaxes(0, 1)).reshape(-1, raw.shape[1])
  return rows.view(own.dtype).reshape(-1, *own.shape[1:])[:total]
