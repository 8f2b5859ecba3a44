"""Episodes of several turns in an environment: a row is a whole episode.

The prompt opens the episode; then actions, drawn by the policy, and observations, which stand in
the context (`present`) and count in no loss (`mask`), follow one another in T positions. `phase`
numbers the turns: an observation and the action that it leads to. Rows at different turns share
one call of the sampler (`turns`). An episode ends when the environment says so, at the limit of
turns, or where T leaves no room for the next observation and a token of an action.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import sharding
from entrolab.batch import Batch
from entrolab.environments import BETWEEN, judge
from entrolab.rollout import turns
from entrolab.rollout.engine import Engine, row_keys
from entrolab.rollout.strategy import Feature, Request, Rollout, Sampling, Strategy
from entrolab.tasks.task import Example
from entrolab.verify import codes

DONE, TURNS, TOKENS = "done", "turn limit", "token budget"  # how an episode ends


@dataclasses.dataclass
class Episode:
  """What the host knows of a row: the environment's state; what is to be read next; the action that
  is being said; tokens in all; actions and rewards so far; ending: empty while it goes on."""
  state: Any
  reads: list[int] = dataclasses.field(default_factory=list)
  said: list[int] = dataclasses.field(default_factory=list)
  length: int = 0
  actions: list[str] = dataclasses.field(default_factory=list)
  total: float = 0.0
  ending: str = ""
  cut_actions: int = 0
  cut_observations: int = 0


@functools.partial(jax.jit, static_argnames=("samples", "on_rows"))
def _assemble(rows, prompt, mask, keys, verdict, finished, returns, *, samples, on_rows):
  spread = lambda x: jnp.repeat(x, samples, 0)
  batch = Batch(tokens=rows.tokens, mask=rows.mask, present=rows.present, prompt=spread(prompt),
                prompt_mask=spread(mask), row=jax.random.key_data(keys), finished=finished,
                group=spread(jnp.arange(prompt.shape[0], dtype=jnp.int32)), phase=rows.phase,
                old_logp=rows.logp, old_entropy=rows.entropy, sampled_logp=rows.sampled_logp,
                verdict=verdict, extra={"returns": returns})
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, on_rows), batch)


_any = jax.jit(jnp.any)  # over the rows of all processes


class Episodes(Engine):
  """Sampling in an environment, which is the task, within the limits of a strategy.

  Raises TypeError for a task that is no environment.
  """

  def __init__(self, *args: Any, strategy: "MultiTurn"):
    super().__init__(*args)
    self.strategy, self.environment = strategy, self.task.as_environment()

  def rollout(self, params: Any, examples: Sequence[Example], key: jax.Array, step: int,
              sampling: Sampling) -> Rollout:
    """P examples -> B = P x samples verified episodes, those of an example one after another."""
    samples, max_tokens = sampling.samples, sampling.max_tokens
    prompted = self.prompted(examples)
    keys = row_keys(key, np.int32(step), prompted.ids, samples)
    decoding = self.decoding(sampling)
    rows = turns.begin(self.config, params, prompted.tokens, prompted.mask, decoding.pad_id,
                       samples=samples, max_tokens=max_tokens,
                       width=self.environment.max_observation)
    everyone = [example for example in examples for _ in range(samples)]
    episodes = [Episode(self.environment.reset(example)[0]) for example in everyone]
    most, steps, calls, seconds = self.strategy.action, 0, 0, 0.0
    while bool(_any(self.place(act := np.asarray([not e.ending for e in episodes])))):
      rows, said = turns.advance(
          self.config, params, rows, keys, self._waiting(episodes, act), decoding,
          chunk=self.strategy.chunk or most, action=most)
      tokens, on, stopped = sharding.local((said.tokens, said.mask, said.stopped))
      steps, calls, begin = steps + int(said.steps), calls + 1, time.perf_counter()
      self._act([e for row, e in enumerate(episodes) if act[row] and self._hear(
          e, tokens[row][on[row]].tolist(), bool(stopped[row]), max_tokens)], max_tokens)
      seconds += time.perf_counter() - begin
    texts = [BETWEEN.join(e.actions) for e in episodes]
    verdicts = [judge(e.total, len(e.actions), e.ending) for e in episodes]
    known = self.place((np.asarray(codes(verdicts), np.int32),
                        np.asarray([e.ending == DONE for e in episodes]),
                        np.asarray([e.total for e in episodes], np.float32)))
    batch = _assemble(rows, prompted.tokens, prompted.mask, keys, *known, samples=samples,
                      on_rows=sharding.rows(self.mesh))
    batch = batch.replace(**self.filled(texts, rows.tokens, rows.mask, samples))
    return Rollout(batch, everyone, texts, verdicts, steps, sampled=batch.tokens.shape[0],
                   verify_seconds=seconds, counts={"calls": calls, **_counts(episodes)})

  def _waiting(self, episodes: Sequence[Episode], act: np.ndarray) -> turns.Turn:
    """What `turns.advance` is told of every row."""
    shape = len(episodes), self.environment.max_observation
    seen, on = np.full(shape, self.tokenizer.pad_id, np.int32), np.zeros(shape, bool)
    for row, e in enumerate(episodes):
      seen[row, :len(e.reads)], on[row, :len(e.reads)] = e.reads, True
    return turns.Turn(*self.place((
        seen, on, act, np.asarray([len(e.actions) for e in episodes], np.int32),
        np.asarray([len(e.said) for e in episodes], np.int32))))

  def _hear(self, e: Episode, new: list[int], stopped: bool, max_tokens: int) -> bool:
    """The row's new tokens; whether they end an action."""
    e.length += len(e.reads) + len(new)
    e.said, e.reads = e.said + new, []
    if not stopped and len(e.said) < self.strategy.action:
      e.ending = TOKENS if e.length >= max_tokens else ""
      return False
    e.cut_actions += not stopped
    return True

  def _act(self, episodes: Sequence[Episode], max_tokens: int) -> None:
    """Actions that have ended, and the environment's answers to them."""
    texts = [self.tokenizer.decode(e.said) for e in episodes]
    steps = self.environment.steps([e.state for e in episodes], texts)
    for e, text, (state, observation, reward, done) in zip(episodes, texts, steps, strict=True):
      e.state, e.total, e.said = state, e.total + reward, []
      e.actions.append(text)
      if done or len(e.actions) == self.strategy.turns:
        e.ending = DONE if done else TURNS
        continue
      ids = self.tokenizer.encode(self.strategy.frame.replace("{}", observation))
      e.reads = ids[:self.environment.max_observation]
      e.cut_observations += len(ids) > len(e.reads)
      if e.length + len(e.reads) >= max_tokens:
        e.reads, e.ending = [], TOKENS


def _counts(episodes: Sequence[Episode]) -> dict[str, int]:
  """Of the rows of this process: actions, tokens in context, episodes that a limit ended, and what
  was cut."""
  ended = lambda how: sum(e.ending == how for e in episodes)
  return {"actions": sum(len(e.actions) for e in episodes),
          "context_tokens": sum(e.length for e in episodes),
          "turn_limit": ended(TURNS), "token_budget": ended(TOKENS),
          "cut_actions": sum(e.cut_actions for e in episodes),
          "cut_observations": sum(e.cut_observations for e in episodes)}


@dataclasses.dataclass(frozen=True)
class MultiTurn(Strategy):
  """Episodes: at most `turns` actions of at most `action` tokens each; sampling.max_tokens is the
  token budget of an episode, observations included.

  chunk: tokens that a call of the sampler draws of a row at most, 0 for a whole action; an action
  that it cuts goes on in the next call. frame: what an observation stands in, at `{}`, such as the
  turn of a chat template. level: the controlled value by which training examples are made easier
  (`task.eased`); evaluation is on the examples as they are.
  """
  columns = ("phase", "returns")
  turns: int = 30
  action: int = 8
  chunk: int = 0
  frame: str = "{}"
  level: str = ""

  @property
  def engine(self) -> Callable[..., Engine]:
    """What samples and verifies, with these limits."""
    return functools.partial(Episodes, strategy=self)

  @property
  def unsupported(self) -> Mapping[Feature, str]:
    """Also slots."""
    return {**super().unsupported, "slots": "an episode keeps its slot while its environment "
                                            "answers; set sampling.slots=0"}

  def __call__(self, engine: Engine, request: Request) -> Rollout:
    """The verified episodes of one step, eased where a level is controlled."""
    return engine.answer(self._with_eased(engine.task, request))

  def _with_eased(self, task: Any, request: Request) -> Request:
    """The request, with prompts of the level that is controlled."""
    return dataclasses.replace(request, next_prompts=lambda: self._eased(
        task, request.next_prompts(), request.control))

  def _eased(self, task: Any, examples: Sequence[Example], control: Mapping[str, Any]
             ) -> Sequence[Example]:
    if not self.level:
      return examples
    if self.level not in control:
      raise TypeError(f"MultiTurn(level={self.level!r}), which no controller holds; have: "
                      f"{', '.join(control) or 'none'}")
    return [task.eased(example, int(control[self.level])) for example in examples]
