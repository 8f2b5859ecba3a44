"""Decoding with a key-value cache: each prompt runs once, then one token a step in one jitted loop.

`prefill` and `next_token` are what every loop over tokens is made of: the two of this file, that of
`continuous_batching`, and that of `turns`. A row's tokens depend on its prompt, its key and the
parameters, and on nothing else: the key folds (run, step, prompt, sample, branch), the noise of a
token folds its position into that key, so that batch composition, padding bucket, response limit
and host count do not matter.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import keys as key_scheme
from entrolab.batch import UNFILLED
from entrolab.models import transformer
from entrolab.rollout.compilations import counted
from entrolab.rollout.draw import DrawnToken, draw
from entrolab.tasks.automaton import START, Table
from entrolab.typing import Array, Bool, Float, Int, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding:
  """How tokens are drawn from logits, and what ends a row.

  All of it is arrays, so that other values never compile a program again.
  """
  temperature: Float[Array, "*B"]  # one for all rows, or one a row; 0 takes the likeliest token
  top_p: Float[Array, "*B"]  # mass of the likeliest tokens, with the one that crosses it; 1: all
  top_k: Int[Array, "*B"]  # how many of the likeliest tokens may be drawn; 0: all
  stop_ids: Int[Array, " s"]  # any of them ends a row and belongs to it; -1 matches none
  pad_id: Int[Array, ""]  # stands where a row has no token
  # finds the strings that end a row and that no single token need contain; None: there are none
  stops: Table | None = None

  @classmethod
  def of(cls, temperature: Any = 1.0, top_p: Any = 1.0, top_k: Any = 0, stop_ids: Any = (-1,),
         pad_id: Any = 0, stops: Table | None = None) -> "Decoding":
    """Of scalars or arrays, in the types that every program expects."""
    def typed(x: Any, kind: Any) -> Any:
      # arrays that are on devices already stay there
      return x if isinstance(x, jax.Array) else np.asarray(x, kind)

    return cls(typed(temperature, np.float32), typed(top_p, np.float32), typed(top_k, np.int32),
               typed(stop_ids, np.int32), typed(pad_id, np.int32), stops)

  def spread(self, rows: int) -> "Decoding":
    """The same with temperature, top_p and top_k for each of `rows` rows."""
    of_each = lambda x: jnp.broadcast_to(x, (rows,))
    return dataclasses.replace(self, temperature=of_each(self.temperature),
                               top_p=of_each(self.top_p), top_k=of_each(self.top_k))

  def of_rows(self, rows: Int[Array, " S"]) -> "Decoding":
    """That of some rows, of one that is spread."""
    return dataclasses.replace(self, temperature=self.temperature[rows], top_p=self.top_p[rows],
                               top_k=self.top_k[rows])

  def ends(self, token: Int[Array, " B"]) -> Bool[Array, " B"]:
    """Which of these tokens end their row, whatever came before them."""
    return (token[:, None] == self.stop_ids[None]).any(1)

  def advanced(self, token: Int[Array, " B"], spelled: Int[Array, " B"]
               ) -> tuple[Bool[Array, " B"], Int[Array, " B"]]:
    """(which of these tokens end their row, what the rows spell with them).

    spelled: what they spelled before, the state of `stops`; START before a first token.
    """
    ended = self.ends(token)
    if self.stops is None:
      return ended, spelled
    moved = jnp.asarray(self.stops.step)[spelled, jnp.asarray(self.stops.column)[token]]
    return ended | (moved % 2 == 1), moved // 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trunk:
  """B rows that may be cut and continued by `resume`."""
  cache: transformer.Cache  # of the prompts, L places, and of the T response positions
  hidden: Float[Array, "B T D"]  # the state that each token was drawn from
  spelled: Int[Array, "B T"]  # what the row spelled before it, for `Decoding.advanced`
  offset: Int[Array, " B"]  # tokens of each prompt


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
  """B = P x G responses of T positions."""
  tokens: Int[Array, "B T"]  # pad off the mask
  mask: Bool[Array, "B T"]  # a response up to its stop token, included
  finished: Bool[Array, " B"]  # ended by a stop token or a stop string
  steps: Int[Array, ""] | int  # positions that were decoded
  # nats, 0 off the mask; not filled where responses were given, not drawn
  logp: Float[Array, "B T"] = UNFILLED  # of the token under the policy
  entropy: Float[Array, "B T"] = UNFILLED  # of the policy
  sampled_logp: Float[Array, "B T"] = UNFILLED  # under the distribution drawn from
  sampled_entropy: Float[Array, "B T"] = UNFILLED  # of the distribution drawn from
  trunk: Trunk | None = None  # what `resume` goes on from, where it was requested


class Prefix(NamedTuple):
  """B rows before their next token."""
  hidden: Float[Array, "B D"]  # the state of the last token, which the next one is drawn from
  cache: transformer.Cache  # of the tokens so far, with room for those to come
  offset: Int[Array, " B"]  # tokens so far: the position of the next one in its context
  spelled: Int[Array, " B"]  # what the response spells so far, for `Decoding.advanced`


def _repeated(cache: transformer.Cache, copies: int, room: int) -> transformer.Cache:
  """Every row `copies` times, with `room` empty places at the end."""
  def grown(x: Array, rows: int, places: int) -> Array:
    padding = [(0, room if axis == places else 0) for axis in range(x.ndim)]
    return jnp.pad(jnp.repeat(x, copies, rows), padding)

  return transformer.Cache(k=grown(cache.k, 1, 3), v=grown(cache.v, 1, 3),
                           valid=grown(cache.valid, 0, 1))


def prefill(config: transformer.Config, params: Any, prompt: Int[Array, "P L"],
            prompt_mask: Bool[Array, "P L"], samples: int, room: int) -> Prefix:
  """B = P x samples rows after their left-padded prompts, with room for `room` more tokens.

  Each prompt goes through the model once, whatever the number of samples.
  """
  prompts, length = prompt.shape
  positions = jnp.maximum(jnp.cumsum(prompt_mask, 1) - 1, 0).astype(jnp.int32)
  cache = transformer.empty_cache(config, prompts, length)
  hidden, cache = transformer.extend(config, params, prompt, positions, prompt_mask, cache, 0)
  # prompts are padded on the left, so that the last column is the last token of every prompt
  offset = jnp.repeat(prompt_mask.sum(1).astype(jnp.int32), samples)
  return Prefix(jnp.repeat(hidden[:, -1], samples, 0), _repeated(cache, samples, room), offset,
                jnp.full_like(offset, START))


def next_token(config: transformer.Config, params: Any, hidden: Float[Array, "B D"],
               keys: Key[Array, " B"], position: Array, decoding: Decoding,
               ended: Bool[Array, " B"]) -> tuple[DrawnToken, Float[Array, "B V"]]:
  """(each row's next token, the logits it was drawn from); pad, with zeros, where a row has ended.

  position: in the response, one for all rows or one a row: it is folded into the row's key, which
  makes a token independent of when it is drawn and beside whom. decoding: spread to the rows.
  """
  logits = transformer.logits(config, params, hidden)
  uniform = key_scheme.token_uniform(keys, position)
  drawn = draw(logits, uniform, decoding.temperature, decoding.top_p, decoding.top_k)
  token = jnp.where(ended, decoding.pad_id, drawn.token).astype(jnp.int32)
  statistics = (jnp.where(ended, 0.0, x) for x in drawn[1:])
  return DrawnToken(token, *statistics), logits


class _Loop(NamedTuple):
  """What a step of the loop hands to the next one."""
  position: Int[Array, ""]  # of the token that is drawn next
  hidden: Float[Array, "B D"]  # the state that it is drawn from
  cache: transformer.Cache  # of prompt and response so far
  ended: Bool[Array, " B"]  # rows with a stop token or a stop string
  spelled: Int[Array, " B"]  # what they spell, for `Decoding.advanced`
  drawn: DrawnToken  # [B, T], up to this position
  mask: Bool[Array, "B T"]  # tokens of rows that had not ended before them
  # for a `Trunk`: its `hidden` and `spelled`
  states: tuple[Float[Array, "B T D"], Int[Array, "B T"]] | None


def _first_state(prefix: Prefix, decoding: Decoding, max_tokens: int, keep: bool) -> _Loop:
  """The loop before the first token."""
  rows, width = prefix.hidden.shape
  zeros = lambda dtype: jnp.zeros((rows, max_tokens), dtype)
  states = (jnp.zeros((rows, max_tokens, width), prefix.hidden.dtype), zeros(jnp.int32))
  statistics = {name: zeros(jnp.float32) for name in DrawnToken._fields if name != "token"}
  return _Loop(
      position=jnp.zeros((), jnp.int32), hidden=prefix.hidden, cache=prefix.cache,
      ended=jnp.zeros(rows, bool), spelled=prefix.spelled, mask=zeros(bool),
      drawn=DrawnToken(token=zeros(jnp.int32) + decoding.pad_id, **statistics),
      states=states if keep else None)


def _decoded(config: transformer.Config, params: Any, prefix: Prefix, keys: Key[Array, " B"],
             decoding: Decoding, max_tokens: int, keep: bool) -> Samples:
  """At most `max_tokens` tokens behind every prefix, whose cache has room for just as many."""
  decoding = decoding.spread(prefix.hidden.shape[0])
  start = prefix.cache.valid.shape[1] - max_tokens
  put = lambda column, new, t: jax.lax.dynamic_update_slice(column, new[:, None], (0, t))

  def step(loop: _Loop) -> _Loop:
    t = loop.position
    states = loop.states
    if states is not None:
      hidden, spelled = states
      states = (jax.lax.dynamic_update_slice(hidden, loop.hidden[:, None], (0, t, 0)),
                put(spelled, loop.spelled, t))
    drawn, _ = next_token(config, params, loop.hidden, keys, t, decoding, loop.ended)
    # rows that have ended are decoded along with the others; their pads are not valid in the cache
    hidden, cache = transformer.extend(
        config, params, drawn.token[:, None], (prefix.offset + t)[:, None], ~loop.ended[:, None],
        loop.cache, start + t)
    ends, spelled = decoding.advanced(drawn.token, loop.spelled)
    return _Loop(
        position=t + 1, hidden=hidden[:, 0], cache=cache, ended=loop.ended | ends, spelled=spelled,
        drawn=jax.tree.map(lambda column, new: put(column, new, t), loop.drawn, drawn),
        mask=put(loop.mask, ~loop.ended, t), states=states)

  going = lambda loop: (loop.position < max_tokens) & ~loop.ended.all()
  out = jax.lax.while_loop(going, step, _first_state(prefix, decoding, max_tokens, keep))
  return Samples(
      tokens=out.drawn.token, mask=out.mask, logp=out.drawn.logp, entropy=out.drawn.entropy,
      sampled_logp=out.drawn.sampled_logp, sampled_entropy=out.drawn.sampled_entropy,
      finished=out.ended, steps=out.position,
      trunk=None if out.states is None else Trunk(out.cache, *out.states, prefix.offset))


@counted
@functools.partial(jax.jit, static_argnames=("config", "samples", "max_tokens", "keep"))
def sample(config: transformer.Config, params: Any, prompt: Int[Array, "P L"],
           prompt_mask: Bool[Array, "P L"], keys: Key[Array, " B"], decoding: Decoding, *,
           samples: int, max_tokens: int, keep: bool = False) -> Samples:
  """G responses to each left-padded prompt, at most `max_tokens` tokens; ends when all rows did.

  decoding: temperature, top_p and top_k are scalars or [B]. keep: with the trunk, for `resume`.
  """
  prefix = prefill(config, params, prompt, prompt_mask, samples, max_tokens)
  return _decoded(config, params, prefix, keys, decoding, max_tokens, keep)


@counted
@functools.partial(jax.jit, static_argnames=("config", "copies", "max_tokens"))
def resume(config: transformer.Config, params: Any, trunk: Trunk, cut: Int[Array, " B"],
           keys: Key[Array, " N"], decoding: Decoding, *, copies: int, max_tokens: int) -> Samples:
  """N = B x copies responses to each row's prompt and its first `cut` tokens, 0 <= cut < length.

  Nothing of the prefix is computed again: its places in the cache are copied, those of later tokens
  are never attended to, and the first draw is from the state that the token at `cut` was drawn
  from. A stop string may begin in the prefix.
  """
  places = trunk.cache.valid.shape[1]
  start = places - trunk.hidden.shape[1]  # where the responses begin
  shared = jnp.arange(places)[None] < (start + cut)[:, None]
  cache = dataclasses.replace(trunk.cache, valid=trunk.cache.valid & shared)
  hidden = jnp.take_along_axis(trunk.hidden, cut[:, None, None], axis=1)[:, 0]
  spelled = jnp.take_along_axis(trunk.spelled, cut[:, None], axis=1)[:, 0]
  prefix = Prefix(jnp.repeat(hidden, copies, 0), _repeated(cache, copies, max_tokens),
                  jnp.repeat(trunk.offset + cut, copies), jnp.repeat(spelled, copies))
  return _decoded(config, params, prefix, keys, decoding, max_tokens, keep=False)
