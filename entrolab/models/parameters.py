"""Sizes of the decoder, and the one table of its parameters.

PARAMETERS has a row for every parameter. From the rows follow what `transformer` creates and reads,
how a mesh shards it, how it is served in int8, how many parameters a model has, and in which
tensors of a Hugging Face checkpoint they are. A family with one more norm adds one row here, and
the line of `transformer` that applies it.

The tree is nested once: {"embed": [V, D], ..., "layers": {"attn_norm": [L, D], ...}}. Its axes
have V entries of the vocabulary, width D, L layers, K key-value heads that serve R = heads / K
query heads each, width dh of a head, feed-forward width F.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.nn import initializers

from entrolab import sharding
from entrolab.sharding import Layout

Params = dict[str, Any]
Remat = Literal["none", "block", "dots"]


@dataclasses.dataclass(frozen=True)
class Linear:
  """All rates of the rotary embedding divided by a factor."""
  factor: float  # of every wave length


@dataclasses.dataclass(frozen=True)
class Llama3:
  """Llama 3.1's change of the rotary frequencies, see `rope.llama3`."""
  factor: float  # by which long waves get longer
  low: float  # waves longer than original / low are long
  high: float  # waves shorter than original / high stay
  original: int  # tokens of context before the change


@dataclasses.dataclass(frozen=True)
class Yarn:
  """YaRN's change of the rotary frequencies, see `rope.yarn`."""
  factor: float  # by which slow waves get longer
  original: int  # tokens of context before the change
  gain: float  # of rotated queries and of rotated keys
  fast: float = 32.0  # turns over `original` from which on a wave stays
  slow: float = 1.0  # turns over `original` up to which a wave is slow
  truncate: bool = True  # whether the places of `fast` and `slow` are rounded outwards


@dataclasses.dataclass(frozen=True)
class Proportional:
  """Rotation of a part of each head, whose other pairs stay as they are."""
  part: float  # of the pairs of a head, 0 to 1
  factor: float = 1.0  # of the wave lengths


Stretch = Linear | Llama3 | Yarn | Proportional


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and switches of the decoder; hashable, static under jit.

  Raises ValueError where `heads` is no multiple of `kv_heads`, and for an unknown `remat`.
  """
  vocab_size: int  # V, tokens that have an embedding
  width: int  # D, of the states between layers
  layers: int  # L
  heads: int  # query heads
  kv_heads: int  # key-value heads, each for heads / kv_heads query heads
  head_dim: int  # dh, width of a head
  mlp_width: int  # of the feed-forward layers
  rope_theta: float = 1e4  # base of the wave lengths of the rotary embedding
  rope_stretch: Stretch | None = None  # a change of these wave lengths
  norm_eps: float = 1e-5  # added to the mean square in every norm
  tied: bool = True  # the embedding is the output matrix too
  qkv_bias: bool = False  # biases on queries, keys and values (Qwen2)
  qk_norm: bool = False  # norms of queries and keys (Qwen3)
  max_length: int = 2048  # tokens; `explain.lengths` says where a run goes beyond them
  dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters are float32
  remat: Remat = "none"  # what a backward pass computes again, see `transformer.REMAT`
  layout: Layout | None = None  # mesh axes of rows and heads; None: the compiler places all

  def __post_init__(self) -> None:
    if self.heads % self.kv_heads:
      raise ValueError(f"heads={self.heads} is no multiple of kv_heads={self.kv_heads}")
    if self.remat not in get_args(Remat):
      raise ValueError(f"remat={self.remat!r}; choices: {', '.join(map(repr, get_args(Remat)))}")

  @property
  def queries(self) -> int:
    """R, query heads a key-value head serves."""
    return self.heads // self.kv_heads


def fused(config: Config) -> dict[str, tuple[int, ...]]:
  """The axes along which several matrices are fused -> the lengths of their parts, in order.

  Queries, keys and values are one matrix, as are gate and up, because one wide matmul is faster
  than three narrow ones. Queries, keys and values are fused within each key-value head, not over
  all heads: a mesh then shards the heads, and no device needs a part of another's.
  """
  return {"qkv": (config.queries, 1, 1), "gate_up": (1, 1)}


def sizes(config: Config) -> dict[str, int]:
  """Logical axis -> length."""
  single = {"vocab": config.vocab_size, "width": config.width, "layers": config.layers,
            "kv_heads": config.kv_heads, "queries": config.queries, "head_dim": config.head_dim,
            "mlp": config.mlp_width}
  return single | {axis: sum(parts) for axis, parts in fused(config).items()}


class Parameter(NamedTuple):
  """A row of the table."""
  name: str  # in the tree; below "layers" where the first axis is "layers"
  axes: tuple[str, ...]  # logical: `sizes` has their lengths, `sharding.RULES` their mesh axes
  # Hugging Face names: one, or one for each part of its fused axis; below "model.layers.N." those
  # of a layer
  tensors: tuple[str, ...]
  init: Callable[[Config], initializers.Initializer]  # of the random start
  summed: tuple[str, ...] = ()  # axes that its matmul sums over; () for gains and biases
  gain: bool = False  # of a norm: multiplied in float32, whatever the dtype of the model
  used: Callable[[Config], bool] = lambda config: True  # whether a decoder has it

  @property
  def layered(self) -> bool:
    """Whether it is stacked over layers."""
    return self.axes[0] == "layers"

  @property
  def summed_axes(self) -> tuple[int, ...]:
    """Positions of the axes that its matmul sums over."""
    return tuple(at for at, axis in enumerate(self.axes) if axis in self.summed)

  @property
  def channels(self) -> tuple[str, ...]:
    """The axes that its matmul leaves: of its int8 scales, and of the output channels."""
    return tuple(axis for axis in self.axes if axis not in self.summed)

  @property
  def scale(self) -> str:
    """The name of its int8 scales, beside it in the tree."""
    return f"{self.name}_scale"

  def shape(self, config: Config) -> tuple[int, ...]:
    """Lengths of its axes."""
    lengths = sizes(config)
    return tuple(lengths[axis] for axis in self.axes)

  def within(self, tree: Params) -> Any:
    """Its leaf of a tree of parameters."""
    return tree["layers"][self.name] if self.layered else tree[self.name]


def _normal(config: Config) -> initializers.Initializer:
  return initializers.normal(0.02)


def _residual(config: Config) -> initializers.Initializer:
  # a layer adds two such outputs to the states: the sum over all layers has the variance of one
  return initializers.normal(0.02 / (2 * config.layers) ** 0.5)


def _norm(name: str, axes: str, tensor: str,
          used: Callable[[Config], bool] = lambda config: True) -> Parameter:
  return Parameter(name, tuple(axes.split()), (f"{tensor}.weight",),
                   lambda config: initializers.ones, gain=True, used=used)


def _matrix(name: str, axes: str, tensors: tuple[str, ...], summed: str,
            init: Callable[[Config], initializers.Initializer] = _normal,
            used: Callable[[Config], bool] = lambda config: True) -> Parameter:
  return Parameter(name, tuple(axes.split()), tuple(f"{tensor}.weight" for tensor in tensors),
                   init, summed=tuple(summed.split()), used=used)


def _bias(name: str, axes: str, tensors: tuple[str, ...],
          used: Callable[[Config], bool]) -> Parameter:
  return Parameter(name, tuple(axes.split()), tuple(f"{tensor}.bias" for tensor in tensors),
                   lambda config: initializers.zeros, used=used)


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

# The order is that in which random parameters are drawn: a new row goes behind those of its module.
PARAMETERS = (
    # looked up by rows, and, where the head is tied, the matrix of the head: one int8 scale a token
    _matrix("embed", "vocab width", ("model.embed_tokens",), summed="width"),
    _matrix("head", "vocab width", ("lm_head",), summed="width", used=lambda c: not c.tied),
    _norm("final_norm", "width", "model.norm"),

    _norm("attn_norm", "layers width", "input_layernorm"),
    _matrix("qkv", "layers width kv_heads qkv head_dim", _QKV, summed="width"),
    _bias("qkv_bias", "layers kv_heads qkv head_dim", _QKV, used=lambda c: c.qkv_bias),
    _norm("q_norm", "layers head_dim", "self_attn.q_norm", used=lambda c: c.qk_norm),
    _norm("k_norm", "layers head_dim", "self_attn.k_norm", used=lambda c: c.qk_norm),
    _matrix("out", "layers kv_heads queries head_dim width", ("self_attn.o_proj",),
            summed="kv_heads queries head_dim", init=_residual),

    _norm("mlp_norm", "layers width", "post_attention_layernorm"),
    _matrix("gate_up", "layers width gate_up mlp", ("mlp.gate_proj", "mlp.up_proj"),
            summed="width"),
    _matrix("down", "layers mlp width", ("mlp.down_proj",), summed="mlp", init=_residual),
)
BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


def of(config: Config) -> list[Parameter]:
  """The parameters of a decoder, in the order of the table."""
  return [parameter for parameter in PARAMETERS if parameter.used(config)]


def _tree(config: Config, leaves: Callable[[Parameter], dict[str, Any]]) -> Params:
  """A tree out of what each parameter contributes to its level: {name: leaf}."""
  tree: Params = {"layers": {}}
  for parameter in of(config):
    (tree["layers"] if parameter.layered else tree).update(leaves(parameter))
  return tree


def shapes(config: Config) -> Params:
  """The tree of float32 parameters, with shapes in place of arrays."""
  return _tree(config, lambda parameter: {
      parameter.name: jax.ShapeDtypeStruct(parameter.shape(config), jnp.float32)})


def count(config: Config) -> int:
  """How many parameters a decoder has."""
  return sum(math.prod(parameter.shape(config)) for parameter in of(config))


def specs(config: Config, int8: bool = False) -> Params:
  """PartitionSpecs in the shape of the tree; int8: of the parameters of `transformer.serving`."""
  def leaves(parameter: Parameter) -> dict[str, Any]:
    found = {parameter.name: sharding.spec(*parameter.axes)}
    if int8 and parameter.summed:
      found[parameter.scale] = sharding.spec(*parameter.channels)
    return found

  return _tree(config, leaves)


def check_mesh(config: Config, mesh: jax.sharding.Mesh, rows: int, name: str) -> None:
  """Raises ValueError when the model, or `rows` rows of `name`, do not divide over the mesh."""
  tensor, fsdp, row_devices = mesh.shape["tensor"], mesh.shape["fsdp"], sharding.row_devices(mesh)
  divided = [("kv_heads", config.kv_heads, "tensor", tensor),
             ("vocab_size", config.vocab_size, "tensor", tensor),
             ("mlp_width", config.mlp_width, "tensor", tensor),
             ("width", config.width, "fsdp", fsdp),
             (name, rows, "data x fsdp", row_devices)]
  for what, size, axis, parts in divided:
    if size % parts:
      choices = [divisor for divisor in range(1, size + 1) if size % divisor == 0]
      raise ValueError(f"{what}={size} does not divide over {axis}={parts}; choices for {axis}: "
                       f"{choices[:16]}")
