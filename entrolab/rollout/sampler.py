"""Sampling with a key-value cache: prefill each prompt once, then one jitted loop.

A row's tokens depend on its prompt, its key and the parameters, and on nothing else: the key folds
(run, step, prompt, sample, branch), the noise of a token folds its position into that key, so that
batch composition, padding bucket, response limit and host count do not matter.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from entrolab import keys as key_scheme
from entrolab.models import transformer
from entrolab.rollout.draw import Draw, draw
from entrolab.typing import Array, Bool, Int, Key

# one entry a compiled shape: (prompts, prompt length, samples, max_tokens)
TRACES: list[tuple] = []


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
  """B = P x G responses of T positions. mask includes the stop token and nothing after it;
  finished: ended by a stop token. Log-probs and entropies [B, T] as in `Draw`, 0 off the mask.
  trunk: what `resume` goes on from, where it was asked for."""
  tokens: Any
  mask: Any
  logp: Any
  entropy: Any
  sampled_logp: Any
  sampled_entropy: Any
  finished: Any
  steps: Any
  trunk: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trunk:
  """B rows to be cut and continued: their cache of L + T slots, the hidden state [B, T, D] that
  each of their tokens was drawn from, and how many tokens their prompts have [B]."""
  cache: Any
  hidden: Any
  offset: Any


def _spread(cache, copies, max_tokens):
  """Every row `copies` times over, with room for `max_tokens` more tokens."""
  grow = lambda x, rows, slots: jnp.pad(jnp.repeat(x, copies, rows), [
      (0, max_tokens if axis == slots else 0) for axis in range(x.ndim)])
  return transformer.Cache(grow(cache.k, 1, 3), grow(cache.v, 1, 3), grow(cache.valid, 0, 1))


def _prefill(config, params, prompt, prompt_mask, samples, max_tokens):
  """(last hidden state [B, D], cache with room for `max_tokens` more tokens): each prompt once."""
  rows, length = prompt.shape
  positions = jnp.maximum(jnp.cumsum(prompt_mask, 1) - 1, 0).astype(jnp.int32)
  cache = transformer.empty_cache(config, rows, length)
  hidden, cache = transformer.extend(config, params, prompt, positions, prompt_mask, cache, 0)
  return jnp.repeat(hidden[:, -1], samples, 0), _spread(cache, samples, max_tokens)


def _decode(config, params, hidden, cache, offset, keys, max_tokens, temperature, top_p, top_k,
            stop_ids, pad_id, keep=False):
  """Samples from the hidden states [B, D] of the last tokens, into the last slots of the cache."""
  rows, start = hidden.shape[0], cache.valid.shape[1] - max_tokens
  spread = lambda x, dtype: jnp.broadcast_to(jnp.asarray(x, dtype), (rows,))
  temperature, top_p = spread(temperature, jnp.float32), spread(top_p, jnp.float32)
  top_k = spread(top_k, jnp.int32)

  def step(carry):
    t, hidden, cache, done, out, states = carry
    if keep:
      states = jax.lax.dynamic_update_slice(states, hidden[:, None], (0, t, 0))
    logits = transformer.logits(config, params, hidden)
    drawn = draw(logits, key_scheme.token_uniform(keys, t), temperature, top_p, top_k)
    drawn = Draw(jnp.where(done, pad_id, drawn.token).astype(jnp.int32),
                 *(jnp.where(done, 0.0, x) for x in drawn[1:]))
    out = {name: jax.lax.dynamic_update_slice(out[name], value[:, None], (0, t)) for name, value
           in {**drawn._asdict(), "mask": ~done}.items()}
    now = done | (drawn.token[:, None] == stop_ids[None]).any(1)
    hidden, cache = transformer.extend(config, params, drawn.token[:, None], (offset + t)[:, None],
                                       ~done[:, None], cache, start + t)
    return t + 1, hidden[:, 0], cache, now, out, states

  kinds = dict(token=jnp.int32, mask=bool)
  out = {name: jnp.zeros((rows, max_tokens), kinds.get(name, jnp.float32))
         for name in (*Draw._fields, "mask")}
  out["token"] = out["token"] + jnp.asarray(pad_id, jnp.int32)
  states = jnp.zeros((rows, max_tokens, hidden.shape[1]), hidden.dtype) if keep else None
  go = lambda carry: (carry[0] < max_tokens) & ~carry[3].all()
  begin = (0, hidden, cache, jnp.zeros(rows, bool), out, states)
  t, _, cache, done, out, states = jax.lax.while_loop(go, step, begin)
  return Samples(out["token"], out["mask"], out["logp"], out["entropy"], out["sampled_logp"],
                 out["sampled_entropy"], done, t, Trunk(cache, states, offset) if keep else None)


@functools.partial(jax.jit, static_argnames=("config", "samples", "max_tokens", "keep"))
def sample(config: transformer.Config, params: Any, prompt: Int[Array, "P L"],
           prompt_mask: Bool[Array, "P L"], keys: Key[Array, " B"], *, samples: int,
           max_tokens: int,
           temperature: Array, top_p: Array, top_k: Array, stop_ids: Int[Array, " s"],
           pad_id: Array | int = 0, keep: bool = False) -> Samples:
  """G responses to each left-padded prompt, at most `max_tokens` tokens; ends when all rows did.

  temperature, top_p, top_k: scalars or [B] arrays, never recompiled; 0 / 1 / 0 are greedy, off,
  off. stop_ids: any of them ends a row and belongs to it; -1 matches nothing. keep: with the
  trunk, for `resume`.
  """
  TRACES.append((*prompt.shape, samples, max_tokens))
  hidden, cache = _prefill(config, params, prompt, prompt_mask, samples, max_tokens)
  offset = jnp.repeat(prompt_mask.sum(1).astype(jnp.int32), samples)
  return _decode(config, params, hidden, cache, offset, keys, max_tokens, temperature, top_p, top_k,
                 stop_ids, pad_id, keep)


@functools.partial(jax.jit, static_argnames=("config", "copies", "max_tokens"))
def resume(config: transformer.Config, params: Any, trunk: Trunk, cut: Int[Array, " B"],
           keys: Key[Array, " N"], *, copies: int, max_tokens: int, temperature: Array,
           top_p: Array,
           top_k: Array, stop_ids: Int[Array, " s"], pad_id: Array | int = 0) -> Samples:
  """N = B x copies responses to each row's prompt and its first `cut` tokens, 0 <= cut < length.

  Nothing of the prefix is computed again: its slots are copied, those of later tokens are never
  attended to, and the first draw is from the state that the token at `cut` was drawn from.
  """
  rows, slots = trunk.cache.valid.shape
  TRACES.append((rows, slots, copies, max_tokens))
  kept = jnp.arange(slots)[None] < (slots - trunk.hidden.shape[1] + cut)[:, None]
  cache = dataclasses.replace(trunk.cache, valid=trunk.cache.valid & kept)
  hidden = jnp.take_along_axis(trunk.hidden, cut[:, None, None], axis=1)[:, 0]
  return _decode(config, params, jnp.repeat(hidden, copies, 0), _spread(cache, copies, max_tokens),
                 jnp.repeat(trunk.offset + cut, copies), keys, max_tokens, temperature, top_p,
                 top_k,
                 stop_ids, pad_id)
