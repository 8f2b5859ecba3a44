"""Everything over the vocabulary: log-prob, exact entropy, nucleus entropy, moments.

Two ways to the same statistics, which `statistics.py` defines and a `Spec` selects. From logits:
the plain functions of this file, differentiated by jax. From hidden states and the head: `fused`,
which never makes an array of tokens x vocabulary and has analytic gradients (`fused.py`).

Nats; float32 accumulation (float64 input stays float64); value and gradient finite for logits of
-inf.
"""

import jax
import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.fused import fused
from entrolab.nucleus import cut_rows, inside
from entrolab.ranks import replicated
from entrolab.sharding import Layout
from entrolab.statistics import NAMES, Spec
from entrolab.typing import Array, Bool, Float, Int

__all__ = ["Layout", "NAMES", "Spec", "entropy", "from_logits", "fused", "log_prob", "log_softmax",
           "nucleus_entropy", "nucleus_mask"]


def _wide(x: Array) -> Array:
  """x in the type of the sums: float64 stays, everything else becomes float32."""
  return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


@checked
def log_softmax(logits: Float[Array, "*b V"]) -> Float[Array, "*b V"]:
  """Normalised log-probs, nats; -inf stays -inf and gets no gradient."""
  logits = _wide(logits)
  finite = jnp.isfinite(logits)
  # what the last `where` drops still enters the gradient, times 0, and 0 * inf is nan: so the
  # dropped branch computes with a finite stand-in
  safe = jnp.where(finite, logits, 0.0)
  # log-softmax is the same for any peak, so that no gradient has to pass through the maximum
  peak = jax.lax.stop_gradient(jnp.where(finite, logits, -jnp.inf).max(-1, keepdims=True))
  total = jnp.where(finite, jnp.exp(safe - peak), 0.0).sum(-1, keepdims=True)
  return jnp.where(finite, safe - peak - jnp.log(total), -jnp.inf)


def _expect(logp: Float[Array, "*b V"], value: Float[Array, "*b V"]) -> Float[Array, "*b"]:
  """sum_j p_j value_j, with p = 0 where logp is -inf."""
  finite = jnp.isfinite(logp)
  p = jnp.where(finite, jnp.exp(jnp.where(finite, logp, 0.0)), 0.0)
  return (p * jnp.where(finite, value, 0.0)).sum(-1)


@checked
def log_prob(logits: Float[Array, "*b V"], tokens: Int[Array, "*b"]) -> Float[Array, "*b"]:
  """log p_token, nats; a one-hot sum, since a gather along a sharded vocabulary is refused."""
  hot = jax.nn.one_hot(tokens, logits.shape[-1], dtype=bool)
  return jnp.where(hot, log_softmax(logits), 0.0).sum(-1)


@checked
def entropy(logits: Float[Array, "*b V"]) -> Float[Array, "*b"]:
  """H = -sum_j p_j log p_j over the whole vocabulary, nats."""
  logp = log_softmax(logits)
  return -_expect(logp, logp)


@checked
def nucleus_mask(logits: Float[Array, "*b V"], top_p: float,
                 inclusive: bool = False) -> Bool[Array, "*b V"]:
  """The tokens of the nucleus; constant for the gradient."""
  logits = jax.lax.stop_gradient(_wide(logits))
  # rows stay on their devices; each needs its whole vocabulary to find its cut
  rows = replicated(logits.reshape(-1, logits.shape[-1]), rows=True)
  cut = cut_rows(rows, top_p, inclusive)
  ids = jnp.arange(rows.shape[-1], dtype=jnp.int32)
  on = inside(rows, ids[None], jax.tree.map(lambda x: x[:, None], cut))
  return on.reshape(logits.shape)


@checked
def nucleus_entropy(logits: Float[Array, "*b V"], top_p: float,
                    inclusive: bool = False) -> Float[Array, "*b"]:
  """Entropy of the renormalised nucleus, nats; 0, without gradient, where it is empty."""
  on = nucleus_mask(logits, top_p, inclusive)
  some = on.any(-1, keepdims=True)
  # an empty nucleus leaves no finite logit, hence no peak to subtract: zeros stand in for the row
  logp = log_softmax(jnp.where(on, _wide(logits), jnp.where(some, -jnp.inf, 0.0)))
  return jnp.where(some[..., 0], -_expect(logp, logp), 0.0)


@checked
def from_logits(logits: Float[Array, "*b V"], tokens: Int[Array, "*b"],
                spec: Spec) -> dict[str, Array]:
  """The statistics of spec.names by name, each [*b], from logits; formulas in `statistics.py`."""
  logits = _wide(logits) / spec.temperature
  logp = log_softmax(logits)
  finite_logp = lambda: jnp.where(jnp.isfinite(logp), logp, 0.0)  # 0 * -inf is nan: p^2 log p is 0
  definitions = {
      "logp": lambda: log_prob(logits, tokens),
      "entropy": lambda: -_expect(logp, logp),
      "nucleus_entropy": lambda: nucleus_entropy(logits, spec.top_p, spec.inclusive),
      "tempered_logp": lambda: log_prob(logits / spec.tempered, tokens),
      "sum_p2": lambda: _expect(logp, jnp.exp(logp)),
      "sum_p2_logp": lambda: _expect(logp, jnp.exp(logp) * finite_logp()),
  }
  return {name: definitions[name]() for name in spec.names}
