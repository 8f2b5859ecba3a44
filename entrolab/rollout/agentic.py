"""Branching of episodes where tools are used: AEPO (agentic) and ARPO.

After the answer of a tool some rollouts are copied, and copy and source go on with other noise;
which ones is decided by `methods.aepo_agentic.Branching` out of the entropies of their segments,
which are actions of episodes here. A copy takes over its source's cache, so that no token of a
shared prefix, the tool's answer included, goes through the model twice.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import keys as key_scheme
from entrolab import sharding
from entrolab.methods import aepo_agentic
from entrolab.models import transformer
from entrolab.rollout import compilations, turns
from entrolab.rollout.decode import Decoding
from entrolab.rollout.engine import refilled
from entrolab.rollout.episode import TURNS, Episode, Episodes, Work
from entrolab.rollout.multiturn import MultiTurn
from entrolab.rollout.strategy import Feature, Prompted, Request, Rollout, Sampling
from entrolab.rollout.trees import Segments, grow
from entrolab.tasks.task import Example
from entrolab.typing import Array, Float, Int, Key

TOP = 10  # tokens of a distribution that the entropy of a segment counts
FIRST = 20  # positions of a segment that its entropy counts
START, COPY = 0, 1  # kinds of rows
keys_of_rows = jax.jit(key_scheme.keys_of_rows, static_argnames="samples")


def token_entropy(logits: Float[Array, "B V"], temperature: Array) -> Float[Array, " B"]:
  """What one position adds to the entropy of its segment: over the ten likeliest tokens, or over
  all where there are fewer, of the distribution at this temperature; at 0, of that at 1."""
  divisor = jnp.where(temperature > 0.0, temperature, 1.0).astype(jnp.float32)
  logp = jax.nn.log_softmax(logits.astype(jnp.float32) / divisor)
  likeliest = jax.lax.top_k(logp, min(TOP, logits.shape[1]))[0]
  lengths = jnp.ones(logits.shape[0], jnp.int32)  # a segment of one token, of which this is all
  return aepo_agentic.segment_entropy(likeliest[:, None], lengths, vocab=logits.shape[1], first=1)


def _pick(rows: turns.Rows, source: Int[Array, "P k"]) -> turns.Rows:
  """k rows of every group, by their places in it."""
  def take(x: Array) -> Array:
    groups = x.reshape(source.shape[0], -1, *x.shape[1:])
    return jax.vmap(lambda group, at: group[at])(groups, source).reshape(-1, *x.shape[1:])

  # keys and values have their layers before their rows
  cache = transformer.Cache(jax.vmap(take)(rows.cache.k), jax.vmap(take)(rows.cache.v),
                            take(rows.cache.valid))
  rest = jax.tree.map(take, dataclasses.replace(rows, cache=None))
  return dataclasses.replace(rest, cache=cache)


@functools.partial(jax.jit, static_argnames="count")
def _first(rows: turns.Rows, prompts: Int[Array, " P"], *, count: int) -> turns.Rows:
  """The first row of every group, `count` times."""
  return _pick(rows, jnp.zeros((prompts.shape[0], count), jnp.int32))


@compilations.counted
@functools.partial(jax.jit, static_argnames=("config", "action", "trials"), donate_argnames="rows")
def advance_trees(config: transformer.Config, params: Any, rows: turns.Rows, keys: Key[Array, " B"],
                  turn: turns.Turn, source: Int[Array, "P G"], decoding: Decoding, *, action: int,
                  trials: int
                  ) -> tuple[turns.Rows, turns.NewTokens, Float[Array, " B"],
                             Float[Array, "B trials"]]:
  """`turns.advance` by a whole action, with copies made between what is observed and what is drawn.

  source: the row of its group that each row is a copy of, mostly itself. Gives, after the rows and
  the new tokens, the entropies of the actions as segments, and the random numbers that decide on
  branches, by key and position.
  """
  count, width = turn.observation.shape
  rows = turns.append(config, params, rows, turn.observation, turn.present, turn.number, width)
  # a copy is of the row after the answer, so that source and copies read it together
  rows = _pick(rows, source)

  def entropy(step: Array, logits: Array, going: Array) -> Array:
    counts = lambda: jnp.where(going, token_entropy(logits, decoding.temperature), 0.0)
    return jax.lax.cond(step < FIRST, counts, lambda: jnp.zeros(count, jnp.float32))

  rows, new, entropies = turns.act(config, params, rows, keys, turn, decoding, entropy,
                                   chunk=action, action=action)
  return rows, new, entropies, key_scheme.trial_uniform(keys, rows.at, trials)


class TreeEpisodes:
  """The rows of trees, `samples` a prompt, as episodes on the mesh; `trees.TreeRows`.

  keys: (sample [B], branch [B], samples=) -> keys [B]; advance: `advance_trees` of rows, keys, turn
  and source; branch: the branch id of rows that start.
  """

  def __init__(self, engine: Episodes, prompted: Prompted, rows: turns.Rows, samples: int,
               max_tokens: int, work: Work, *, keys: Callable[..., Key[Array, " B"]],
               advance: Callable[..., Any], branch: int = 0):
    self.engine, self.prompted, self.rows = engine, prompted, rows
    self.samples, self.max_tokens, self.work = samples, max_tokens, work
    self._keys, self._advance = keys, advance
    count = len(prompted.examples) * samples
    # an entry for each row of this process's group
    self.episodes = [Episode(None, ending="not started") for _ in range(count)]
    self.sample = np.zeros(count, np.int32)  # in the key: which start of its prompt it goes back to
    self.branch = np.full(count, branch, np.int32)  # in the key: which copy of that start it is
    self.kind = np.full(count, START, np.int32)
    self.parent = self._places()  # place in the group of the row that it was copied from
    self.cut = np.zeros(count, np.int32)  # tokens that it has from there
    # place in the group of the row whose cache it takes over in the next call: for most rows, of
    # the row itself
    self.source = self._places()
    self.copies: dict[tuple[int, int], int] = {}  # (prompt, sample) -> copies of that start so far
    self.drawn = self.observed = 0  # tokens so far

  def _places(self) -> np.ndarray:
    """The place of each row in its group."""
    return np.tile(np.arange(self.samples, dtype=np.int32), len(self.prompted.examples))

  @property
  def keys(self) -> Key[Array, " B"]:
    """fold(run, step, prompt, sample, branch)."""
    return self._keys(*self.engine.place((self.sample, self.branch)), samples=self.samples)

  def any_active(self, active: bool) -> bool:
    """Whether any process has active rows, as this one does or not."""
    return self.engine.any_row([active] * len(self.episodes))

  def add(self, new: Sequence[tuple[int, int | None]]) -> None:
    """Starts and copies; the caches of copies are filled when they first act."""
    for row, source in new:
      prompt = row // self.samples
      if source is None:
        self.episodes[row] = self.engine.opened(self.prompted.examples[prompt])
        self.sample[row] = sum(p == prompt for p, _ in self.copies)
        self.copies[prompt, int(self.sample[row])] = 0
        continue
      family = prompt, int(self.sample[source])
      self.copies[family] += 1
      self.sample[row], self.branch[row] = family[1], self.copies[family]
      self.source[row] = self.parent[row] = source % self.samples
      self.episodes[row] = self.episodes[source].copied()
      self.kind[row], self.cut[row] = COPY, self.episodes[row].length

  def draw(self, rows: Sequence[int]) -> Segments:
    """The next action of each of these rows, and the environment's answers."""
    chosen = set(rows)
    acting = [row in chosen for row in range(len(self.episodes))]
    turn = self.engine.turn(self.episodes, acting)
    self.observed += sum(len(episode.unread) for episode in self.episodes)
    source = self.engine.place(self.source.reshape(-1, self.samples))
    self.rows, new, entropies, uniforms = self._advance(self.rows, self.keys, turn, source)
    self.source = self._places()  # the copies have been made
    mask, entropy, uniform = sharding.local((new.mask, entropies, uniforms))
    self.drawn += int(mask.sum())
    self.engine.receive(self.episodes, acting, new, self.max_tokens, self.work)
    uniform_of = {row: iter(uniform[row].tolist()) for row in rows}
    # at the limit of turns it is the rule that ends a rollout
    return Segments(entropy=[float(entropy[row]) for row in rows],
                    calls_tool=[self.episodes[row].ending in ("", TURNS) for row in rows],
                    uniform=lambda row: next(uniform_of[row]))


class Trees(Episodes):
  """Episodes, and trees of them; evaluation is on independent episodes."""

  def grown(self, tree: "Agentic", params: Any, examples: Sequence[Example], key: Key[Array, ""],
            step: int, sampling: Sampling) -> Rollout:
    """P examples -> B = P x rule.samples verified episodes, a tree or several to an example."""
    prompted, samples, work = self.prompted(examples), tree.rule.samples, Work()
    rows = self.prefill(params, prompted, sampling, samples)
    advance = functools.partial(advance_trees, self.config, params, action=tree.action,
                                decoding=self.decoding(sampling))
    made = functools.partial(
        TreeEpisodes, self, prompted, max_tokens=sampling.max_tokens, work=work,
        keys=functools.partial(keys_of_rows, key, np.int32(step), prompted.ids))
    initial, probe = [tree.initial] * len(examples), None
    if not tree.initial:
      # copies of the rows, as a call donates those that it is given
      probe = made(rows=_first(rows, prompted.ids, count=2), samples=2, branch=key_scheme.PROBE,
                   advance=functools.partial(advance, trials=0))
      initial = budgets(probe, samples, tree.sharpness)
    trees = made(rows=rows, samples=samples,
                 advance=functools.partial(advance, trials=tree.rule.beam - 1))
    grow(tree.rule, initial, trees)
    counts = {"initial": int(sum(initial)), **token_counts(trees, probe)}
    return self.ended(prompted, trees.rows, trees.keys, trees.episodes, work, counts=counts,
                      columns={"row_kind": trees.kind, "parent": trees.parent, "branch": trees.cut})


def token_counts(trees: TreeEpisodes, probe: TreeEpisodes | None) -> dict[str, int]:
  """How far the rows of this group branched, and what their tokens cost: generated, of which
  probes; given to the model; taken over with a copied cache instead."""
  prompt_tokens = sharding.local(trees.prompted.mask).sum(1)
  copies = np.flatnonzero(trees.kind == COPY)
  prompt_of = copies // trees.samples
  observed, drawn = trees.observed, trees.drawn
  if probe is not None:
    observed += probe.observed
    drawn += probe.drawn
  return {
      "branches": len(copies),
      "sources": len(set(zip(prompt_of.tolist(), trees.parent[copies].tolist(), strict=True))),
      "generated_tokens": drawn,
      "probe_tokens": 0 if probe is None else probe.drawn,
      "prefill_tokens": int(prompt_tokens.sum()) + observed,
      "reused_tokens": int((trees.cut[copies] + prompt_tokens[prompt_of]).sum())}


def budgets(probe: TreeEpisodes, samples: int, sharpness: float) -> list[int]:
  """m of every prompt, by two rows that are thrown away: one segment, and a whole episode.

  Officially the first of them has 50 tokens; an entropy reads 20 of a segment.
  """
  rows = list(range(len(probe.episodes)))
  probe.add([(row, None) for row in rows])
  entropies: list[list[float]] = [[] for _ in rows]  # of the segments of each row
  active = rows
  while probe.any_active(bool(active)):
    for row, entropy in zip(active, probe.draw(active).entropy, strict=True):
      entropies[row].append(entropy)
    active = [row for row in active if row % 2 and not probe.episodes[row].ending]
  root = np.asarray([of_row[0] for of_row in entropies[::2]])
  calls = np.asarray([np.mean(of_row) for of_row in entropies[1::2]])
  return aepo_agentic.budget(root, calls, samples=samples, sharpness=sharpness).tolist()


@dataclasses.dataclass(frozen=True)
class Agentic(MultiTurn):
  """Trees of episodes, rule.samples rows an example, all of them filled.

  A row is a whole episode, what it shares with its source included. Columns [B]:

    row_kind  0 start, 1 copy
    parent    place in the group of the row that it was copied from; of a start, of the row itself
    branch    tokens that it has from there

  A row's key folds prompt, sample (which start of the prompt it goes back to) and branch (which
  copy of that start it is). Random numbers that decide on branches fold its position into that key.
  So a branch is the same whatever else is in the batch, unless the rule's scope is "prompt".

  An action ends with the end token that the policy draws: none is appended at the limit of calls,
  which are one fewer than turns. An action that is too long is cut and answered; what an empty call
  does is up to the environment. Raises ValueError for fields that do not fit together.
  """
  columns = (*MultiTurn.columns, "row_kind", "parent", "branch")
  turns: int = 4  # actions of an episode at most, rule.calls + 1
  # which rollouts are copied, and how many rows an example has
  rule: aepo_agentic.Branching = aepo_agentic.Branching(scope="own")
  # m, the rollouts of an example that start at once, while the others are branches or start when
  # nothing is left to branch; 0: as many as `aepo_agentic.budget` says
  initial: int = 0
  sharpness: float = 0.5  # of that budget

  def __post_init__(self) -> None:
    if self.turns != self.rule.calls + 1 or self.chunk or not (
        0 <= self.initial <= self.rule.samples) or self.rule.beam < 1:
      raise ValueError(f"{self!r}: needs turns = rule.calls + 1, chunk = 0, initial from 0 to "
                       f"rule.samples = {self.rule.samples}, rule.beam >= 1")

  @property
  def samples(self) -> int:
    """Rows of a group."""
    return self.rule.samples

  @property
  def engine(self) -> Callable[..., Trees]:
    """What samples and verifies, in this form."""
    return functools.partial(Trees, form=self.form)

  @property
  def unsupported(self) -> Mapping[Feature, str]:
    """Also several processes, where the rule reads the rounds of all prompts."""
    if self.rule.scope != "prompt":
      return super().unsupported
    return {**super().unsupported, "processes": 'Branching(scope="prompt") reads the rounds of all '
            "prompts, of which a process knows only its share; choices: own, path"}

  def __call__(self, engine: Trees, request: Request) -> Rollout:
    """The verified trees of one step, replaced where the request allows it."""
    if request.sampling.samples != self.rule.samples:
      raise ValueError(f"sampling.samples={request.sampling.samples}, but the rule fills groups of "
                       f"{self.rule.samples}")
    made = engine.form
    if (made.turns, made.action) != (self.turns, self.action):
      raise ValueError(f"{self!r} on an engine with turns={made.turns}, action={made.action}")
    grown = lambda examples: engine.grown(self, request.params, examples, request.key, request.step,
                                          request.sampling)
    return refilled(grown, self.with_eased(engine.task, request))
