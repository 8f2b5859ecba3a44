"""Which statistics of a distribution over the vocabulary there are, and the sums they follow from.

For logits z [V] of one position, p = softmax(z / temperature), y the sampled token, in nats:

  logp             log p_y
  entropy          H = -sum_j p_j log p_j
  nucleus_entropy  H of p restricted to its nucleus and renormalised; 0 where the nucleus is empty
  tempered_logp    log softmax(z / temperature / tempered)_y
  sum_p2           sum_j p_j^2
  sum_p2_logp      sum_j p_j^2 log p_j

The nucleus is SIREN's (arXiv:2509.25133): tokens in descending order while the cumulative mass
stays strictly below top_p, so that the token that crosses it is excluded and a confident row's
nucleus is empty; `inclusive=True` takes the crossing token in. Equal logits: lowest index first.

A `Spec` selects statistics. `vocab.from_logits` computes them from logits as they stand above,
`vocab.fused` from hidden states and the head, by `Sums`: all but nucleus_entropy follow from sums
over the vocabulary, which parts of it contribute one after the other or on different devices.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from entrolab.typing import Array, Float

NAMES = ("logp", "entropy", "nucleus_entropy", "tempered_logp", "sum_p2", "sum_p2_logp")


@dataclasses.dataclass(frozen=True)
class Spec:
  """Which statistics, and how: hashable, static under jit.

  Raises TypeError for a name that is not in NAMES, ValueError for a top_p outside (0, 1] or a
  temperature that is not positive.
  """
  names: tuple[str, ...] = ("entropy", "logp")  # of NAMES
  top_p: float = 0.8  # mass of the nucleus
  inclusive: bool = False  # whether the nucleus includes the token that crosses top_p
  tempered: float = 1.0  # further temperature of tempered_logp alone
  temperature: float = 1.0  # divides the logits of every statistic
  chunk: int = 0  # vocabulary entries at a time in `fused`; 0: what suits the device

  def __post_init__(self) -> None:
    unknown = [name for name in self.names if name not in NAMES]
    if unknown:
      raise TypeError(f"no statistic {unknown[0]!r}; have: {', '.join(NAMES)}")
    if not 0.0 < self.top_p <= 1.0 or self.tempered <= 0.0 or self.temperature <= 0.0:
      raise ValueError(f"{self}: 0 < top_p <= 1, temperatures above 0")


class Sums(NamedTuple):
  """Sums over logits z of every row about a peak at least as large: x = z - peak, so that e^x <= 1.

  None: no statistic of the spec needs it.
  """
  sum_exp: Float[Array, " N"]  # sum e^x
  sum_exp2: Float[Array, " N"] | None = None  # sum e^2x
  sum_exp_tempered: Float[Array, " N"] | None = None  # sum e^(x / tempered)
  sum_exp_x: Float[Array, " N"] | None = None  # sum e^x x
  sum_exp2_x: Float[Array, " N"] | None = None  # sum e^2x x


def sums_about(peak: Float[Array, " N"], logits: Float[Array, "N C"], spec: Spec) -> Sums:
  """The sums over some logits, already divided by the temperature; logits must be finite."""
  x = logits - peak[:, None]
  e = jnp.exp(x)  # finite logits: e^x x needs no guard against 0 * -inf
  sums = Sums(e.sum(-1))
  if "entropy" in spec.names:
    sums = sums._replace(sum_exp_x=(e * x).sum(-1))
  if {"sum_p2", "sum_p2_logp"} & set(spec.names):
    sums = sums._replace(sum_exp2=(e * e).sum(-1), sum_exp2_x=(e * (e * x)).sum(-1))
  if "tempered_logp" in spec.names:
    sums = sums._replace(sum_exp_tempered=jnp.exp(x * (1.0 / spec.tempered)).sum(-1))
  return sums


def moved(sums: Sums, shift: Float[Array, " N"], spec: Spec) -> Sums:
  """The same sums about another peak; shift = old peak - new peak.

  x becomes x + shift: every e^x gains the factor e^shift, and
  sum e^(x + shift) (x + shift) = e^shift (sum e^x x + shift sum e^x).
  """
  factor = jnp.exp(shift)
  new = Sums(factor * sums.sum_exp)
  if sums.sum_exp_x is not None:
    new = new._replace(sum_exp_x=factor * (sums.sum_exp_x + shift * sums.sum_exp))
  if sums.sum_exp2 is not None and sums.sum_exp2_x is not None:
    new = new._replace(sum_exp2=factor * factor * sums.sum_exp2,
                       sum_exp2_x=factor * factor * (sums.sum_exp2_x + shift * sums.sum_exp2))
  if sums.sum_exp_tempered is not None:
    new = new._replace(sum_exp_tempered=jnp.exp(shift / spec.tempered) * sums.sum_exp_tempered)
  return new


def from_sums(peak: Float[Array, " N"], sums: Sums, token_logit: Float[Array, " N"],
              spec: Spec) -> dict[str, Array]:
  """The statistics [N] by name, and lse, lse_tempered: the log-sum-exp of z and of z / tempered.

  lse           = peak + log sum_exp                  logp = z_y - lse
  entropy       = log sum_exp - sum_exp_x / sum_exp
  sum_p2        = sum_exp2 / sum_exp^2                since p = e^x / sum_exp
  sum_p2_logp   = (sum_exp2_x - log sum_exp * sum_exp2) / sum_exp^2
  lse_tempered  = peak / tempered + log sum_exp_tempered
  tempered_logp = z_y / tempered - lse_tempered
  """
  log_sum_exp = jnp.log(sums.sum_exp)
  lse = peak + log_sum_exp
  stats = {"lse": lse, "logp": token_logit - lse}
  if sums.sum_exp_x is not None:
    stats["entropy"] = log_sum_exp - sums.sum_exp_x / sums.sum_exp
  if sums.sum_exp_tempered is not None:
    stats["lse_tempered"] = peak / spec.tempered + jnp.log(sums.sum_exp_tempered)
    stats["tempered_logp"] = token_logit / spec.tempered - stats["lse_tempered"]
  # both where one is selected: the gradient of sum_p2_logp contains sum_p2
  if sums.sum_exp2 is not None and sums.sum_exp2_x is not None:
    square = sums.sum_exp * sums.sum_exp
    stats["sum_p2"] = sums.sum_exp2 / square
    stats["sum_p2_logp"] = (sums.sum_exp2_x - log_sum_exp * sums.sum_exp2) / square
  return stats
