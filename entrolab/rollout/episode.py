"""Episodes of several turns in an environment, and the engine that samples them.

A row is a whole episode. The prompt opens it; then actions, drawn by the policy, and observations,
which stand in the context (`present`) and count in no loss (`mask`), follow one another in T
positions. `phase` numbers the turns: an observation and the action that it leads to. Rows at
different turns share one call of the decoder (`turns`). An episode ends when the environment says
so, at the limit of turns, or where T leaves no room for the next observation and a token of an
action.

A strategy that makes rows of episodes in another way, as `agentic` does, calls `prefill` first,
`turn` before and `receive` after every call of the decoder, and `ended` at the end.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import sharding
from entrolab.batch import Batch
from entrolab.environments import BETWEEN, judge
from entrolab.rollout import turns
from entrolab.rollout.engine import Engine, row_keys
from entrolab.rollout.strategy import Prompted, Rollout, Sampling
from entrolab.tasks.task import Example, within
from entrolab.typing import Array, Bool, Float, Int, Key
from entrolab.verify import codes

# how an episode ends: by its environment, by the limit of turns, or for want of room
DONE, TURNS, TOKENS = "done", "turn limit", "token budget"


@dataclasses.dataclass(frozen=True)
class Form:
  """What all episodes of an engine have in common, beside their environment."""
  turns: int  # actions of an episode at most
  action: int  # tokens of an action at most
  chunk: int  # tokens that a call draws of a row at most; 0: a whole action
  frame: str  # text around an observation, which takes the place of `{}`


@dataclasses.dataclass
class Episode:
  """What the host knows of a row."""
  state: Any  # of the environment
  unread: list[int] = dataclasses.field(default_factory=list)  # observed, not yet in the context
  drawn: list[int] = dataclasses.field(default_factory=list)  # tokens of the action under way
  length: int = 0  # tokens in the context, those of the prompt left out
  actions: list[str] = dataclasses.field(default_factory=list)  # texts of the actions so far
  total: float = 0.0  # rewards so far
  ending: str = ""  # how it ended; empty while it goes on
  cut_actions: int = 0  # actions that no stop token ended
  cut_observations: int = 0  # observations that were too long

  def copied(self) -> "Episode":
    """Another one with the same past, to the observation that this one has yet to read."""
    return dataclasses.replace(self, unread=[], drawn=[], actions=list(self.actions),
                               length=self.length + len(self.unread))


@dataclasses.dataclass
class Work:
  """What a rollout has taken so far."""
  steps: int = 0  # positions that were decoded one after another
  calls: int = 0  # of the decoder
  seconds: float = 0.0  # of the environment


@functools.partial(jax.jit, static_argnames=("samples", "on_rows"))
def _assemble(rows: turns.Rows, prompt: Int[Array, "P L"], prompt_mask: Bool[Array, "P L"],
              keys: Key[Array, " B"], verdict: Int[Array, " B"], finished: Bool[Array, " B"],
              returns: Float[Array, " B"], *, samples: int,
              on_rows: jax.sharding.NamedSharding) -> Batch:
  """The columns of rows whose verdicts are known."""
  spread = lambda x: jnp.repeat(x, samples, 0)
  batch = Batch(tokens=rows.tokens, mask=rows.mask, present=rows.present, prompt=spread(prompt),
                prompt_mask=spread(prompt_mask), row=jax.random.key_data(keys), finished=finished,
                group=spread(jnp.arange(prompt.shape[0], dtype=jnp.int32)), phase=rows.phase,
                old_logp=rows.logp, old_entropy=rows.entropy, sampled_logp=rows.sampled_logp,
                verdict=verdict, extra={"returns": returns})
  return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, on_rows), batch)


_any = jax.jit(jnp.any)


class Episodes(Engine):
  """Samples in an environment, which is the task, in the form that a strategy gives them.

  Raises TypeError for a task that is no environment.
  """

  def __init__(self, *args: Any, form: Form):
    super().__init__(*args)
    self.form, self.environment = form, self.task.as_environment()

  def rollout(self, params: Any, examples: Sequence[Example], key: Key[Array, ""], step: int,
              sampling: Sampling) -> Rollout:
    """P examples -> B = P x samples verified episodes, those of an example one after another."""
    prompted, samples = self.prompted(examples), sampling.samples
    keys = row_keys(key, np.int32(step), prompted.ids, samples)
    rows = self.prefill(params, prompted, sampling, samples)
    episodes = [self.opened(example) for example in examples for _ in range(samples)]
    decoding, work = self.decoding(sampling), Work()
    while self.any_row(acting := [not e.ending for e in episodes]):
      rows, new = turns.advance(
          self.config, params, rows, keys, self.turn(episodes, acting), decoding,
          chunk=self.form.chunk or self.form.action, action=self.form.action)
      self.receive(episodes, acting, new, sampling.max_tokens, work)
    return self.ended(prompted, rows, keys, episodes, work)

  def prefill(self, params: Any, prompted: Prompted, sampling: Sampling, samples: int
              ) -> turns.Rows:
    """The rows of `samples` episodes a prompt, before their first action."""
    pad_id = self.decoding(sampling).pad_id
    return turns.prefill(self.config, params, prompted.tokens, prompted.mask, pad_id,
                       samples=samples, max_tokens=sampling.max_tokens,
                       width=self.environment.max_observation)

  def opened(self, example: Example) -> Episode:
    """An episode before its first action; its opening text is the prompt."""
    return Episode(self.environment.reset(example)[0])

  def any_row(self, flags: Sequence[bool]) -> bool:
    """Whether any is set, of the rows of all processes: all of them call the decoder equally often.
    """
    return bool(_any(self.place(np.asarray(flags))))

  def turn(self, episodes: Sequence[Episode], acting: Sequence[bool]) -> turns.Turn:
    """The input of a call of the decoder: what every row reads, and whether it acts then."""
    shape = len(episodes), self.environment.max_observation
    observation = np.full(shape, self.tokenizer.pad_id, np.int32)
    present = np.zeros(shape, bool)
    for row, episode in enumerate(episodes):
      observation[row, :len(episode.unread)] = episode.unread
      present[row, :len(episode.unread)] = True
    number = np.asarray([len(episode.actions) for episode in episodes], np.int32)
    so_far = np.asarray([len(episode.drawn) for episode in episodes], np.int32)
    return turns.Turn(*self.place((observation, present, np.asarray(acting), number, so_far)))

  def receive(self, episodes: Sequence[Episode], acting: Sequence[bool], new: turns.NewTokens,
              max_tokens: int, work: Work) -> None:
    """Adds the new tokens to the episodes that acted; the environment answers actions that ended.
    """
    tokens, mask, stopped = sharding.local((new.tokens, new.mask, new.stopped))
    work.steps += int(new.steps)
    work.calls += 1
    started = time.perf_counter()
    ended = [episode for row, episode in enumerate(episodes) if acting[row] and self._ends_action(
        episode, tokens[row][mask[row]].tolist(), bool(stopped[row]), max_tokens)]
    self._answer(ended, max_tokens)
    work.seconds += time.perf_counter() - started

  def _ends_action(self, episode: Episode, new: list[int], stopped: bool, max_tokens: int) -> bool:
    """Takes the new tokens of an episode; whether they end its action."""
    episode.length += len(episode.unread) + len(new)
    episode.drawn = episode.drawn + new
    episode.unread = []
    if not stopped and len(episode.drawn) < self.form.action:
      # the call was cut, and the action goes on in the next one; or there is no room for that
      episode.ending = TOKENS if episode.length >= max_tokens else ""
      return False
    episode.cut_actions += not stopped
    return True

  def _answer(self, episodes: Sequence[Episode], max_tokens: int) -> None:
    """The environment's answers to actions that have just ended."""
    texts = [self.tokenizer.decode(episode.drawn) for episode in episodes]
    states = [episode.state for episode in episodes]

    def answers() -> list[tuple[str, float, bool]]:
      steps = self.environment.steps(states, texts)
      states[:] = [step[0] for step in steps]
      return [(observation, float(reward), bool(done)) for _, observation, reward, done in steps]

    # a tool may answer another process otherwise: the one that runs it tells the others what it
    # said, and has the states, which nobody else reads
    told = self.groups.of_lead(answers)
    for episode, text, state, (observation, reward, done) in zip(episodes, texts, states, told,
                                                                 strict=True):
      episode.state = state
      episode.total += reward
      episode.drawn = []
      episode.actions.append(text)
      if done or len(episode.actions) == self.form.turns:
        episode.ending = DONE if done else TURNS  # what it would observe now is read by nobody
        continue
      ids = self.tokenizer.encode(self.form.frame.replace("{}", observation))
      within(ids, self.config.vocab_size, f"the observation {observation[:60]!r}")
      episode.unread = ids[:self.environment.max_observation]
      episode.cut_observations += len(ids) > len(episode.unread)
      if episode.length + len(episode.unread) >= max_tokens:  # no room for a token of an action
        episode.unread, episode.ending = [], TOKENS

  def ended(self, prompted: Prompted, rows: turns.Rows, keys: Key[Array, " B"],
            episodes: Sequence[Episode], work: Work,
            columns: Mapping[str, np.ndarray] | None = None,
            counts: Mapping[str, int] | None = None) -> Rollout:
    """The rollout of episodes that have all ended, those of an example one after another.

    columns: further ones, of the rows of this group; counts: further ones, to be logged.
    """
    samples = len(episodes) // len(prompted.examples)
    texts = [BETWEEN.join(episode.actions) for episode in episodes]
    verdicts = [judge(episode.total, len(episode.actions), episode.ending) for episode in episodes]
    verdict, finished, returns = self.place((
        np.asarray(codes(verdicts), np.int32),
        np.asarray([episode.ending == DONE for episode in episodes]),
        np.asarray([episode.total for episode in episodes], np.float32)))
    batch = _assemble(rows, prompted.tokens, prompted.mask, keys, verdict, finished, returns,
                      samples=samples, on_rows=sharding.rows(self.mesh))
    batch = batch.replace(**self.place(dict(columns or {})),
                          **self.filled(texts, rows.tokens, rows.mask, samples))
    return Rollout(
        batch, [example for example in prompted.examples for _ in range(samples)], texts, verdicts,
        work.steps, sampled=batch.tokens.shape[0], verify_seconds=work.seconds,
        counts={"calls": work.calls,
                **self.groups.summed({**(counts or {}), **counted(episodes)})})


def counted(episodes: Sequence[Episode]) -> dict[str, int]:
  """Of these episodes: actions, tokens in context, episodes that a limit ended, and what
  was cut."""
  endings = [episode.ending for episode in episodes]
  return {"actions": sum(len(episode.actions) for episode in episodes),
          "context_tokens": sum(episode.length for episode in episodes),
          "turn_limit": endings.count(TURNS), "token_budget": endings.count(TOKENS),
          "cut_actions": sum(episode.cut_actions for episode in episodes),
          "cut_observations": sum(episode.cut_observations for episode in episodes)}
