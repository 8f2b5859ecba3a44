"""AEPO-ARBITRARY: learn from right answers drawn at another temperature, to steer the entropy.

Arbitrary Entropy Policy Optimization, Wang et al. (arXiv:2510.08141, 2025). Official code:
597358816/AEPO, verl/trainer/ray_trainer.py and core_algos.py.
Acts on: weights, penalty, advantage, controller.  State: temperature, last entropy.
Differs from the official code: (1) the paper's explicit term is the default, the repository
replaces on-policy rows instead (`unit_advantage`, `replaced_rows`), where the strength is the share
of rows; (2) tempered rows stay in the batch, with weight 0 where they are not used, so that shapes
do not depend on their number; none at all gives plain GRPO, theirs stops; (3) which rows are
replaced comes from the noise column, theirs are the first; (4) the controller reads the exact
entropy, theirs the sampled -log pi of the mixed batch.

The rollout appends groups drawn at `temperature` (a controlled value) and marks their rows in
`tempered`. Their log-probabilities are those at temperature 1: the density they were drawn from
does not appear. Not to be confused with Agentic Entropy-balanced Policy Optimization.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from entrolab import aggregate, ranks
from entrolab.arguments import checked
from entrolab.control import Controller, State
from entrolab.typing import (
  Advantage,
  Array,
  Bool,
  Float,
  Int,
  Penalty,
  Scale,
  Weight,
  real,
)


@checked
def on_policy(tempered: Bool[Array, " B"], mask: Bool[Array, "B T"]) -> Weight:
  """1 on rows drawn at temperature 1: the surrogate leaves the tempered ones to the penalty.

  With `aggregate.selected_mean` the denominator counts these rows alone.
  """
  return real(mask & ~tempered[:, None])


@checked
def right_answers(logp: Float[Array, "B T"], verdict: Int[Array, " B"]) -> Penalty:
  """-R log pi, R = 1 for a right answer: REINFORCE without importance weight.

  In expectation the logits move along pi^T - pi: towards more entropy for T > 1. beta of the
  penalty is the paper's alpha; n / (P G), the share of rows in use, mimics the code.
  """
  return jnp.where((verdict == 1)[:, None], -logp, 0.0)


@checked
def tempered_mean(tempered: Bool[Array, " B"], mask: Bool[Array, "B T"]) -> Scale:
  """Mean over all tokens of tempered rows, right or wrong: the scale of `right_answers`."""
  return aggregate.token_mean(mask & tempered[:, None])


@checked
def unit_advantage(adv: Float[Array, "B T"], tempered: Bool[Array, " B"], *,
                   threshold: float = 0.05) -> Advantage:
  """On tempered rows 1 where A > threshold, else 0; A on the others. Stands last in the chain.

  A is GRPO's: a row of an all-right group has 0 and is not used, nor is a wrong row.
  """
  return jnp.where(tempered[:, None], real(adv > threshold).astype(adv.dtype), adv)


@checked
def replaced_rows(adv: Float[Array, "B T"], tempered: Bool[Array, " B"],
                  temperature: Float[Array, ""], mask: Bool[Array, "B T"],
                  noise: Float[Array, "B T"], *, limit: int = 60) -> Weight:
  """1 on n usable tempered rows and on all on-policy rows but n; 0 elsewhere.

  usable: A > 0 after `unit_advantage`. n = min(limit, usable), half of it (rounded down) at a
  temperature under 1. Rows are taken in the order of their noise.
  """
  first = mask & (jnp.cumsum(mask, axis=1) == 1)
  order = jnp.where(first, noise, 0.0).sum(1, keepdims=True)
  drawn = tempered[:, None]
  usable = drawn & (mask & (adv > 0.0)).any(1, keepdims=True)
  n = jnp.minimum(usable.sum(dtype=jnp.int32), limit)
  n = jnp.where(temperature < 1.0, n // 2, n)
  level = jnp.zeros_like(order)
  taken = ranks.top(level, usable, order, n)
  # a row without a token, such as one of unknown verdict, takes the place of nobody
  left_out = ranks.top(level, ~drawn & mask.any(1, keepdims=True), order, n)
  return real(mask & (taken | (~drawn & ~left_out)))


@checked
def dcpo(adv: Float[Array, "B T"], verdict: Int[Array, " B"], logp: Float[Array, "B T"],
         tempered_logp: Float[Array, "B T"], mask: Bool[Array, "B T"],
         temperature: Float[Array, ""], entropy_prev: Float[Array, ""], *, target: float = 0.5,
         at: float = 1.2, most: float = 0.1) -> Advantage:
  """(1 - w) A + w R pi^T / pi, w = g / (g + success rate), g = min(|target - H|, most).

  The repository's form without a second sampling pass. pi^T: `vocab.Spec(tempered=at)`, one
  temperature a run: it acts while the controlled temperature is on the same side of 1, and is A
  otherwise. success rate: right rows among the non-empty ones of the optimiser batch. No gradient.
  """
  right = (verdict == 1)[:, None]
  rate = ranks.masked_mean(real(right), mask.any(1, keepdims=True))
  gap = jnp.minimum(jnp.abs(target - entropy_prev), most).astype(adv.dtype)
  whole = gap + rate.astype(adv.dtype)
  share = gap / jnp.where(whole > 0.0, whole, 1.0)  # at the target without a right row: 0
  share = jnp.where((temperature > 1.0) == (at > 1.0), share, 0.0)
  pull = jnp.where(right, jnp.exp(tempered_logp - logp), 0.0)
  return (1.0 - share) * adv + share * pull


@dataclasses.dataclass(frozen=True)
class Switch(Controller):
  """`temperature`: hot while the last entropy is at or under the target, cold above it.

  `entropy_prev` starts at 0, so that the first rollout is hot.
  """
  target: float = 0.5  # nats a token
  hot: float = 1.2  # a temperature above 1, which raises the entropy
  cold: float = 0.8  # a temperature below 1, which lowers it
  metric: str = "entropy/exact"  # what is compared with the target

  def init(self) -> State:
    return {"temperature": jnp.asarray(self.hot, float), "entropy_prev": jnp.zeros((), float)}

  def update(self, state: State, metrics: Mapping[str, Array]) -> State:
    now = metrics[self.metric].astype(float)
    return {"temperature": jnp.where(now <= self.target, self.hot, self.cold).astype(float),
            "entropy_prev": now}
