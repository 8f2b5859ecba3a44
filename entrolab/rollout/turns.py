"""One call that carries every row of a batch one action further, whatever turn the row is at.

Rows keep a key-value cache between calls. A call appends to each row the observation that waits
for it, at the end of the row, and draws tokens until every row that acts has ended its action.
The noise of a token folds its position in the response, observations included, into the key of the
row, and a row's cache is laid out by the row alone: tokens do not depend on who else is there.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entrolab.models import transformer
from entrolab.rollout import decode
from entrolab.rollout.compilations import counted
from entrolab.rollout.decode import Decoding
from entrolab.tasks.automaton import START
from entrolab.typing import Array, Bool, Float, Int, Key

STATISTICS = ("logp", "entropy", "sampled_logp")  # of `DrawnToken`, which rows keep
# (step of the call, logits [B, V], which rows draw [B]) -> [B], summed over the steps of a call
Measure = Callable[[Array, Array, Array], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """B episodes so far, each of at most T tokens."""
  tokens: Int[Array, "B T"]  # pad from `at` on
  present: Bool[Array, "B T"]  # which stand in the context
  mask: Bool[Array, "B T"]  # which the policy drew
  phase: Int[Array, "B T"]  # their turn: an observation and the action that it leads to
  logp: Float[Array, "B T"]  # of a drawn token under the policy, nats
  entropy: Float[Array, "B T"]  # of the policy, nats
  sampled_logp: Float[Array, "B T"]  # under the distribution drawn from, nats
  at: Int[Array, " B"]  # tokens so far, and so the place of the next one
  spelled: Int[Array, " B"]  # what the action under way spells, for `Decoding.advanced`
  hidden: Float[Array, "B D"]  # the state that the next token is drawn from
  offset: Int[Array, " B"]  # tokens of the prompt
  cache: transformer.Cache  # places: L of the prompt, T of the response, W to write in


class Turn(NamedTuple):
  """What a call gets from the host for every row."""
  observation: Int[Array, "B W"]  # tokens that wait to be read, first the real ones
  present: Bool[Array, "B W"]  # which of them are real
  acting: Bool[Array, " B"]  # whether the row draws an action
  number: Int[Array, " B"]  # of the turn
  so_far: Int[Array, " B"]  # tokens of the action that earlier calls have drawn


class NewTokens(NamedTuple):
  """What a call drew, in at most C steps."""
  tokens: Int[Array, "B C"]  # zero off the mask
  mask: Bool[Array, "B C"]  # real tokens come first
  stopped: Bool[Array, " B"]  # whether a stop token or a stop string ended them
  steps: Int[Array, ""]  # positions that were decoded


@counted
@functools.partial(jax.jit, static_argnames=("config", "samples", "max_tokens", "width"))
def prefill(config: transformer.Config, params: Any, prompt: Int[Array, "P L"],
          prompt_mask: Bool[Array, "P L"], pad_id: Int[Array, ""], *, samples: int, max_tokens: int,
          width: int) -> Rows:
  """B = P x samples rows after their prompts, each prompt run once.

  max_tokens: T, the length of a response; width: W, the most tokens of an observation.
  """
  rows = prompt.shape[0] * samples
  prefix = decode.prefill(config, params, prompt, prompt_mask, samples, max_tokens + width)
  empty = lambda dtype: jnp.zeros((rows, max_tokens), dtype)
  return Rows(tokens=empty(jnp.int32) + pad_id, present=empty(bool), mask=empty(bool),
              phase=empty(jnp.int32), at=jnp.zeros(rows, jnp.int32), spelled=prefix.spelled,
              hidden=prefix.hidden, offset=prefix.offset, cache=prefix.cache,
              **{name: empty(jnp.float32) for name in STATISTICS})


def _put(into: Array, places: Int[Array, "B N"], values: Array) -> Array:
  """into [B, S, ...] with values [B, N, ...] at each row's places; those >= S are dropped."""
  return jax.vmap(lambda x, at, new: x.at[at].set(new, mode="drop"))(into, places, values)


def append(config: transformer.Config, params: Any, rows: Rows, tokens: Int[Array, "B N"],
           present: Bool[Array, "B N"], turn: Int[Array, " B"], width: int) -> Rows:
  """The rows with the tokens that are `present`, which come first, at their ends.

  turn: its number, for `phase`; width: as in `prefill`.
  """
  count = present.sum(1).astype(jnp.int32)
  length, size = rows.tokens.shape[1], rows.cache.valid.shape[1]
  places = rows.at[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
  # the decoder writes the same places of every row, so new keys and values go to the last ones
  last = size - tokens.shape[1]
  hidden, cache = transformer.extend(config, params, tokens, rows.offset[:, None] + places, present,
                                     rows.cache, last)
  # and from there to where each row has its end
  ends = jnp.where(present, size - width - length + places, size)
  of_heads = jax.vmap(lambda x, at, new: x.at[at].set(new, mode="drop"), (0, None, 0))
  move = jax.vmap(jax.vmap(of_heads), (0, None, 0))  # over layers and rows
  k, v = (move(x, ends, x[..., last:, :]) for x in (cache.k, cache.v))
  # `valid` as it was before: what lies in the last places is never attended to again
  valid = _put(rows.cache.valid, ends, present)
  newest = jnp.take_along_axis(hidden, jnp.maximum(count - 1, 0)[:, None, None], 1)[:, 0]
  columns = jnp.where(present, places, length)
  return dataclasses.replace(
      rows, cache=transformer.Cache(k, v, valid), at=rows.at + count,
      hidden=jnp.where((count > 0)[:, None], newest, rows.hidden),
      tokens=_put(rows.tokens, columns, tokens), present=_put(rows.present, columns, present),
      phase=_put(rows.phase, columns, jnp.broadcast_to(turn[:, None], columns.shape)))


class _Loop(NamedTuple):
  """What a step of a call hands to the next one."""
  step: Int[Array, ""]  # of the call, from 0
  rows: Rows  # with all tokens up to this step
  going: Bool[Array, " B"]  # which rows still draw
  tokens: Int[Array, "B C"]  # drawn in this call
  mask: Bool[Array, "B C"]  # which of them are real
  stopped: Bool[Array, " B"]  # whether a stop token or a stop string ended them
  measured: Float[Array, " B"]  # the sum of `Measure` so far


def act(config: transformer.Config, params: Any, rows: Rows, keys: Key[Array, " B"], turn: Turn,
        decoding: Decoding, measure: Measure | None = None, *, chunk: int, action: int
        ) -> tuple[Rows, NewTokens, Float[Array, " B"]]:
  """Draws at most `chunk` tokens of the rows that act; action: as in `advance`.

  Gives (the rows with them, the new tokens, what `measure` adds up to).
  """
  count, width = turn.observation.shape
  length = rows.tokens.shape[1]
  decoding = decoding.spread(count)

  def step(loop: _Loop) -> _Loop:
    rows, going, t = loop.rows, loop.going, loop.step
    drawn, logits = decode.next_token(config, params, rows.hidden, keys, rows.at, decoding, ~going)
    # each row writes at its end; a row that does not draw writes past the end, which is dropped
    place = jnp.where(going, rows.at, length)[:, None]
    columns = {name: _put(getattr(rows, name), place, getattr(drawn, name)[:, None])
               for name in STATISTICS}
    rows = dataclasses.replace(rows, mask=_put(rows.mask, place, going[:, None]), **columns)
    rows = append(config, params, rows, drawn.token[:, None], going[:, None], turn.number, width)
    ends, spelled = decoding.advanced(drawn.token, rows.spelled)
    rows = dataclasses.replace(rows, spelled=jnp.where(going, spelled, rows.spelled))
    stopped = going & ends
    full = (turn.so_far + t + 1 >= action) | (rows.at >= length)
    put = lambda x, new: jax.lax.dynamic_update_slice(x, new[:, None], (0, t))
    return _Loop(
        step=t + 1, rows=rows, going=going & ~stopped & ~full,
        tokens=put(loop.tokens, drawn.token), mask=put(loop.mask, going),
        stopped=loop.stopped | stopped,
        measured=loop.measured + measure(t, logits, going) if measure else loop.measured)

  # an action that earlier calls began goes on spelling what they did
  spelled = jnp.where(turn.so_far > 0, rows.spelled, START)
  start = _Loop(
      step=jnp.zeros((), jnp.int32), rows=dataclasses.replace(rows, spelled=spelled),
      going=turn.acting & (rows.at < length),
      tokens=jnp.zeros((count, chunk), jnp.int32), mask=jnp.zeros((count, chunk), bool),
      stopped=jnp.zeros(count, bool), measured=jnp.zeros(count, jnp.float32))
  out = jax.lax.while_loop(lambda loop: (loop.step < chunk) & loop.going.any(), step, start)
  return out.rows, NewTokens(out.tokens, out.mask, out.stopped, out.step), out.measured


@counted
@functools.partial(jax.jit, static_argnames=("config", "chunk", "action"), donate_argnames="rows")
def advance(config: transformer.Config, params: Any, rows: Rows, keys: Key[Array, " B"], turn: Turn,
            decoding: Decoding, *, chunk: int, action: int) -> tuple[Rows, NewTokens]:
  """Appends what was observed, then draws at most `chunk` tokens of the rows that act.

  An action ends with a stop token or string, which belongs to it, at `action` tokens, those of
  earlier calls included, or at the end of the response. decoding: temperature, top_p and top_k are
  scalars.
  """
  width = turn.observation.shape[1]
  rows = append(config, params, rows, turn.observation, turn.present, turn.number, width)
  rows, new, _ = act(config, params, rows, keys, turn, decoding, chunk=chunk, action=action)
  return rows, new
