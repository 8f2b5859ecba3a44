"""The account of one optimiser step: what each of its parts did to the entropy of a policy.

E(theta) is the mean exact entropy, nats a token, on some states; h its gradient, at the start of
the update (order 1) or the mean of those at both ends (order 2, the trapezoid rule). With AdamW's
step as a linear map (`adamw`), g = sum_k g_k the gradient of the terms of the objective,

  E(theta + delta) - E(theta)
    = sum_k -eta <P h, g_k>                                            terms
      - eta (c - 1) <P h, g>                                           clipping
      - eta [b1 <P h, m'> / (1 - b1^t) + ((1 - b1) / (1 - b1^t) - 1) c <P h, g>]   momentum
      - eta w <h, theta>                                               weight_decay
      + rest                                                           curvature of E

The terms count the gradient of this update in full, although Adam's mean takes in a part of it now
and the rest later: momentum is what is carried over less what is left for later. The rest is
measured less everything else; it falls with the rate, and with its square at order 2.

Since -eta <P h, g_k> is the derivative of term k's loss along d = -eta P h, one forward-mode pass
along d gives the share of every token in every term.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from entrolab.batch import Batch
from entrolab.ledger import adamw
from entrolab.objective import Columns, Objective
from entrolab.typing import Array, Bool, Float, real

POSITIVE, NEGATIVE = "surrogate_positive", "surrogate_negative"  # A >= 0, A < 0
CELLS = (2, 2, 4, 2)  # A < 0, A >= 0; p below, above 1/2; quarter of the entropies; clipped or not


class Effects(NamedTuple):
  """What the tokens of one update do to the entropy, nats, [B, T]; they add up to the impulse."""
  terms: dict[str, Float[Array, "B T"]]  # by the name of the term, as `Objective.tokens` has it
  adv: Float[Array, "B T"] | None  # as the objective shaped it; None where it has no advantages
  clipped: Bool[Array, "B T"]  # tokens with an advantage whose surrogate has no slope in logp


def inner(a: Any, b: Any) -> Float[Array, ""]:
  """<a, b> of two trees of one structure."""
  products = jax.tree.map(lambda x, y: (x * y).sum(), a, b)
  return jax.tree.reduce(jnp.add, products)


def direction(made: adamw.Step, slope: Any) -> Any:
  """d = -eta P h, along which the losses' derivatives are their effects on the entropy."""
  return jax.tree.map(lambda p, h: -made.rate * p * h, made.preconditioner, slope)


def effects(objective: Objective, columns: Columns, live: dict[str, Array],
            moved: dict[str, Array], *, share: float = 1.0) -> Effects:
  """The derivative of every token's loss, where its statistics `live` [B, T] move by `moved`.

  columns: the batch, controlled values, and statistics that do not move, such as those of the old
  policy; share: factor on the scales, as `Objective.loss` has it.
  """
  scored = objective.score({**columns, **live})
  tokens = lambda stats: objective.tokens({**columns, **stats}, scored, share=share)
  _, terms = jax.jvp(tokens, (live,), (moved,))
  # as many tokens as there are move at the same time: a surrogate of a whole response has a slope
  # wherever one of its tokens has
  _, slope = jax.jvp(lambda logp: tokens({**live, "logp": logp})["surrogate"],
                     (live["logp"],), (jnp.ones_like(live["logp"]),))
  adv = scored["adv"]
  acting = columns["mask"] if adv is None else columns["mask"] & (adv != 0.0)
  return Effects(terms, adv, acting & (slope == 0.0))


def entries(of_tokens: Effects, slope: Any, made: adamw.Step, moment: Any, params: Any,
            measured: Float[Array, ""]) -> dict[str, Float[Array, ""]]:
  """The account by entry, nats a token; all but `measured` itself add up to it.

  slope: h. moment: m' before the update. params: theta before the update.
  """
  out = {}
  for name, effect in of_tokens.terms.items():
    if name != "surrogate" or of_tokens.adv is None:
      out[name] = effect.sum()
    else:
      falls = of_tokens.adv < 0.0
      out[POSITIVE] = jnp.where(falls, 0.0, effect).sum()
      out[NEGATIVE] = jnp.where(falls, effect, 0.0).sum()
  impulse = jnp.stack(list(out.values())).sum()
  carried = inner(jax.tree.map(lambda p, h: p * h, made.preconditioner, slope), moment)
  out["clipping"] = (made.clip - 1.0) * impulse
  out["momentum"] = (-made.rate * made.carried * carried
                     + (made.fresh - 1.0) * made.clip * impulse)
  out["weight_decay"] = -made.rate * made.decay * inner(slope, params)
  out["rest"] = measured - jnp.stack(list(out.values())).sum()
  return {**out, "measured": measured}


def table(of_tokens: Effects, batch: Batch, live: dict[str, Array]
          ) -> tuple[Float[Array, "2 2 4 2"], Float[Array, "2 2 4 2"]]:
  """(effect of the surrogate, tokens) by CELLS: sign of A, probability of the token, quarter of the
  entropies of the update, clipped or not. Without advantages all tokens count as A >= 0."""
  mask = batch.mask
  entropy = jnp.where(mask, live["entropy"], jnp.nan)
  edges = jnp.nanquantile(entropy, jnp.asarray([0.25, 0.5, 0.75], entropy.dtype))
  quarter = (live["entropy"][..., None] > edges).sum(-1)
  rises = jnp.ones_like(mask) if of_tokens.adv is None else of_tokens.adv >= 0.0
  likely = live["logp"] > jnp.log(0.5)
  cell = jnp.ravel_multi_index((rises.astype(jnp.int32), likely.astype(jnp.int32),
                                quarter.astype(jnp.int32), of_tokens.clipped.astype(jnp.int32)),
                               CELLS, mode="clip")
  # a sum over one-hot rows: a scatter over sharded rows would gather them
  hot = real(jax.nn.one_hot(jnp.where(mask, cell, -1), 32))
  return ((hot * of_tokens.terms["surrogate"][..., None]).sum((0, 1)).reshape(CELLS),
          hot.sum((0, 1)).reshape(CELLS))

