"""Sampling through fewer slots than rows: a row that has ended makes room for the next one.

B rows wait in a queue, S of them are decoded at once. Every prompt is run once; a slot that takes a
row copies the keys and values of its prompt. Behind them lie T slots of a ring, which all rows
write at the same place, clock mod T: a row lives at most T ticks, so it never meets itself, and
attention does not ask in which order slots lie. Positions and noise count from a row's own birth,
so that tokens are those of `sampler.sample`. When the queue is empty, what is left moves together
into fewer slots.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from entrolab import keys as key_scheme
from entrolab import sharding
from entrolab.models import transformer
from entrolab.rollout import sampler
from entrolab.rollout.draw import Draw, draw
from entrolab.typing import Array, Bool, Int, Key

IDLE = 16  # slots are filled again when one in so many is idle
SIZES, FEWEST = 3, 8  # how many sizes, each a program of its own; slots that are not halved again


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Slots:
  """S rows in work. clock: ticks so far; queued: the first row that still waits; row [S]: whose
  slot it is; birth [S]: the tick of its first token; length [S]: tokens so far; stopped, idle [S];
  hidden [S, D]: the state its next token is drawn from; ring: `Draw` of [S, T]."""
  clock: Any
  queued: Any
  row: Any
  birth: Any
  length: Any
  stopped: Any
  idle: Any
  hidden: Any
  cache: Any
  ring: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Queue:
  """P prompts that have been run, hidden [P, D] and cache, and what B rows draw by."""
  hidden: Any
  cache: Any
  own: Any

  @property
  def rows(self) -> int:
    """B."""
    return self.own["keys"].shape[0]

  @property
  def samples(self) -> int:
    """G."""
    return self.rows // self.hidden.shape[0]


def sizes(slots: int) -> list[int]:
  """How many slots are in use, one after another, as rows run out; 0 last."""
  halves = [slots >> n for n in range(SIZES)]
  return [slots, *(n for n in halves[1:] if n >= FEWEST), 0]


def _copied(into: transformer.Cache, source: transformer.Cache, to: Array, of: Array, count: Array
            ) -> transformer.Cache:
  """`into` with the keys and values of `source`, row of[i] in row to[i], for i < count. Row by row:
  this is done in place."""
  def one(i, held):
    def put(x, y):
      part = jax.lax.dynamic_slice(y, (0, of[i], 0, 0, 0), (y.shape[0], 1, *y.shape[2:]))
      return jax.lax.dynamic_update_slice(x, part, (0, to[i], 0, 0, 0))
    k, v = held
    # a source that is `into` itself changes as rows move
    return (put(k, k), put(v, v)) if source is into else (put(k, source.k), put(v, source.v))
  k, v = jax.lax.fori_loop(0, count, one, (into.k, into.v))
  return dataclasses.replace(into, k=k, v=v)


def _flushed(out: dict[str, Array], s: _Slots) -> dict[str, Array]:
  """The outputs of all rows with what the slots hold of theirs so far."""
  lines = jax.vmap(jnp.roll)  # from where a row was born
  parts = {name: lines(value, -s.birth) for name, value in s.ring.items()}
  parts |= {"length": s.length, "stopped": s.stopped}
  return {name: x.at[s.row].set(parts[name]) for name, x in out.items()}


def _filled(s: _Slots, queue: _Queue) -> _Slots:
  """The next rows of the queue in the slots that are idle."""
  slots, samples = s.idle.shape[0], queue.samples
  place = s.queued + jnp.cumsum(s.idle, dtype=jnp.int32) - 1
  new = s.idle & (place < queue.rows)
  row = jnp.where(new, place, s.row)
  to, = jnp.nonzero(new, size=slots, fill_value=0)
  count = new.sum(dtype=jnp.int32)
  cache = _copied(s.cache, queue.cache, to, row[to] // samples, count)
  fresh = queue.cache.valid[row // samples]
  fresh = jnp.pad(fresh, ((0, 0), (0, cache.valid.shape[1] - fresh.shape[1])))
  cache = dataclasses.replace(cache, valid=jnp.where(new[:, None], fresh, cache.valid))
  return dataclasses.replace(
      s, queued=s.queued + count, row=row, birth=jnp.where(new, s.clock, s.birth),
      length=jnp.where(new, 0, s.length), stopped=s.stopped & ~new, idle=s.idle & ~new,
      hidden=jnp.where(new[:, None], queue.hidden[row // samples], s.hidden), cache=cache)


def _compacted(s: _Slots, size: int) -> _Slots:
  """The live rows, at most `size` of them, in the first `size` slots; k and v keep their shape."""
  first = jnp.arange(s.idle.shape[0]) < size
  of, = jnp.nonzero(~s.idle & ~first, size=size, fill_value=0)
  to, = jnp.nonzero(s.idle & first, size=size, fill_value=0)
  count = (~s.idle & ~first).sum(dtype=jnp.int32)
  moved = jnp.where(jnp.arange(size) < count, to, size)
  order = jnp.arange(size).at[moved].set(of, mode="drop")
  take = lambda x: x[order]
  cache = _copied(s.cache, s.cache, to, of, count)
  kept = {name: take(getattr(s, name)) for name in (
      "row", "birth", "length", "stopped", "idle", "hidden")}
  return dataclasses.replace(s, **kept, ring=jax.tree.map(take, s.ring),
                             cache=dataclasses.replace(cache, valid=take(cache.valid)))


def _decoded(config, params, s, queue, stop_ids, pad_id, go):
  """Ticks of all slots while `go`."""
  own = jax.tree.map(lambda x: x[s.row], queue.own)
  max_tokens = s.ring["token"].shape[1]

  def tick(s: _Slots) -> _Slots:
    at = s.clock % max_tokens
    logits = transformer.logits(config, params, s.hidden)
    uniform = key_scheme.token_uniform(own["keys"], s.length)
    drawn = draw(logits, uniform, own["temperature"], own["top_p"], own["top_k"])
    token = jnp.where(s.idle, pad_id, drawn.token).astype(jnp.int32)

    def put(ring, value):  # a row that has ended stays as it is until it is flushed
      old = jax.lax.dynamic_slice(ring, (0, at), (ring.shape[0], 1))
      return jax.lax.dynamic_update_slice(ring, jnp.where(s.idle[:, None], old, value[:, None]),
                                          (0, at))

    ring = {name: put(s.ring[name], value) for name, value in drawn._asdict().items()}
    hidden, cache = transformer.extend(
        config, params, token[:, None], (own["offset"] + s.length)[:, None], ~s.idle[:, None],
        s.cache, s.cache.valid.shape[1] - max_tokens + at)
    now = ~s.idle & (token[:, None] == stop_ids[None]).any(1)
    length = s.length + (~s.idle).astype(jnp.int32)
    return dataclasses.replace(
        s, clock=s.clock + 1, length=length, stopped=s.stopped | now,
        idle=s.idle | now | (length >= max_tokens), hidden=hidden[:, 0], cache=cache, ring=ring)

  return jax.lax.while_loop(go, tick, s)


def _begin(config, queue, slots, max_tokens) -> tuple[dict[str, Array], _Slots]:
  """(empty outputs of B rows, S idle slots)."""
  rows, zeros = queue.rows, lambda *shape: jnp.zeros(shape, jnp.int32)
  kinds = {name: jnp.int32 if name == "token" else jnp.float32 for name in Draw._fields}
  lines = lambda n: {name: jnp.zeros((n, max_tokens), kind) for name, kind in kinds.items()}
  cache = transformer.empty_cache(config, slots, queue.cache.valid.shape[1] + max_tokens)
  hidden = jnp.zeros((slots, queue.hidden.shape[1]), queue.hidden.dtype)
  out = {**lines(rows), "length": zeros(rows), "stopped": jnp.zeros(rows, bool)}
  return out, _Slots(zeros(), zeros(), jnp.arange(slots, dtype=jnp.int32), zeros(slots),
                     zeros(slots), jnp.zeros(slots, bool), jnp.ones(slots, bool), hidden, cache,
                     lines(slots))


def check(slots: int, rows: int, ways: int) -> None:
  """Raises ValueError for slots that are not between 1 and `rows`, or not as many on each of the
  `ways` devices that the rows are sharded over."""
  if not 1 <= slots <= rows:
    raise ValueError(f"slots={slots} for {rows} rows: at least 1, at most one a row")
  if slots % ways:
    near = sorted({max(slots // ways, 1) * ways, -(-slots // ways) * ways})
    raise ValueError(f"sampling.slots={slots} does not divide over data x fsdp={ways} devices, "
                     f"each of which refills its own; nearest: {' or '.join(map(str, near))}")


def _sampled(config, params, prompt, prompt_mask, own, stop_ids, pad_id, *, max_tokens, slots):
  """`Samples` of the rows of one device; steps [1]."""
  hidden, cache = sampler._prefill(config, params, prompt, prompt_mask, 1, 0)
  offset = prompt_mask.sum(1).astype(jnp.int32)
  offset = jnp.repeat(offset, own["keys"].shape[0] // offset.shape[0])
  queue = _Queue(hidden, cache, {**own, "offset": offset})
  live = lambda s: (~s.idle).sum()
  decoded = lambda s, go: _decoded(config, params, s, queue, stop_ids, pad_id, go)
  rows, enough, stages = queue.rows, max(1, slots // IDLE), sizes(slots)

  def round_(carry):
    out, s = carry
    out = _flushed(out, s)
    go = lambda s: jnp.where(s.queued < rows, live(s) > slots - enough, live(s) > stages[1])
    return out, decoded(_filled(s, queue), go)

  waits = lambda carry: (carry[1].queued < rows) | (live(carry[1]) > stages[1])
  out, s = jax.lax.while_loop(waits, round_, _begin(config, queue, slots, max_tokens))
  for size, fewer in zip(stages[1:-1], stages[2:], strict=True):
    out = _flushed(out, s)
    s = decoded(_compacted(s, size), lambda s, fewer=fewer: live(s) > fewer)
  out = _flushed(out, s)
  mask = jnp.arange(max_tokens)[None] < out["length"][:, None]
  number = lambda name: jnp.where(mask, out[name], 0.0)
  return sampler.Samples(
      jnp.where(mask, out["token"], pad_id).astype(jnp.int32), mask, number("logp"),
      number("entropy"), number("sampled_logp"), number("sampled_entropy"), out["stopped"],
      s.clock[None])


@functools.partial(jax.jit, static_argnames=("config", "samples", "max_tokens", "slots", "mesh"))
def sample(config: transformer.Config, params: Any, prompt: Int[Array, "P L"],
           prompt_mask: Bool[Array, "P L"], keys: Key[Array, " B"], *, samples: int,
           max_tokens: int,
           slots: int, temperature: Array, top_p: Array, top_k: Array, stop_ids: Int[Array, " s"],
           pad_id: Array | int = 0, mesh: Mesh | None = None) -> sampler.Samples:
  """`sampler.sample`, `slots` rows at a time; steps: ticks. The cache is that of `slots` rows, and
  of the prompts once more.

  mesh: prompts and rows lie over its axes of rows, and so do the slots: every device refills its
  own from its own rows, at its own pace; steps: of the slowest. Raises ValueError as `check`.
  """
  rows, ways = prompt.shape[0] * samples, 1 if mesh is None else sharding.row_devices(mesh)
  check(slots, rows, ways)
  sampler.TRACES.append((*prompt.shape, samples, max_tokens, slots))
  spread = lambda x, dtype: jnp.broadcast_to(jnp.asarray(x, dtype), (rows,))
  own = {"keys": keys, "temperature": spread(temperature, jnp.float32),
         "top_p": spread(top_p, jnp.float32), "top_k": spread(top_k, jnp.int32)}
  if ways > 1:  # the layout places rows, and each device has its own
    config = dataclasses.replace(config, layout=None)
  run = functools.partial(_sampled, config, max_tokens=max_tokens, slots=slots // ways)
  if ways > 1:
    # nothing is exchanged between rows, so that loops of other lengths never wait for each other;
    # "tensor" is left to the compiler, as in `sampler.sample`
    rows_of = P(sharding.ROWS)
    run = jax.shard_map(run, mesh=mesh, in_specs=(P(), rows_of, rows_of, rows_of, P(), P()),
                        out_specs=rows_of, axis_names={*sharding.ROWS}, check_vma=False)
  out = run(params, prompt, prompt_mask, own, stop_ids, jnp.asarray(pad_id, jnp.int32))
  return dataclasses.replace(out, steps=out.steps.max())
