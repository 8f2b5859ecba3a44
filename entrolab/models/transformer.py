"""One decoder for Llama, SmolLM2, Qwen2.5 and Qwen3, as pure functions of a parameter tree.

RMSNorm, rotary positions (half split), grouped-query attention, SwiGLU; optional biases on
queries, keys and values (Qwen2), optional norms of queries and keys (Qwen3), optional tied head.
Layers are stacked and scanned, so that compile time does not depend on depth.

Parameter tree, L layers of width D, K key-value heads each serving R = heads / K queries:
  embed [V, D]; head [V, D] unless tied; final_norm [D];
  layers: attn_norm [L, D], qkv [L, D, K, R + 2, dh], qkv_bias [L, K, R + 2, dh], q_norm and
  k_norm [L, dh], out [L, K, R, dh, D], mlp_norm [L, D], gate_up [L, D, 2, F], down [L, F, D].
qkv and gate_up are fused because one wide product is faster than three; they are grouped by
key-value head, so that sharding over K needs no reshuffling.

Served parameters may have matrices in int8; the factors of their output channels are leaves of
their own, NAME_scale, in the shape of the matrix without the axes that a product sums over.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from entrolab.models.rope import Stretch, rotate
from entrolab.typing import Array, Bool, Float, Int
from entrolab.vocab import Layout

Params = dict[str, Any]
# what a layer keeps for its backward pass: everything, the states between layers, and beside these
# the products with its matrices; the rest is computed again
REMAT = {"none": None, "block": jax.checkpoint_policies.nothing_saveable,
         "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
# the axes of a matrix, its layers included, that its product sums over; an embedding is looked up
SUMMED = {"embed": (1,), "head": (1,), "qkv": (1,), "out": (1, 2, 3), "gate_up": (1,), "down": (1,)}


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and switches of the decoder; hashable, static under jit.

  layout: the mesh axes of rows and of heads; None leaves all placement to the compiler.
  """
  vocab_size: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_width: int
  rope_theta: float = 1e4
  rope_stretch: Stretch | None = None
  norm_eps: float = 1e-5
  tied: bool = True
  qkv_bias: bool = False
  qk_norm: bool = False
  max_length: int = 2048
  dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Literal["none", "block", "dots"] = "none"
  layout: Layout | None = None

  def __post_init__(self) -> None:
    if self.heads % self.kv_heads:
      raise ValueError(f"heads={self.heads} is no multiple of kv_heads={self.kv_heads}")
    if self.remat not in REMAT:
      raise ValueError(f"remat={self.remat!r}; choices: {', '.join(map(repr, REMAT))}")

  @property
  def queries(self) -> int:
    """R, query heads a key-value head serves."""
    return self.heads // self.kv_heads


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values [L, B, K, S, dh] of S slots, and which slots hold a token [B, S].

  k and v may have more rows than `valid`: the first B are in use.
  """
  k: Any
  v: Any
  valid: Any


def _held(x: Array, layout: Layout | None) -> Array:
  """States [B, N, D] that stay whole on the devices of their rows.

  Left alone, the compiler spreads their width as it finds that of the parameters, and copies the
  rows to every device.
  """
  if layout is None:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, P(layout.rows)))


def _embedded(table: Array, tokens: Array, layout: Layout | None) -> Array:
  """Rows of the table [V, D]. Where the layout shards its width, each device looks up its part of
  the width for all rows that share it, and states are exchanged: neither the table nor its
  gradient is ever whole."""
  x = table[tokens]
  if layout is not None and layout.width is not None:
    rest = tuple(name for name in layout.rows if name != layout.width)
    parts = NamedSharding(layout.mesh, P(rest, None, layout.width))
    x = jax.lax.with_sharding_constraint(x, parts)
  return _held(x, layout)


def _norm(x: Array, gain: Array, eps: float) -> Array:
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
  gain = gain.astype(jnp.float32).reshape(*[1] * (x.ndim - 1), -1)
  return (y * gain).astype(x.dtype)


def _attend(q: Array, k: Array, v: Array, allowed: Array) -> Array:
  """q [B, N, K, R, d], k and v [B, K, S, d], allowed [B, N, S] -> [B, N, K, R, d]."""
  scores = jnp.einsum("bnkrd,bksd->bkrns", q, k, preferred_element_type=jnp.float32)
  scores = scores * (q.shape[-1] ** -0.5)
  allowed = allowed[:, None, None]
  # a row that may attend to nothing (padding) gets a uniform average, not a NaN
  scores = jnp.where(allowed, scores, -1e30)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  mix = lambda weights, v: jnp.einsum("bkrns,bksd->bnkrd", weights, v)
  if q.shape[1] > 1:
    return mix(weights, v)
  # the same sums: a CPU's library has no product with an axis of one query and takes twice as long;
  # a TPU may copy more of the cache without it
  alone = lambda weights, v: jnp.einsum("bkrs,bksd->bkrd", weights[:, :, :, 0], v)[:, None]
  return jax.lax.platform_dependent(weights, v, cpu=alone, default=mix)


class Block(nn.Module):
  """One layer; the stacked cache rides in the carry and is updated in place."""
  config: Config

  @nn.compact
  def __call__(self, carry, layer, positions, allowed, start):
    x, cache_k, cache_v = carry
    c, dtype = self.config, jnp.dtype(self.config.dtype)
    d, f, k, r, dh = c.width, c.mlp_width, c.kv_heads, c.queries, c.head_dim
    deep = 0.02 / (2 * c.layers) ** 0.5
    weight = lambda name, shape, std: self.param(name, nn.initializers.normal(std), shape)
    ones, zeros = nn.initializers.ones, nn.initializers.zeros

    def product(spec, x, name, shape, std=0.02):
      y = jnp.einsum(spec, x, weight(name, shape, std).astype(dtype))
      if not self.has_variable("params", f"{name}_scale"):
        return y
      scale = self.get_variable("params", f"{name}_scale").astype(dtype)
      return y * jnp.expand_dims(scale, (0, 1))

    h = _norm(x, self.param("attn_norm", ones, (d,)), c.norm_eps)
    qkv = product("bnd,dkre->bnkre", h, "qkv", (d, k, r + 2, dh))
    if c.qkv_bias:
      qkv = qkv + self.param("qkv_bias", zeros, (k, r + 2, dh)).astype(dtype)[None, None]
    q, key, value = jax.lax.split(qkv, (r, 1, 1), axis=3)
    key, value = key[..., 0, :], value[..., 0, :]
    if c.qk_norm:
      q = _norm(q, self.param("q_norm", ones, (dh,)), c.norm_eps)
      key = _norm(key, self.param("k_norm", ones, (dh,)), c.norm_eps)
    q, key = (rotate(x, positions, c.rope_theta, c.rope_stretch) for x in (q, key))
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    if cache_k is not None:
      at = (layer, 0, 0, start, 0)
      cache_k = jax.lax.dynamic_update_slice(cache_k, key[None].astype(cache_k.dtype), at)
      cache_v = jax.lax.dynamic_update_slice(cache_v, value[None].astype(cache_v.dtype), at)
      used = (1, x.shape[0], *cache_k.shape[2:])
      key, value = (jax.lax.dynamic_slice(held, (layer, 0, 0, 0, 0), used)[0]
                    for held in (cache_k, cache_v))
    mixed = _attend(q, key, value, allowed)
    x = _held(x + product("bnkrd,krde->bne", mixed, "out", (k, r, dh, d), deep), c.layout)

    h = _norm(x, self.param("mlp_norm", ones, (d,)), c.norm_eps)
    both = product("bnd,dgf->bngf", h, "gate_up", (d, 2, f))
    gate, up = jax.lax.split(both, (1, 1), axis=2)
    h = nn.silu(gate[:, :, 0]) * up[:, :, 0]
    x = _held(x + product("bnf,fd->bnd", h, "down", (f, d), deep), c.layout)
    return (x, cache_k, cache_v), None


class Decoder(nn.Module):
  """Embedding, scanned layers, final norm."""
  config: Config

  @nn.compact
  def __call__(self, tokens, positions, allowed, cache_k=None, cache_v=None, start=0):
    c = self.config
    embed = self.param("embed", nn.initializers.normal(0.02), (c.vocab_size, c.width))
    if not c.tied:
      self.param("head", nn.initializers.normal(0.02), (c.vocab_size, c.width))
    block = Block if c.remat == "none" else nn.remat(Block, prevent_cse=False,
                                                     policy=REMAT[c.remat])
    axes: Any = (0, nn.broadcast, nn.broadcast, nn.broadcast)
    layers = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True},
                     in_axes=axes, length=c.layers)
    x = _embedded(embed if embed.dtype == jnp.int8 else embed.astype(c.dtype), tokens, c.layout)
    if embed.dtype == jnp.int8:
      x = x.astype(c.dtype) * self.get_variable("params", "embed_scale").astype(c.dtype)[tokens][
          ..., None]
    carry, _ = layers(c, name="layers")((x, cache_k, cache_v), jnp.arange(c.layers), positions,
                                        allowed, start)
    x, cache_k, cache_v = carry
    gain = self.param("final_norm", nn.initializers.ones, (c.width,))
    return _norm(x, gain, c.norm_eps), cache_k, cache_v


def init(config: Config, key: Array) -> Params:
  """Random float32 parameters: normal 0.02, outputs of the residual branches scaled by depth."""
  one = jnp.zeros((1, 1), jnp.int32)
  config = dataclasses.replace(config, layout=None)
  made: Any = Decoder(config).init(key, one, one, jnp.ones((1, 1, 1), bool))
  return made["params"]


def serving(config: Config, params: Params, int8: bool = False) -> Params:
  """Parameters to sample with: in the compute dtype, as every layer casts them; gains stay.

  int8: matrices as round(w / s) with s = max |w| / 127 over what an output channel sums, and s.
  """
  cast = lambda path, x: x if path[-1].key.endswith("norm") else x.astype(config.dtype)
  if not int8:
    return jax.tree_util.tree_map_with_path(cast, params)

  def one(tree):
    out = {}
    for name, x in tree.items():
      if name == "layers":
        out[name] = one(x)
      elif name in SUMMED:
        most = jnp.abs(x).max(SUMMED[name], keepdims=True)
        scale = jnp.where(most > 0.0, most, 1.0) / 127.0
        out[name] = jnp.round(x / scale).astype(jnp.int8)
        out[f"{name}_scale"] = scale.squeeze(SUMMED[name]).astype(jnp.float32)
      else:
        out[name] = cast((jax.tree_util.DictKey(name),), x)
    return out

  return one(params)


def logits(config: Config, params: Params, hidden: Float[Array, "B D"]) -> Float[Array, "B V"]:
  """float32 logits of the next tokens, to draw from; the trainer never holds so many."""
  name = "head" if "head" in params else "embed"
  z = jnp.einsum("bd,vd->bv", hidden, params[name].astype(config.dtype),
                 preferred_element_type=jnp.float32)
  return z * params[f"{name}_scale"][None] if f"{name}_scale" in params else z


def hidden_states(config: Config, params: Params, tokens: Int[Array, "B S"],
                  positions: Int[Array, "B S"], segments: Int[Array, "B S"]
                  ) -> Float[Array, "B S D"]:
  """States after the final norm; a position attends to earlier ones of its non-zero segment."""
  step = jnp.arange(tokens.shape[1])
  causal = step[:, None] >= step[None]
  same = segments[:, :, None] == segments[:, None]
  allowed = causal[None] & same & (segments > 0)[:, None]
  return Decoder(config).apply({"params": params}, tokens, positions, allowed)[0]


def head_matrix(params: Params) -> Float[Array, "V D"]:
  """The output matrix: the embedding where the head is tied."""
  return params["head"] if "head" in params else params["embed"]


def empty_cache(config: Config, batch: int, length: int) -> Cache:
  """A cache of `length` slots for `batch` rows, in the compute dtype."""
  shape = (config.layers, batch, config.kv_heads, length, config.head_dim)
  zeros = jnp.zeros(shape, config.dtype)
  return Cache(zeros, zeros, jnp.zeros((batch, length), bool))


def extend(config: Config, params: Params, tokens: Int[Array, "B N"], positions: Int[Array, "B N"],
           mask: Bool[Array, "B N"], cache: Cache, start: Array | int) -> tuple[Array, Cache]:
  """Writes N tokens into slots start ... start + N - 1 of every row; (hidden [B, N, D], cache).

  A token attends to all valid slots but those of the tokens after it: slots may be a ring.
  mask: which of the tokens are real; the others are never attended to. Prompts are left padded,
  so that all rows write the same slots.
  """
  n = tokens.shape[1]
  valid = jax.lax.dynamic_update_slice(cache.valid, mask, (0, start))
  ahead = jnp.arange(cache.valid.shape[1])[None] - (start + jnp.arange(n)[:, None])
  later = (ahead > 0) & (ahead < n - jnp.arange(n)[:, None])
  allowed = ~later[None] & valid[:, None]
  # served parameters are whole in their width
  layout = config.layout and dataclasses.replace(config.layout, width=None)
  config = dataclasses.replace(config, remat="none", layout=layout)
  out: Any = Decoder(config).apply({"params": params}, tokens, positions, allowed, cache.k, cache.v,
                                   start)
  hidden, k, v = out
  return hidden, Cache(k, v, valid)
