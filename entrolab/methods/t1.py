"""T1: RLOO on many hot samples, the KL to a moving anchor as a centred reward, broken outputs -1.

Advancing Language Model Reasoning through Reinforcement Learning and Inference Scaling
(arXiv:2501.11651, 2025). Official code: none (THUDM/T1 holds no trainer).
Acts on: reward, penalty, weights.  State: the reference, an average of the parameters
(`experiment.Reference(rule="ema")`, moved after every optimiser step).
Differs from the paper, whose equations were read in summaries only: (1) the KL is the sequence sum
of k1 and is centred over the rollout, since a leave-one-out baseline cancels any centring;
(2) what counts as broken is ours: no end token, a 20-gram ten times, a window of improbable
tokens; (3) the decay of 0.99 and the bonus of 1e-3 are starting points. The entropy bonus is
`bonus.negative_entropy`, the advantage `rloo.leave_one_out(alone=0.0)`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.methods import kl
from entrolab.ranks import grouped, known_mean, replicated
from entrolab.typing import Array, Bool, Float, Int, Penalty, Reward, Weight

Estimator = Callable[[Array, Array], Array]


@checked
def repeats(tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], *, n: int = 20,
            times: int = 10) -> Bool[Array, " B"]:
  """Whether some n-gram of valid tokens stands at `times` or more places of the row, exactly.

  Overlaps count. Raises ValueError unless n >= 1 and times >= 2.
  """
  if n < 1 or times < 2:
    raise ValueError(f"repeats(n={n}, times={times}): n at least 1, times at least 2")
  gram, valid, width = replicated(tokens).astype(jnp.int32), replicated(mask), 1
  if tokens.shape[1] < n + times - 1:
    return jnp.zeros_like(valid[:, 0])
  while width < n:  # the name of a window out of the names of two shorter ones
    step = min(width, n - width)
    gram = _names(gram[:, :-step], gram[:, step:])
    valid, width = valid[:, :-step] & valid[:, step:], width + step
  lone = -1 - jnp.arange(gram.shape[1], dtype=jnp.int32)
  ordered = jnp.sort(jnp.where(valid, gram, lone), axis=1)
  return (ordered[:, times - 1:] == ordered[:, :1 - times]).any(1)


@checked
def garbled(old_logp: Float[Array, "B T"], mask: Bool[Array, "B T"], *, width: int = 32,
            bound: float = -6.0) -> Bool[Array, " B"]:
  """Whether some `width` tokens in a row have a mean log pi_old under `bound`, nats a token."""
  if old_logp.shape[1] < width:
    return jnp.zeros(old_logp.shape[:1], bool)
  inside = lambda x: jax.lax.reduce_window(x, jnp.zeros((), x.dtype), jax.lax.add, (1, width),
                                           (1, 1), "valid")
  whole = inside(replicated(mask).astype(jnp.int32)) == width
  total = inside(jnp.where(replicated(mask), replicated(old_logp), 0.0))
  return (whole & (total < bound * width)).any(1)


@checked
def broken_output(rewards: Float[Array, " B"], finished: Bool[Array, " B"],
                  tokens: Int[Array, "B T"], old_logp: Float[Array, "B T"],
                  mask: Bool[Array, "B T"], *, penalty: float = -1.0, n: int = 20,
                  times: int = 10, width: int = 32, bound: float = -6.0) -> Reward:
  """`penalty` instead of R where a response has no end, repeats itself or is garbled."""
  bad = repeats(tokens, mask, n=n, times=times) | garbled(old_logp, mask, width=width, bound=bound)
  return jnp.where(~replicated(finished) | bad, penalty, replicated(rewards))


@checked
def sequence_kl(old_logp: Float[Array, "B T"], ref_logp: Float[Array, "B T"],
                mask: Bool[Array, "B T"], known: Bool[Array, " B"] | None = None, *,
                estimator: Estimator = kl.k1, over: int | None = 0) -> Float[Array, " B"]:
  """sum_t log pi_old - log pi_ref, nats a response, less its mean over `over` rows.

  known: rows that are in the mean, None all; NaN for the others. estimator: kl.k1 or kl.k3; over: 0
  the whole rollout, G a group, None no centring.
  """
  total = jnp.where(mask, estimator(old_logp, ref_logp), 0.0).sum(-1)
  if known is not None:
    total = jnp.where(known, total, jnp.nan)
  if over is None:
    return total
  rows = grouped(total, over or total.shape[0])
  return (rows - known_mean(rows, axis=1)).reshape(total.shape)


@checked
def kl_in_reward(rewards: Float[Array, " B"], old_logp: Float[Array, "B T"],
                 ref_logp: Float[Array, "B T"], mask: Bool[Array, "B T"], *, beta: float = 2e-4,
                 estimator: Estimator = kl.k1, over: int | None = 0) -> Reward:
  """R - beta (KL - mean KL), the mean over rows of known R: no gradient."""
  centred = sequence_kl(old_logp, ref_logp, mask, ~jnp.isnan(rewards), estimator=estimator,
                        over=over)
  return rewards - beta * centred


@checked
def kl_weight(old_logp: Float[Array, "B T"], ref_logp: Float[Array, "B T"],
              mask: Bool[Array, "B T"], known: Bool[Array, " B"] | None = None, *,
              estimator: Estimator = kl.k1, over: int | None = 0) -> Weight:
  """KL - mean KL of the row on each of its tokens: outside the baseline the centring acts.

  `Penalty(beta, term(t1.log_prob), weight=term(t1.kl_weight))` is the KL in the loss; its
  expected gradient on policy is beta times that of the KL.
  """
  rows = sequence_kl(old_logp, ref_logp, mask, known, estimator=estimator, over=over)
  on = mask if known is None else mask & known[:, None]
  return jnp.where(on, rows[:, None], 0.0)


@checked
def log_prob(logp: Float[Array, "B T"]) -> Penalty:
  """log pi of the current policy, the score function for `kl_weight`."""
  return logp


def _names(a: Int[Array, "B W"], b: Int[Array, "B W"]) -> Int[Array, "B W"]:
  """An integer for every pair, equal within a row where the pairs are."""
  positions = jax.lax.broadcasted_iota(jnp.int32, a.shape, 1)
  a, b, positions = jax.lax.sort((a, b, positions), dimension=1, num_keys=2)
  new = (a[:, 1:] != a[:, :-1]) | (b[:, 1:] != b[:, :-1])
  ids = jnp.pad(jnp.cumsum(new, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))
  return jax.lax.sort((positions, ids), dimension=1, num_keys=1)[1]
