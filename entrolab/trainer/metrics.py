"""What is measured of a rollout and of its updates, as pure functions of columns [B, T].

Names follow TRL and verl where they measure the same: `response_length/mean`, `train/ppo_kl`,
`sampling/logp_difference/*`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from entrolab.analysis import entropy_change
from entrolab.batch import Batch
from entrolab.objective import Objective
from entrolab.ranks import all_equal, known_mean, masked_mean
from entrolab.typing import Array, Bool, Float, real


@partial(jax.jit, static_argnames=("samples", "top_p"))
def of_rollout(before: dict[str, Array], batch: Batch, sampler_logp: Float[Array, "B T"] | None, *,
               samples: int, top_p: float) -> dict[str, Array]:
  """Entropies, rewards, groups and lengths of a rollout, before its updates.

  before: statistics of the policy that is to be updated, at least logp and entropy.
  sampler_logp: log-probs that the sampler reported; None where the trainer computed none to compare
    them with.
  samples: G. Rows of unknown verdict are in no mean of rewards, nor in the accuracy, which are NaN
  where nothing is known; their share is reward/unknown.
  top_p: of the nucleus, where `before` has its entropy.
  """
  mask = batch.mask
  rewards = batch.rewards.reshape(-1, samples)
  share = lambda flags: flags.astype(jnp.float32).mean()
  shown = {
      "entropy/exact": masked_mean(before["entropy"], mask),
      "entropy/sequence": masked_mean(before["entropy"], mask, axis=1).mean(),
      "entropy/surprisal": -masked_mean(before["logp"], mask),
      "reward/mean": _mean(batch.rewards),
      "reward/std": _deviation(batch.rewards),
      "reward/accuracy": _mean(jnp.where(batch.verdict < 0, jnp.nan, real(batch.verdict == 1))),
      "reward/unknown": share(batch.verdict == -1),
      "rollout/groups_with_signal": share(~all_equal(rewards)),
      "rollout/finished": share(batch.finished),
      "rollout/tokens": mask.sum(),
      "response_length/mean": mask.sum(1).astype(jnp.float32).mean()}
  if "nucleus_entropy" in before:
    shown[f"entropy/truncated@{top_p:g}"] = masked_mean(before["nucleus_entropy"], mask)
  if sampler_logp is not None:
    shown |= logp_difference(before["logp"], sampler_logp, mask)
  return shown


def _mean(x: Float[Array, " B"]) -> Float[Array, ""]:
  """Of the entries that are known; NaN where none is."""
  return jnp.where(jnp.isnan(x).all(), jnp.nan, known_mean(x))


def _deviation(x: Float[Array, " B"]) -> Float[Array, ""]:
  """Of the entries that are known, over their number."""
  part = jnp.sqrt(_mean(jnp.square(x - _mean(x))))
  return jnp.where(jnp.isnan(x).any(), part, x.std())


def logp_difference(logp: Float[Array, "B T"], sampler_logp: Float[Array, "B T"],
                    mask: Bool[Array, "B T"]) -> dict[str, Array]:
  """|log-prob of the trainer - log-prob of the sampler| at the same parameters, nats; and how many
  tokens have one at all, in the last bit already."""
  difference = jnp.where(mask, jnp.abs(logp - sampler_logp), 0.0)
  return {"sampling/logp_difference/count": (difference > 0.0).sum(),
          "sampling/logp_difference/max": difference.max(),
          "sampling/logp_difference/mean": masked_mean(difference, mask)}


@partial(jax.jit, static_argnames="objective")
def of_updates(objective: Objective, before: dict[str, Array], after: dict[str, Array],
               batch: Batch) -> dict[str, Array]:
  """What the updates of a rollout did to the policy, on the states of that rollout.

  train/ppo_kl: mean of old less new log-probs, nats a token. entropy/*: measured change of entropy
  and the change that one-step theory predicts, `entropy_change.account`.
  """
  adv = batch.adv
  if adv is None:  # the current policy alone shapes it
    adv = objective.shaped({**batch.columns(), **before})["adv"]
  mask = batch.counted
  return {**entropy_change.account(before, after, adv, mask),
          "train/ppo_kl": masked_mean(before["logp"] - after["logp"], mask)}
