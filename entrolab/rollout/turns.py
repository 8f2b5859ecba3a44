"""One call that carries every row of a batch one action further, whatever turn the row is at.

Rows keep a key-value cache between calls. A call appends to each row the observation that waits
for it, at the row's own place, and draws tokens until every row that acts has ended its action.
The noise of a token folds its position in the response, observations included, into the key of the
row, and a row's cache is laid out by the row alone: tokens do not depend on who else is there.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from entrolab import keys as key_scheme
from entrolab.models import transformer
from entrolab.rollout import sampler
from entrolab.rollout.draw import draw
from entrolab.typing import Array, Bool, Float, Int, Key

DRAWN = ("logp", "entropy", "sampled_logp")
Hear = Callable[[Array, Array, Array], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """B episodes so far: tokens; present: in the context; mask: drawn by the policy; phase: the turn,
  which an observation opens; log-probs and entropy as in `Draw`, all [B, T]. at [B]: tokens so far;
  hidden [B, D]: the state that the next token is drawn from; offset [B]: tokens of the prompt;
  cache: slots of the prompt, T of the response, and at the end some to write in."""
  tokens: Any
  present: Any
  mask: Any
  phase: Any
  logp: Any
  entropy: Any
  sampled_logp: Any
  at: Any
  hidden: Any
  offset: Any
  cache: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Said:
  """What a call drew: tokens and mask [B, chunk]; stopped [B]: by a stop token; steps: decoded."""
  tokens: Any
  mask: Any
  stopped: Any
  steps: Any


@functools.partial(jax.jit, static_argnames=("config", "samples", "max_tokens", "width"))
def begin(config: transformer.Config, params: Any, prompt: Int[Array, "P L"],
          prompt_mask: Bool[Array, "P L"], pad_id: Array | int, *, samples: int, max_tokens: int,
          width: int) -> Rows:
  """B = P x samples rows after their prompts, each prompt run once.

  max_tokens: T, the length of a response; width: the most tokens of an observation.
  """
  sampler.TRACES.append((*prompt.shape, samples, max_tokens, width))
  rows = prompt.shape[0] * samples
  hidden, cache = sampler._prefill(config, params, prompt, prompt_mask, samples, max_tokens + width)
  empty = lambda dtype: jnp.zeros((rows, max_tokens), dtype)
  return Rows(tokens=empty(jnp.int32) + jnp.asarray(pad_id, jnp.int32), present=empty(bool),
              mask=empty(bool), phase=empty(jnp.int32), at=jnp.zeros(rows, jnp.int32),
              hidden=hidden, cache=cache,
              offset=jnp.repeat(prompt_mask.sum(1).astype(jnp.int32), samples),
              **{name: empty(jnp.float32) for name in DRAWN})


def _put(into: Array, slots: Int[Array, "B N"], values: Array) -> Array:
  """into [B, S, ...] with values [B, N, ...] at each row's own slots; those >= S are dropped."""
  return jax.vmap(lambda x, at, new: x.at[at].set(new, mode="drop"))(into, slots, values)


def _append(config: transformer.Config, params: Any, rows: Rows, tokens: Int[Array, "B N"],
            on: Bool[Array, "B N"], turn: Int[Array, " B"], width: int) -> Rows:
  """The rows with the tokens that are `on`, which come first, at their ends.

  The decoder writes the same slots of every row, so new keys and values go to the slots at the
  end, and from there to where the row has its own end.
  """
  n, slots, length = tokens.shape[1], rows.cache.valid.shape[1], rows.tokens.shape[1]
  places = rows.at[:, None] + jnp.arange(n, dtype=jnp.int32)[None]
  hidden, cache = transformer.extend(config, params, tokens, rows.offset[:, None] + places, on,
                                     rows.cache, slots - n)
  own = jnp.where(on, slots - width - length + places, slots)
  heads = jax.vmap(lambda x, at, new: x.at[at].set(new, mode="drop"), (0, None, 0))
  move = jax.vmap(jax.vmap(heads), (0, None, 0))  # over layers and rows
  k, v = (move(x, own, x[..., slots - n:, :]) for x in (cache.k, cache.v))
  valid = _put(rows.cache.valid, own, on)
  count = on.sum(1).astype(jnp.int32)
  last = jnp.take_along_axis(hidden, jnp.maximum(count - 1, 0)[:, None, None], 1)[:, 0]
  place = jnp.where(on, places, length)
  return dataclasses.replace(
      rows, cache=transformer.Cache(k, v, valid), at=rows.at + count,
      hidden=jnp.where((count > 0)[:, None], last, rows.hidden),
      tokens=_put(rows.tokens, place, tokens), present=_put(rows.present, place, on),
      phase=_put(rows.phase, place, jnp.broadcast_to(turn[:, None], place.shape)))


def limits(count: int, temperature: Array, top_p: Array, top_k: Array) -> tuple[Array, ...]:
  """The three of a draw, of every row."""
  spread = lambda x, dtype: jnp.broadcast_to(jnp.asarray(x, dtype), (count,))
  return spread(temperature, jnp.float32), spread(top_p, jnp.float32), spread(top_k, jnp.int32)


def speak(config: transformer.Config, params: Any, rows: Rows, keys: Key[Array, " B"],
          act: Bool[Array, " B"], turn: Int[Array, " B"], said: Array | int, hear: Hear, *,
          chunk: int, action: int, width: int, how: tuple[Array, ...], stop_ids: Int[Array, " s"],
          pad_id: Array | int) -> tuple[Rows, Said, Float[Array, " B"]]:
  """Draws at most `chunk` tokens of the rows that `act`, and sums what `hear` makes of them.

  hear: (step, logits [B, V], which rows draw [B]) -> [B]; how: `limits`; the rest as in `advance`.
  """
  count, length = rows.tokens.shape

  def step(carry):
    t, rows, going, stopped, out, heard = carry
    logits = transformer.logits(config, params, rows.hidden)
    drawn = draw(logits, key_scheme.token_uniform(keys, rows.at), *how)
    token = jnp.where(going, drawn.token, pad_id).astype(jnp.int32)
    heard += hear(t, logits, going)
    place = jnp.where(going, rows.at, length)[:, None]
    columns = {name: _put(getattr(rows, name), place, getattr(drawn, name)[:, None])
               for name in DRAWN}
    rows = dataclasses.replace(rows, mask=_put(rows.mask, place, going[:, None]), **columns)
    rows = _append(config, params, rows, token[:, None], going[:, None], turn, width)
    out = tuple(jax.lax.dynamic_update_slice(x, new[:, None], (0, t))
                for x, new in zip(out, (token, going), strict=True))
    now = going & (token[:, None] == stop_ids[None]).any(1)
    full = (said + t + 1 >= action) | (rows.at >= length)
    return t + 1, rows, going & ~now & ~full, stopped | now, out, heard

  empty = lambda dtype: jnp.zeros((count, chunk), dtype)
  start = (jnp.zeros((), jnp.int32), rows, act & (rows.at < length), jnp.zeros(count, bool),
           (empty(jnp.int32), empty(bool)), jnp.zeros(count, jnp.float32))
  go = lambda carry: (carry[0] < chunk) & carry[2].any()
  t, rows, _, stopped, (tokens, mask), heard = jax.lax.while_loop(go, step, start)
  return rows, Said(tokens, mask, stopped, t), heard


@functools.partial(jax.jit, static_argnames=("config", "chunk", "action"), donate_argnames="rows")
def advance(config: transformer.Config, params: Any, rows: Rows, keys: Key[Array, " B"],
            seen: Int[Array, "B W"], seen_on: Bool[Array, "B W"], act: Bool[Array, " B"],
            turn: Int[Array, " B"], said: Int[Array, " B"], *, chunk: int, action: int,
            temperature: Array, top_p: Array, top_k: Array, stop_ids: Int[Array, " s"],
            pad_id: Array | int = 0) -> tuple[Rows, Said]:
  """Appends what was seen, then draws at most `chunk` tokens of the rows that `act`.

  An action ends with a stop token, which belongs to it, at `action` tokens, of which `said` were
  drawn before this call, or at the end of the response. temperature, top_p, top_k: scalars.
  """
  count, width = seen.shape
  sampler.TRACES.append((count, width, rows.tokens.shape[1], chunk))
  rows = _append(config, params, rows, seen, seen_on, turn, width)
  nothing = lambda t, logits, going: jnp.zeros(count, jnp.float32)
  rows, drawn, _ = speak(config, params, rows, keys, act, turn, said, nothing, chunk=chunk,
                         action=action, width=width, how=limits(count, temperature, top_p, top_k),
                         stop_ids=stop_ids, pad_id=pad_id)
  return rows, drawn
