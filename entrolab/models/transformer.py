"""One decoder for Llama, SmolLM2, Qwen2.5 and Qwen3, as pure functions of a parameter tree.

RMSNorm, rotary positions (half split), grouped-query attention, SwiGLU; optional biases on
queries, keys and values (Qwen2), optional norms of queries and keys (Qwen3), optional tied head.
Layers are stacked and scanned, so that compile time does not depend on depth.

The tree and its axes are those of `parameters.PARAMETERS`. Served parameters may have matrices in
int8; then the factors of their output channels stand beside them as NAME_scale, in the shape of
the matrix without the axes that its matmul sums over.

Letters of shapes: B rows, N tokens, S positions of a cache, D width, K key-value heads that serve
R query heads each, dh width of a head, F feed-forward width, V vocabulary, L layers.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from entrolab.models import parameters, rope
from entrolab.models.parameters import Config, Params
from entrolab.sharding import Layout
from entrolab.typing import Array, Bool, Float, Int, exact

# What is stored of a layer for its backward pass: everything; the states between layers; or beside
# these the results of its matmuls. The rest is computed again.
REMAT = {"none": None, "block": jax.checkpoint_policies.nothing_saveable,
         "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values of all layers at S positions; the first B of its rows are in use."""
  k: Float[Array, "L rows K S dh"]  # rows >= B
  v: Float[Array, "L rows K S dh"]  # rows >= B
  valid: Bool[Array, "B S"]  # which positions have a token that may be attended to


def _over_rows(x: Float[Array, "B N D"], layout: Layout | None) -> Float[Array, "B N D"]:
  """Shards states over their rows alone, their width whole on every device.

  Left alone, the compiler spreads their width as it finds that of the parameters, and copies the
  rows to every device.
  """
  if layout is None:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, P(layout.rows)))


def _embedded(table: Float[Array, "V D"], tokens: Int[Array, "B N"], dtype: str,
              layout: Layout | None) -> Float[Array, "B N D"]:
  """The rows of the table at the tokens in this dtype, sharded over B.

  They are cast behind the look-up: the gradient of the table is summed in its own dtype.

  Where the layout shards the width, each device looks up its part of the width for all rows of the
  devices that share the table, and states are exchanged: neither the table nor its gradient is
  ever whole on a device.
  """
  x = table[tokens].astype(dtype)
  if layout is not None and layout.width is not None:
    others = tuple(name for name in layout.rows if name != layout.width)
    parts = NamedSharding(layout.mesh, P(others, None, layout.width))
    x = jax.lax.with_sharding_constraint(x, parts)
  return _over_rows(x, layout)


def _norm(x: Float[Array, "B N *h d"], gain: Float[Array, " d"],
          eps: float) -> Float[Array, "B N *h d"]:
  """RMSNorm over the last axis, in float32: gain x / sqrt(mean x^2 + eps)."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
  gain = gain.astype(jnp.float32).reshape(*[1] * (x.ndim - 1), -1)
  return (y * gain).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow(spec: str, x: Array, matrix: Array) -> Array:
  """einsum(spec, x, matrix) in the dtype of x, which is narrower than that of the matrix.

  The gradient of the matrix is summed over rows, and hence over devices, in the dtype of the
  matrix: differentiating a cast would round the part of each device first.
  """
  return jnp.einsum(spec, x, matrix.astype(x.dtype))


def _narrow_bwd(spec: str, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
  x, matrix = saved
  inputs, result = spec.split("->")
  of_x, of_matrix = inputs.split(",")
  return (jnp.einsum(f"{result},{of_matrix}->{of_x}", grad, matrix.astype(x.dtype)),
          jnp.einsum(f"{of_x},{result}->{of_matrix}", x, grad,
                     preferred_element_type=matrix.dtype))


_narrow.defvjp(lambda spec, x, matrix: (_narrow(spec, x, matrix), (x, matrix)), _narrow_bwd)


@jax.custom_vjp
def _shifted(x: Array, bias: Array) -> Array:
  """x plus a bias of its last axes, whose gradient is summed in the dtype that the bias has."""
  return x + bias.astype(x.dtype)[None, None]


_shifted.defvjp(lambda x, bias: (_shifted(x, bias), jnp.zeros((), bias.dtype)),
                lambda of_type, grad: (grad, grad.astype(of_type.dtype).sum((0, 1))))


def _matmul(spec: str, x: Array, params: Params, name: str) -> Array:
  """einsum(spec, x, matrix) in the dtype of x; an int8 matrix is scaled by output channel."""
  matrix = params[name]
  if jnp.issubdtype(matrix.dtype, jnp.floating) and matrix.dtype.itemsize > x.dtype.itemsize:
    y: Any = _narrow(spec, x, matrix)
  else:
    y = jnp.einsum(spec, x, matrix.astype(x.dtype), precision=exact(x))
  scale = params.get(parameters.BY_NAME[name].scale)
  # behind the matmul, where there are fewer factors than entries of the matrix; (0, 1) are B and N
  return y if scale is None else y * jnp.expand_dims(scale.astype(x.dtype), (0, 1))


def _attend(q: Float[Array, "B N K R dh"], k: Float[Array, "B K S dh"], v: Float[Array, "B K S dh"],
            allowed: Bool[Array, "B N S"]) -> Float[Array, "B N K R dh"]:
  """sum_s softmax_s(q k_s / sqrt(dh)) v_s over the allowed positions s; softmax in float32."""
  scores = jnp.einsum("bnkrd,bksd->bkrns", q, k, precision=exact(q),
                      preferred_element_type=jnp.float32)
  scores = scores * (q.shape[-1] ** -0.5)
  allowed = allowed[:, None, None]
  # a row that may attend to nothing (padding) gets a uniform average, not a NaN
  scores = jnp.where(allowed, scores, -1e30)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  product = functools.partial(jnp.einsum, precision=exact(v))
  mix = lambda weights, v: product("bkrns,bksd->bnkrd", weights, v)
  if q.shape[1] > 1:
    return mix(weights, v)
  # the same sums: a CPU's library has no matmul with an axis of one query and takes twice as long;
  # a TPU may copy more of the cache without it
  alone = lambda weights, v: product("bkrs,bksd->bkrd", weights[:, :, :, 0], v)[:, None]
  return jax.lax.platform_dependent(weights, v, cpu=alone, default=mix)


def _write(stack: Float[Array, "L rows K S dh"], new: Float[Array, "B K N dh"],
           layer: Int[Array, ""], start: Array | int) -> Float[Array, "L rows K S dh"]:
  """Keys or values of all layers, with N new positions of one layer from `start` on."""
  at = (layer, 0, 0, start, 0)
  return jax.lax.dynamic_update_slice(stack, new[None].astype(stack.dtype), at)


def _read(stack: Float[Array, "L rows K S dh"], layer: Int[Array, ""],
          rows: int) -> Float[Array, "B K S dh"]:
  """Keys or values of one layer, of the first rows."""
  size = (1, rows, *stack.shape[2:])
  return jax.lax.dynamic_slice(stack, (layer, 0, 0, 0, 0), size)[0]


def _rotation(config: Config) -> tuple[Float[Array, " h"], float]:
  """(radians a position by which each pair of a head is rotated, factor of what was rotated)."""
  theta = config.rope_theta
  rate = rope.rates(config.head_dim, theta)
  match config.rope_stretch:
    case None:
      return rate, 1.0
    case parameters.Linear(factor):
      return rate / factor, 1.0
    case parameters.Llama3() as change:
      return rope.llama3(rate, **dataclasses.asdict(change)), 1.0
    case parameters.Proportional() as change:
      return rope.proportional(rate, **dataclasses.asdict(change)), 1.0
    case parameters.Yarn() as change:
      knobs = dataclasses.asdict(change)
      gain = knobs.pop("gain")
      return rope.yarn(rate, theta=theta, **knobs), gain


def _project(config: Config, params: Params, h: Float[Array, "B N D"],
             positions: Int[Array, "B N"]) -> tuple[Array, Array, Array]:
  """(queries [B, N, K, R, dh], keys [B, K, N, dh], values [B, K, N, dh]) of a layer's input."""
  qkv = _matmul("bnd,dkre->bnkre", h, params, "qkv")
  if config.qkv_bias:
    qkv = _shifted(qkv, params["qkv_bias"])
  q, k, v = jax.lax.split(qkv, parameters.fused(config)["qkv"], axis=3)
  k, v = k[..., 0, :], v[..., 0, :]
  if config.qk_norm:
    q = _norm(q, params["q_norm"], config.norm_eps)
    k = _norm(k, params["k_norm"], config.norm_eps)
  rate, gain = _rotation(config)
  q = rope.rotate(q, positions, rate, gain)
  k = rope.rotate(k, positions, rate, gain)
  # positions next to the head: those of a head then lie together in the cache
  return q, k.swapaxes(1, 2), v.swapaxes(1, 2)


def _feed_forward(params: Params, h: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
  """SwiGLU: down (silu(gate h) * up h)."""
  both = _matmul("bnd,dgf->bngf", h, params, "gate_up")
  gate, up = jax.lax.split(both, (1, 1), axis=2)
  return _matmul("bnf,fd->bnd", nn.silu(gate[:, :, 0]) * up[:, :, 0], params, "down")


def _declared(module: Any, config: Config, layered: bool) -> Params:
  """The parameters of the table that belong to a module, by name; scales where they are served."""
  found = {}
  for row in parameters.of(config):
    if row.layered != layered:
      continue
    shape = row.shape(config)
    # nn.scan adds the axis of layers: inside a layer it is left out
    found[row.name] = module.param(row.name, row.init(config), shape[1:] if layered else shape)
    if module.has_variable("params", row.scale):
      found[row.scale] = module.get_variable("params", row.scale)
  return found


class Block(nn.Module):
  """One layer; the stacked cache is part of the scan's carry and updated in place."""
  config: Config

  @nn.compact
  def __call__(self, carry, layer, positions, allowed, start):
    """carry: (states [B, N, D], keys, values of all layers [L, rows, K, S, dh], or None for both).

    layer: which one; allowed [B, N, S]; start: the first position of the cache that is written.
    """
    x, cache_k, cache_v = carry
    c = self.config
    params = _declared(self, c, layered=True)

    h = _norm(x, params["attn_norm"], c.norm_eps)
    q, k, v = _project(c, params, h, positions)
    if cache_k is not None:
      cache_k = _write(cache_k, k, layer, start)
      cache_v = _write(cache_v, v, layer, start)
      k = _read(cache_k, layer, x.shape[0])
      v = _read(cache_v, layer, x.shape[0])
    mixed = _attend(q, k, v, allowed)
    x = _over_rows(x + _matmul("bnkrd,krde->bne", mixed, params, "out"), c.layout)

    h = _norm(x, params["mlp_norm"], c.norm_eps)
    x = _over_rows(x + _feed_forward(params, h), c.layout)
    return (x, cache_k, cache_v), None


class Decoder(nn.Module):
  """Embedding, scanned layers, final norm."""
  config: Config

  @nn.compact
  def __call__(self, tokens, positions, allowed, cache_k=None, cache_v=None, start=0):
    """(states [B, N, D], keys, values) of tokens [B, N]; the arguments are those of `Block`."""
    c = self.config
    params = _declared(self, c, layered=False)
    embed = params["embed"]
    if embed.dtype == jnp.int8:
      x = _embedded(embed, tokens, c.dtype, c.layout)
      x = x * params["embed_scale"].astype(c.dtype)[tokens][..., None]
    else:
      x = _embedded(embed, tokens, c.dtype, c.layout)

    block = Block
    if c.remat != "none":
      block = nn.remat(Block, prevent_cse=False, policy=REMAT[c.remat])
    # one layer number a step of the scan; positions, allowed and start are those of all layers
    axes: Any = (0, nn.broadcast, nn.broadcast, nn.broadcast)
    layers = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True},
                     in_axes=axes, length=c.layers)
    carry, _ = layers(c, name="layers")((x, cache_k, cache_v), jnp.arange(c.layers), positions,
                                        allowed, start)
    x, cache_k, cache_v = carry
    return _norm(x, params["final_norm"], c.norm_eps), cache_k, cache_v


def init(config: Config, key: Array) -> Params:
  """Random float32 parameters: normal 0.02, outputs of the residual branches scaled by depth."""
  token = jnp.zeros((1, 1), jnp.int32)  # shapes of parameters do not depend on the input
  config = dataclasses.replace(config, layout=None)
  made: Any = Decoder(config).init(key, token, token, jnp.ones((1, 1, 1), bool))
  return made["params"]


def serving(config: Config, params: Params, int8: bool = False) -> Params:
  """Parameters to sample with: in the compute dtype, as every layer casts them; gains stay.

  int8: matrices as round(w / s) with s = max |w| / 127 over what an output channel sums, and s.
  """
  def leaves(row: parameters.Parameter, x: Array) -> Params:
    if row.gain:
      return {row.name: x}
    if not int8 or not row.summed:
      return {row.name: x.astype(config.dtype)}
    largest = jnp.abs(x).max(row.summed_axes, keepdims=True)
    scale = jnp.where(largest > 0.0, largest, 1.0) / 127.0  # a channel of zeros stays one
    return {row.name: jnp.round(x / scale).astype(jnp.int8),
            row.scale: scale.squeeze(row.summed_axes).astype(jnp.float32)}

  def served(tree: Params) -> Params:
    out = {}
    for name, x in tree.items():
      out |= {name: served(x)} if name == "layers" else leaves(parameters.BY_NAME[name], x)
    return out

  return served(params)


def logits(config: Config, params: Params, hidden: Float[Array, "B D"]) -> Float[Array, "B V"]:
  """float32 logits to draw the next tokens from; training has B T of them and uses `vocab.fused`.

  int8 scales multiply the logits: a row of the matrix is an output channel.
  """
  row = parameters.BY_NAME["head" if "head" in params else "embed"]
  z = jnp.einsum("bd,vd->bv", hidden, params[row.name].astype(config.dtype),
                 precision=exact(hidden), preferred_element_type=jnp.float32)
  return z * params[row.scale][None] if row.scale in params else z


def hidden_states(config: Config, params: Params, tokens: Int[Array, "B S"],
                  positions: Int[Array, "B S"], segment_ids: Int[Array, "B S"]
                  ) -> Float[Array, "B S D"]:
  """States after the final norm; a position attends to earlier ones with its id, which is not 0."""
  step = jnp.arange(tokens.shape[1])
  causal = step[:, None] >= step[None]
  same = segment_ids[:, :, None] == segment_ids[:, None]
  allowed = causal[None] & same & (segment_ids > 0)[:, None]
  return Decoder(config).apply({"params": params}, tokens, positions, allowed)[0]


def head_matrix(params: Params) -> Float[Array, "V D"]:
  """The output matrix: the embedding where the head is tied."""
  return params["head"] if "head" in params else params["embed"]


def empty_cache(config: Config, batch: int, length: int) -> Cache:
  """A cache of `length` positions for `batch` rows, in the compute dtype."""
  shape = (config.layers, batch, config.kv_heads, length, config.head_dim)
  zeros = jnp.zeros(shape, config.dtype)
  return Cache(zeros, zeros, jnp.zeros((batch, length), bool))


def extend(config: Config, params: Params, tokens: Int[Array, "B N"], positions: Int[Array, "B N"],
           mask: Bool[Array, "B N"], cache: Cache, start: Array | int) -> tuple[Array, Cache]:
  """Writes N tokens at positions start ... start + N - 1 of the cache; (hidden [B, N, D], cache).

  positions: of the tokens in their texts, for the rotary embedding. mask: which tokens are real;
  the others are never attended to. Prompts are left padded, so that all rows write at one place.
  """
  n = tokens.shape[1]
  valid = jax.lax.dynamic_update_slice(cache.valid, mask, (0, start))
  # A token attends to every valid position but those of the new tokens behind it. Positions beyond
  # these are older: the cache may be a ring.
  ahead = jnp.arange(cache.valid.shape[1])[None] - (start + jnp.arange(n)[:, None])
  later = (ahead > 0) & (ahead < n - jnp.arange(n)[:, None])
  allowed = ~later[None] & valid[:, None]
  # the width of served parameters is whole on every device
  layout = config.layout and dataclasses.replace(config.layout, width=None)
  config = dataclasses.replace(config, remat="none", layout=layout)
  out: Any = Decoder(config).apply({"params": params}, tokens, positions, allowed, cache.k, cache.v,
                                   start)
  hidden, k, v = out
  return hidden, Cache(k, v, valid)
