"""Branching of episodes where tools are used: AEPO (agentic) and ARPO.

After the answer of a tool some rollouts are copied, and copy and source go on with other noise;
which ones is decided by `methods.aepo_agentic.Branching` out of the entropies of what was said. A
copy takes over its source's cache, so that no token of a shared prefix, the tool's answer
included, goes through the model twice.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import keys as key_scheme
from entrolab import sharding
from entrolab.environments import BETWEEN, judge
from entrolab.methods import aepo_agentic
from entrolab.models import transformer
from entrolab.rollout import multiturn, turns
from entrolab.rollout.compilations import counted
from entrolab.rollout.decode import Decoding
from entrolab.rollout.engine import refilled
from entrolab.rollout.multiturn import DONE, TURNS, Episode
from entrolab.rollout.strategy import Feature, Prompted, Request, Rollout, Sampling
from entrolab.tasks.task import Example
from entrolab.typing import Array, Float, Int, Key

TOP, FIRST = 10, 20  # tokens of a distribution, and positions of a segment, that its entropy counts
keys_of_rows = jax.jit(key_scheme.keys_of_rows, static_argnames="samples")


class Segment(NamedTuple):
  """What a round brought, slot by slot as asked: entropies; whether a tool is called and there is
  room for its answer; draw(slot): the slot's next uniform number."""
  entropy: Sequence[float]
  asks: Sequence[bool]
  draw: Callable[[int], float]


class Engine(Protocol):
  """What grows a tree. The slots of prompt p are p n, ..., p n + n - 1, in order of creation."""

  def say(self, slots: Sequence[int]) -> Segment:
    """One segment of each of these slots."""
    ...

  def add(self, new: Sequence[tuple[int, int | None]]) -> None:
    """New slots, each with the slot that it copies after the tool's answer, or None: a start."""
    ...

  def goes(self, active: bool) -> bool:
    """Whether any process has active slots."""
    ...


def slots(tree: aepo_agentic.Tree, samples: int) -> list[int]:
  """The slot of every rollout."""
  seen, found = [0] * len(tree.streaks), []
  for rollout in tree.rollouts:
    found.append(rollout.prompt * samples + seen[rollout.prompt])
    seen[rollout.prompt] += 1
  return found


def grow(rule: aepo_agentic.Branching, initial: Sequence[int], engine: Engine) -> aepo_agentic.Tree:
  """Starts `initial` rollouts of each prompt, and goes round by round until none is active."""
  tree = rule.start(initial)
  at = slots(tree, rule.samples)
  engine.add([(slot, None) for slot in at])
  while engine.goes(bool(tree.active)):
    said = engine.say([at[i] for i in tree.active])
    old, tree = tree, rule.advance(tree, said.entropy, said.asks,
                                   lambda i, d=said.draw, at=at: d(at[i]))
    # a copy has the segments of its source, of which the last is that source's alone
    source = {tree.rollouts[i].path: at[i] for i in old.active}
    at = slots(tree, rule.samples)
    engine.add([(at[i], source.get(tree.rollouts[i].path))
                for i in range(len(old.rollouts), len(tree.rollouts))])
  return tree


def token_entropy(logits: Float[Array, "B V"], temperature: Array) -> Float[Array, " B"]:
  """What one position adds to the entropy of its segment: over the ten likeliest tokens, or over
  all where there are fewer, of the distribution at this temperature; at 0, of that at 1."""
  hot = jnp.where(temperature > 0.0, temperature, 1.0).astype(jnp.float32)
  logp = jax.nn.log_softmax(logits.astype(jnp.float32) / hot)
  best = jax.lax.top_k(logp, min(TOP, logits.shape[1]))[0]
  one = jnp.ones(logits.shape[0], jnp.int32)
  return aepo_agentic.segment_entropy(best[:, None], one, vocab=logits.shape[1], first=1)


def _pick(rows: turns.Rows, source: Int[Array, "P k"]) -> turns.Rows:
  """k rows of every group, by their places in it."""
  def take(x):
    groups = x.reshape(source.shape[0], -1, *x.shape[1:])
    return jax.vmap(lambda group, at: group[at])(groups, source).reshape(-1, *x.shape[1:])

  cache = transformer.Cache(jax.vmap(take)(rows.cache.k), jax.vmap(take)(rows.cache.v),
                            take(rows.cache.valid))
  rest = jax.tree.map(take, dataclasses.replace(rows, cache=None))
  return dataclasses.replace(rest, cache=cache)


@functools.partial(jax.jit, static_argnames="count")
def _first(rows: turns.Rows, prompts: Int[Array, " P"], *, count: int) -> turns.Rows:
  """The first row of every group, `count` times."""
  return _pick(rows, jnp.zeros((prompts.shape[0], count), jnp.int32))


@counted
@functools.partial(jax.jit, static_argnames=("config", "action", "trials"), donate_argnames="rows")
def _round(config: transformer.Config, params: Any, rows: turns.Rows, decoding: Decoding,
           keys: Key[Array, " B"], turn: turns.Turn, source: Int[Array, "P G"], *, action: int,
           trials: int) -> tuple[turns.Rows, Any]:
  """`turns.advance` by a whole action, with copies made between what is seen and what is said.

  source: the row of its group that each row is a copy of, mostly itself. Beside what was drawn:
  entropy [B] of the segments, and u [B, trials], which decide on branches, by key and position.
  """
  count, width = turn.observation.shape
  rows = _pick(turns.append(config, params, rows, turn.observation, turn.present, turn.number,
                            width), source)
  first = lambda t, logits, going: jax.lax.cond(t < FIRST, lambda: jnp.where(
      going, token_entropy(logits, decoding.temperature), 0.0),
                                                lambda: jnp.zeros(count, jnp.float32))
  rows, said, entropy = turns.act(config, params, rows, keys, turn, decoding, first, chunk=action,
                                  action=action)
  return rows, (said, entropy, key_scheme.trial_uniform(keys, rows.at, trials))


class Live:
  """The engine of real episodes: `samples` slots a prompt, their rows on the mesh.

  branch: the branch id of those that start. Of the rows of this process: parent, place in the group
  of what a slot is a copy of, else its own; cut: tokens that it copied; drawn, observed: tokens.
  """

  def __init__(self, owner: "Trees", asked: Prompted, rows: turns.Rows, samples: int,
               max_tokens: int, keys: Callable[..., Any], speak: Callable[..., Any],
               branch: int = 0):
    self.owner, self.asked, self.rows, self.samples = owner, asked, rows, samples
    self.max_tokens, self.speak, self._keys = max_tokens, speak, keys
    count = len(asked.examples) * samples
    self.episodes = [Episode(None, ending="not begun") for _ in range(count)]
    self.sample, self.cut = np.zeros(count, np.int32), np.zeros(count, np.int32)
    self.branch = np.full(count, branch, np.int32)
    self.parent = np.arange(count, dtype=np.int32) % samples
    self.source, self.kind = self.parent.copy(), np.zeros(count, np.int32)
    self.family: dict[tuple[int, int], int] = {}  # (prompt, sample) -> branches so far
    self.drawn = self.observed = self.steps = self.calls = 0
    self.seconds = 0.0

  def goes(self, active: bool) -> bool:
    """Whether any process has active slots."""
    flags = np.full(len(self.episodes), active)
    return bool(multiturn._any(self.owner.place(flags)))

  @property
  def keys(self) -> jax.Array:
    """fold(run, step, prompt, sample of the start, branch of it)."""
    return self._keys(*self.owner.place((self.sample, self.branch)), samples=self.samples)

  def add(self, new: Sequence[tuple[int, int | None]]) -> None:
    """Starts and copies; the rows of copies are filled when they first speak."""
    for slot, of in new:
      prompt = slot // self.samples
      if of is None:
        self.episodes[slot] = Episode(self.owner.environment.reset(self.asked.examples[prompt])[0])
        self.sample[slot] = sum(p == prompt for p, _ in self.family)
        self.family[prompt, int(self.sample[slot])] = 0
        continue
      e, name = self.episodes[of], (prompt, int(self.sample[of]))
      self.family[name] += 1
      self.sample[slot], self.branch[slot] = name[1], self.family[name]
      self.source[slot] = self.parent[slot] = of % self.samples
      self.cut[slot], self.kind[slot] = e.length + len(e.reads), 1
      self.episodes[slot] = dataclasses.replace(e, reads=[], actions=list(e.actions),
                                                length=int(self.cut[slot]))

  def say(self, slots: Sequence[int]) -> Segment:
    """One action of each of these slots, and the environment's answers."""
    act = np.zeros(len(self.episodes), bool)
    act[list(slots)] = True
    turn = self.owner._waiting(self.episodes, act)
    source = self.source.reshape(-1, self.samples)
    self.rows, out = self.speak(self.rows, self.keys, turn, self.owner.place(source))
    (tokens, mask, stopped), entropy, chance = sharding.local(
        ((out[0].tokens, out[0].mask, out[0].stopped), *out[1:]))
    self.source = np.arange(len(act), dtype=np.int32) % self.samples
    self.observed += sum(len(e.reads) for e in self.episodes)
    self.drawn += int(mask.sum())
    self.steps, self.calls, begin = self.steps + int(out[0].steps), self.calls + 1, time.time()
    if said := [self.episodes[slot] for slot in slots if self.owner._hear(
        self.episodes[slot], tokens[slot][mask[slot]].tolist(), bool(stopped[slot]),
        self.max_tokens)]:
      self.owner._act(said, self.max_tokens)
    self.seconds += time.time() - begin
    numbers: dict[int, Iterator] = {slot: iter(chance[slot].tolist()) for slot in slots}
    # at the limit of turns it is the rule that ends a rollout
    return Segment([float(entropy[slot]) for slot in slots],
                   [self.episodes[slot].ending in ("", TURNS) for slot in slots],
                   lambda slot: next(numbers[slot]))


class Trees(multiturn.Episodes):
  """Episodes, and trees of them; evaluation is on independent episodes."""
  strategy: "Agentic"

  def grown(self, tree: "Agentic", params: Any, examples: Sequence[Example], key: jax.Array,
            step: int, sampling: Sampling) -> Rollout:
    """P examples -> B = P x rule.samples verified episodes, a tree or several to an example."""
    asked, rule, max_tokens = self.prompted(examples), tree.rule, sampling.max_tokens
    samples = rule.samples
    decoding = self.decoding(sampling)
    keys = functools.partial(keys_of_rows, key, np.int32(step), asked.ids)
    speak = lambda rows, *rest, trials: _round(self.config, params, rows, decoding, *rest,
                                               action=tree.action, trials=trials)
    rows = turns.begin(self.config, params, asked.tokens, asked.mask, decoding.pad_id,
                       samples=samples, max_tokens=max_tokens,
                       width=self.environment.max_observation)
    initial, probe = [tree.initial] * len(examples), None
    if not tree.initial:
      probe = Live(self, asked, _first(rows, asked.ids, count=2), 2, max_tokens, keys,
                   functools.partial(speak, trials=0), key_scheme.PROBE)
      initial = budgets(probe, samples, tree.sharpness)
    live = Live(self, asked, rows, samples, max_tokens, keys,
                functools.partial(speak, trials=rule.beam - 1))
    grow(rule, initial, live)
    both = [live, probe] if probe else [live]
    total = lambda name: sum(getattr(x, name) for x in both)
    prompt = sharding.local(asked.mask).sum(1)
    copied = live.cut + np.repeat(prompt, samples)
    sources = {(at // samples, live.parent[at]) for at in np.flatnonzero(live.kind)}
    counts = {
        "calls": total("calls"), "branches": int(live.kind.sum()), "sources": len(sources),
        "initial": int(sum(initial)), "generated_tokens": total("drawn"),
        "probe_tokens": probe.drawn if probe else 0,
        "prefill_tokens": int(prompt.sum()) + total("observed"),
        "reused_tokens": int(copied[live.kind == 1].sum()), **multiturn._counts(live.episodes)}
    return self._judged(asked, live, samples, total("steps"), total("seconds"), counts)

  def _judged(self, asked: Prompted, live: Live, samples: int, steps: int, seconds: float,
              counts: dict[str, int]) -> Rollout:
    """Verdicts and columns of the rows."""
    episodes = live.episodes
    texts = [BETWEEN.join(e.actions) for e in episodes]
    verdicts = [judge(e.total, len(e.actions), e.ending) for e in episodes]
    known = self.place((np.asarray([v.code for v in verdicts], np.int32),
                        np.asarray([e.ending == DONE for e in episodes]),
                        np.asarray([e.total for e in episodes], np.float32)))
    batch = multiturn._assemble(live.rows, asked.tokens, asked.mask, live.keys, *known,
                                samples=samples, on_rows=sharding.rows(self.mesh))
    kind, parent, branch = self.place((live.kind, live.parent, live.cut))
    batch = batch.replace(row_kind=kind, parent=parent, branch=branch)
    batch = batch.replace(**self.filled(texts, live.rows.tokens, live.rows.mask, samples))
    everyone = [example for example in asked.examples for _ in range(samples)]
    return Rollout(batch, everyone, texts, verdicts, steps, sampled=len(episodes),
                   verify_seconds=seconds, counts=counts)


def budgets(probe: Live, samples: int, sharpness: float) -> list[int]:
  """m of every prompt, of two samples that are thrown away: one segment, and a whole episode.

  Officially the first of them has 50 tokens; an entropy reads 20 of a segment.
  """
  every = range(len(probe.episodes))
  probe.add([(slot, None) for slot in every])
  active, heard = list(every), [[] for _ in every]
  while probe.goes(bool(active)):
    for slot, entropy in zip(active, probe.say(active).entropy, strict=True):
      heard[slot].append(entropy)
    active = [slot for slot in active if slot % 2 and not probe.episodes[slot].ending]
  root = np.asarray([own[0] for own in heard[::2]])
  calls = np.asarray([np.mean(own) for own in heard[1::2]])
  return aepo_agentic.budget(root, calls, samples=samples, sharpness=sharpness).tolist()


@dataclasses.dataclass(frozen=True)
class Agentic(multiturn.MultiTurn):
  """Trees of episodes, rule.samples rows an example, all of them filled.

  initial: m rollouts of an example that start at once, the others are branches, or start when
  nothing is left to branch; 0: as many as `aepo_agentic.budget` says. A row is a whole episode,
  what it shares with its source included. Columns [B]: row_kind 0 start, 1 copy; parent: place in
  the group of what it was copied from, or its own; branch: tokens that it has from there.

  A row's key folds (prompt, sample: the how manieth start, branch: the how manieth copy in its
  family), the numbers that decide on branches fold its position into that: a branch is the same
  whatever else is in the batch, unless the rule's scope is "prompt". An action ends with its own
  end token, so that none is appended at the limit of calls, which are one fewer than turns; an
  action that is too long is cut and answered, and what an empty call does is up to the environment.
  Raises ValueError for numbers that do not fit together.
  """
  columns = (*multiturn.MultiTurn.columns, "row_kind", "parent", "branch")
  turns: int = 4
  rule: aepo_agentic.Branching = aepo_agentic.Branching(scope="own")
  initial: int = 0
  sharpness: float = 0.5

  def __post_init__(self) -> None:
    if self.turns != self.rule.calls + 1 or self.chunk or not (
        0 <= self.initial <= self.rule.samples) or self.rule.beam < 1:
      raise ValueError(f"{self!r}: needs turns = rule.calls + 1, chunk = 0, initial from 0 to "
                       f"rule.samples = {self.rule.samples}, rule.beam >= 1")

  @property
  def engine(self) -> Callable[..., "Trees"]:
    """What samples and verifies, with this rule."""
    return functools.partial(Trees, strategy=self)

  @property
  def unsupported(self) -> Mapping[Feature, str]:
    """Also several processes, where the rule reads the rounds of all prompts."""
    if self.rule.scope != "prompt":
      return super().unsupported
    return {**super().unsupported, "processes": 'Branching(scope="prompt") reads the rounds of all '
            "prompts, of which a process knows its own alone; choices: own, path"}

  def __call__(self, engine: "Trees", request: Request) -> Rollout:
    """The verified trees of one step, replaced where the request allows it."""
    if request.sampling.samples != self.rule.samples:
      raise ValueError(f"sampling.samples={request.sampling.samples}, but the rule fills groups of "
                       f"{self.rule.samples}")
    made = engine.strategy
    if (made.turns, made.action) != (self.turns, self.action):
      raise ValueError(f"{self!r} on an engine with turns={made.turns}, action={made.action}")
    return refilled(lambda examples: engine.grown(
        self, request.params, examples, request.key, request.step, request.sampling),
        self._with_eased(engine.task, request))
