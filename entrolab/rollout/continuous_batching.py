"""Sampling through fewer slots than rows: a row that has ended makes room for the next one.

B rows wait in a queue; S of them are decoded at once, each in a slot. A tick decodes one token of
every row in a slot. Every prompt is run once, and a slot that takes a row copies the keys and
values of its prompt. Behind these the cache of a slot has a ring of T places. At a tick all slots
write the same place of it, clock mod T. A row lives at most T ticks, so that it never overwrites
itself, and attention does not depend on the order of places. Positions and noise count from the
tick at which a row got its slot, so that tokens are those of `decode.sample`. Once the queue is
empty, the rows that are left move together into fewer slots.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from entrolab import sharding
from entrolab.models import transformer
from entrolab.rollout import decode
from entrolab.rollout.compilations import counted
from entrolab.rollout.decode import Decoding, Samples
from entrolab.rollout.draw import DrawnToken
from entrolab.tasks.automaton import START
from entrolab.typing import Array, Bool, Float, Int, Key

IDLE = 16  # slots are filled again when one in so many is idle
SIZES = 3  # sizes at most, from all slots down by halves; a loop is compiled for each
FEWEST = 8  # the smallest of these sizes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Slots:
  """S slots and the rows in them."""
  clock: Int[Array, ""]  # ticks so far
  queued: Int[Array, ""]  # the first row that still waits
  row: Int[Array, " S"]  # the row in the slot
  birth: Int[Array, " S"]  # the tick of its first token
  length: Int[Array, " S"]  # its tokens so far
  spelled: Int[Array, " S"]  # what it spells so far, for `Decoding.advanced`
  stopped: Bool[Array, " S"]  # whether it was ended by a stop token or a stop string
  idle: Bool[Array, " S"]  # whether it has ended, or no row was ever here
  hidden: Float[Array, "S D"]  # the state that its next token is drawn from
  cache: transformer.Cache  # L places of its prompt, T of the ring
  ring: DrawnToken  # [S, T], the token of tick c at c mod T


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Queue:
  """P prompts that have been run, and what their B rows are drawn with."""
  hidden: Float[Array, "P D"]  # the state after each prompt
  cache: transformer.Cache  # of the prompts, L places
  keys: Key[Array, " B"]  # of the rows
  offset: Int[Array, " B"]  # tokens of each row's prompt
  decoding: Decoding  # with a temperature, top_p and top_k for each row

  @property
  def rows(self) -> int:
    """B."""
    return self.keys.shape[0]

  @property
  def samples(self) -> int:
    """G."""
    return self.rows // self.hidden.shape[0]


class _Outputs(NamedTuple):
  """The tokens of all B rows so far, each from its first token on."""
  drawn: DrawnToken  # [B, T]
  length: Int[Array, " B"]  # tokens of a row so far; behind them `drawn` is meaningless
  stopped: Bool[Array, " B"]  # whether a stop token or a stop string has ended it


def sizes(slots: int) -> list[int]:
  """How many slots are in use, one after another, as rows run out; 0 last."""
  halves = [slots >> n for n in range(SIZES)]
  return [slots, *(n for n in halves[1:] if n >= FEWEST), 0]


def _copied(into: transformer.Cache, source: transformer.Cache, to: Array, of: Array, count: Array
            ) -> transformer.Cache:
  """`into` with the keys and values of `source`, row of[i] in row to[i], for i < count."""
  def copy_row(i: Array, keys_and_values: tuple[Array, Array]) -> tuple[Array, Array]:
    def put(x: Array, y: Array) -> Array:
      part = jax.lax.dynamic_slice(y, (0, of[i], 0, 0, 0), (y.shape[0], 1, *y.shape[2:]))
      return jax.lax.dynamic_update_slice(x, part, (0, to[i], 0, 0, 0))

    k, v = keys_and_values
    # a source that is `into` itself changes as rows move
    return (put(k, k), put(v, v)) if source is into else (put(k, source.k), put(v, source.v))

  # row by row, the compiler updates the cache in place; a gather would make a second one
  k, v = jax.lax.fori_loop(0, count, copy_row, (into.k, into.v))
  return dataclasses.replace(into, k=k, v=v)


def _flushed(out: _Outputs, slots: _Slots) -> _Outputs:
  """The outputs with the tokens of the rows that are in slots."""
  # in the ring a row begins anywhere and wraps around: turned back, its first token is at 0
  drawn = jax.tree.map(lambda ring: jax.vmap(jnp.roll)(ring, -slots.birth), slots.ring)
  parts = _Outputs(drawn, slots.length, slots.stopped)
  return jax.tree.map(lambda x, part: x.at[slots.row].set(part), out, parts)


def _filled(slots: _Slots, queue: _Queue) -> _Slots:
  """The next rows of the queue in the slots that are idle."""
  idle = slots.idle
  # the k-th idle slot gets the k-th row that waits
  waiting = slots.queued + jnp.cumsum(idle, dtype=jnp.int32) - 1
  new = idle & (waiting < queue.rows)
  row = jnp.where(new, waiting, slots.row)
  prompt = row // queue.samples
  to, = jnp.nonzero(new, size=idle.shape[0], fill_value=0)
  count = new.sum(dtype=jnp.int32)
  cache = _copied(slots.cache, queue.cache, to, prompt[to], count)
  # the prompt's places are valid, the ring's are not: that hides the tokens of the row before
  fresh = queue.cache.valid[prompt]
  fresh = jnp.pad(fresh, ((0, 0), (0, cache.valid.shape[1] - fresh.shape[1])))
  valid = jnp.where(new[:, None], fresh, cache.valid)
  return dataclasses.replace(
      slots, queued=slots.queued + count, row=row, birth=jnp.where(new, slots.clock, slots.birth),
      length=jnp.where(new, 0, slots.length), spelled=jnp.where(new, START, slots.spelled),
      stopped=slots.stopped & ~new, idle=idle & ~new,
      hidden=jnp.where(new[:, None], queue.hidden[prompt], slots.hidden),
      cache=dataclasses.replace(cache, valid=valid))


def _compacted(slots: _Slots, size: int) -> _Slots:
  """The live rows, at most `size` of them, in the first `size` slots."""
  live, first = ~slots.idle, jnp.arange(slots.idle.shape[0]) < size
  # live rows further back move to idle slots in front, as many as there are
  of, = jnp.nonzero(live & ~first, size=size, fill_value=0)
  to, = jnp.nonzero(~live & first, size=size, fill_value=0)
  count = (live & ~first).sum(dtype=jnp.int32)
  moved = jnp.where(jnp.arange(size) < count, to, size)
  order = jnp.arange(size).at[moved].set(of, mode="drop")
  take = lambda x: x[order]
  cache = _copied(slots.cache, slots.cache, to, of, count)
  # keys and values keep their shape, of which the first rows are in use: cut, they would be copied
  return dataclasses.replace(
      slots, row=take(slots.row), birth=take(slots.birth), length=take(slots.length),
      spelled=take(slots.spelled), stopped=take(slots.stopped), idle=take(slots.idle),
      hidden=take(slots.hidden),
      ring=jax.tree.map(take, slots.ring),
      cache=dataclasses.replace(cache, valid=take(cache.valid)))


def _decoded(config: transformer.Config, params: Any, slots: _Slots, queue: _Queue,
             going: Callable[[_Slots], Array]) -> _Slots:
  """Ticks of all slots while `going`: a token of every row that is not idle."""
  keys, offset = queue.keys[slots.row], queue.offset[slots.row]
  decoding = queue.decoding.of_rows(slots.row)
  max_tokens = slots.ring.token.shape[1]
  start = slots.cache.valid.shape[1] - max_tokens  # of the ring

  def tick(s: _Slots) -> _Slots:
    at = s.clock % max_tokens
    live = ~s.idle
    drawn, _ = decode.next_token(config, params, s.hidden, keys, s.length, decoding, s.idle)

    def put(ring: Array, new: Array) -> Array:
      # an idle slot's ring stays as it is until it is flushed
      old = jax.lax.dynamic_slice(ring, (0, at), (ring.shape[0], 1))
      new = jnp.where(s.idle[:, None], old, new[:, None])
      return jax.lax.dynamic_update_slice(ring, new, (0, at))

    # all slots write the same place of the cache, but each at the position of its row
    hidden, cache = transformer.extend(
        config, params, drawn.token[:, None], (offset + s.length)[:, None], live[:, None],
        s.cache, start + at)
    ends, spelled = decoding.advanced(drawn.token, s.spelled)
    stopped = live & ends
    length = s.length + live.astype(jnp.int32)
    return dataclasses.replace(
        s, clock=s.clock + 1, length=length, spelled=spelled, stopped=s.stopped | stopped,
        idle=s.idle | stopped | (length >= max_tokens), hidden=hidden[:, 0], cache=cache,
        ring=jax.tree.map(put, s.ring, drawn))

  return jax.lax.while_loop(going, tick, slots)


def _empty(config: transformer.Config, queue: _Queue, slots: int, max_tokens: int
           ) -> tuple[_Outputs, _Slots]:
  """(empty outputs of B rows, S idle slots)."""
  zeros = lambda *shape: jnp.zeros(shape, jnp.int32)

  def tokens(rows: int) -> DrawnToken:
    statistics = {name: jnp.zeros((rows, max_tokens), jnp.float32)
                  for name in DrawnToken._fields if name != "token"}
    return DrawnToken(token=zeros(rows, max_tokens), **statistics)

  out = _Outputs(tokens(queue.rows), zeros(queue.rows), jnp.zeros(queue.rows, bool))
  places = queue.cache.valid.shape[1] + max_tokens
  # slot s names row s at first: the first flush writes zeros over zeros, of distinct rows
  return out, _Slots(
      clock=zeros(), queued=zeros(), row=jnp.arange(slots, dtype=jnp.int32), birth=zeros(slots),
      length=zeros(slots), spelled=zeros(slots) + START,
      stopped=jnp.zeros(slots, bool), idle=jnp.ones(slots, bool),
      hidden=jnp.zeros((slots, queue.hidden.shape[1]), queue.hidden.dtype),
      cache=transformer.empty_cache(config, slots, places), ring=tokens(slots))


def check(slots: int, rows: int, ways: int) -> None:
  """Raises ValueError for slots that are not between 1 and `rows`, or not as many on each of the
  `ways` devices that the rows are sharded over."""
  if not 1 <= slots <= rows:
    raise ValueError(f"slots={slots} for {rows} rows: at least 1, at most one a row")
  if slots % ways:
    near = sorted({max(slots // ways, 1) * ways, -(-slots // ways) * ways})
    raise ValueError(f"sampling.slots={slots} does not divide over data x fsdp={ways} devices, "
                     f"which share the slots equally; nearest: {' or '.join(map(str, near))}")


def _all_rows(config: transformer.Config, params: Any, queue: _Queue, slots: int, max_tokens: int
              ) -> tuple[_Outputs, Array]:
  """(outputs of every row of a queue, ticks)."""
  live = lambda s: (~s.idle).sum()
  rows, enough, stages = queue.rows, max(1, slots // IDLE), sizes(slots)
  decoded = lambda s, going: _decoded(config, params, s, queue, going)

  def refilled(carry: tuple[_Outputs, _Slots]) -> tuple[_Outputs, _Slots]:
    out, s = carry
    out = _flushed(out, s)  # before their slots are taken, the rows that have ended are written
    # filling costs a copy of prompts, so that it waits for `enough` idle slots; when no row waits
    # any more, ticks go on until the rest fits into fewer slots
    going = lambda s: jnp.where(s.queued < rows, live(s) > slots - enough, live(s) > stages[1])
    return out, decoded(_filled(s, queue), going)

  unfinished = lambda carry: (carry[1].queued < rows) | (live(carry[1]) > stages[1])
  out, s = jax.lax.while_loop(unfinished, refilled, _empty(config, queue, slots, max_tokens))
  for size, fewer in zip(stages[1:-1], stages[2:], strict=True):
    out = _flushed(out, s)
    s = decoded(_compacted(s, size), lambda s, fewer=fewer: live(s) > fewer)
  return _flushed(out, s), s.clock


def _sampled(config: transformer.Config, params: Any, prompt: Array, prompt_mask: Array,
             keys: Array, decoding: Decoding, *, max_tokens: int, slots: int) -> Samples:
  """`Samples` of the rows of one device; steps [1]."""
  # prompts alone: their cache is copied to a slot whenever one takes a row
  prefix = decode.prefill(config, params, prompt, prompt_mask, samples=1, room=0)
  offset = jnp.repeat(prefix.offset, keys.shape[0] // prompt.shape[0])
  queue = _Queue(prefix.hidden, prefix.cache, keys, offset, decoding)
  out, ticks = _all_rows(config, params, queue, slots, max_tokens)
  # behind a row's end the ring has tokens of the slot's earlier rows
  mask = jnp.arange(max_tokens)[None] < out.length[:, None]
  statistic = lambda x: jnp.where(mask, x, 0.0)
  return Samples(
      tokens=jnp.where(mask, out.drawn.token, decoding.pad_id).astype(jnp.int32), mask=mask,
      logp=statistic(out.drawn.logp), entropy=statistic(out.drawn.entropy),
      sampled_logp=statistic(out.drawn.sampled_logp),
      sampled_entropy=statistic(out.drawn.sampled_entropy), finished=out.stopped,
      steps=ticks[None])


@counted
@functools.partial(jax.jit, static_argnames=("config", "samples", "max_tokens", "slots", "mesh"))
def sample(config: transformer.Config, params: Any, prompt: Int[Array, "P L"],
           prompt_mask: Bool[Array, "P L"], keys: Key[Array, " B"], decoding: Decoding, *,
           samples: int, max_tokens: int, slots: int, mesh: Mesh | None = None) -> Samples:
  """`decode.sample`, `slots` rows at a time; steps: ticks. The cache is that of `slots` rows, and
  of the prompts once more.

  mesh: prompts, rows and slots are sharded over its axes of rows; a device fills its slots from its
  rows without waiting for other devices. steps: of the slowest. Raises ValueError as `check`.
  """
  rows, ways = prompt.shape[0] * samples, 1 if mesh is None else sharding.row_devices(mesh)
  check(slots, rows, ways)
  decoding = decoding.spread(rows)
  if ways > 1:  # inside shard_map a device sees its rows alone: no layout places them
    config = dataclasses.replace(config, layout=None)
  run = functools.partial(_sampled, config, max_tokens=max_tokens, slots=slots // ways)
  if ways > 1:
    # nothing is exchanged between devices with different rows, so that their loops may differ in
    # length; "tensor" is left to the compiler, as in `decode.sample`
    of_rows, whole = P(sharding.ROWS), P()
    specs: Any = dataclasses.replace(decoding, temperature=of_rows, top_p=of_rows, top_k=of_rows,
                                     stop_ids=whole, pad_id=whole,
                                     stops=jax.tree.map(lambda x: whole, decoding.stops))
    run = jax.shard_map(run, mesh=mesh, in_specs=(whole, of_rows, of_rows, of_rows, specs),
                        out_specs=of_rows, axis_names={*sharding.ROWS}, check_vma=False)
  out = run(params, prompt, prompt_mask, keys, decoding)
  return dataclasses.replace(out, steps=jnp.max(out.steps))
