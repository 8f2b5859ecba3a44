"""How tokens add up: mask [B, T] -> scale [B, T], with the denominator explicit.

The loss is `sum(scale * per_token)`. A scale is computed once for the whole optimiser batch;
micro-batches and devices then simply add up. Published code divides by four different counts
(valid tokens, selected tokens, selected rows, rows times the maximum length): each is a line here.

A row that is not learned from (`known` is False, as where its verdict is unknown) is in no
denominator: its tokens are outside the mask, and where rows are counted, it is not.
"""

import jax.numpy as jnp

from entrolab.arguments import checked
from entrolab.typing import Array, Bool, Float, Int, Penalty, Scale, real


def _lengths(mask: Bool[Array, "B T"]) -> Float[Array, "B 1"]:
  return real(mask).sum(-1, keepdims=True)


def _rows(mask: Bool[Array, "B T"]) -> Float[Array, ""]:
  return jnp.maximum(real(mask.any(-1)).sum(), 1.0)


@checked
def per_row(x: Float[Array, "B T"], known: Bool[Array, " B"] | None = None, *,
            length: int = 1) -> Float[Array, "B T"]:
  """x / (n * length), n the rows that are known; None: all B. Without any, n is 1."""
  whole = x / (x.shape[0] * length)
  if known is None:
    return whole
  # a compiler may turn the division by a constant into a product, which rounds otherwise
  return jnp.where(known.all(), whole, x / (jnp.maximum(real(known).sum(), 1.0) * length))


@checked
def token_mean(mask: Bool[Array, "B T"]) -> Scale:
  """Every valid token counts alike: 1 / sum(mask). DAPO (arXiv:2503.14476), equation 8."""
  on = real(mask)
  return on / jnp.maximum(on.sum(), 1.0)


@checked
def sequence_mean(mask: Bool[Array, "B T"]) -> Scale:
  """Mean over non-empty rows of their token means. GRPO (arXiv:2402.03300), equation 3."""
  return real(mask) / jnp.maximum(_lengths(mask), 1.0) / _rows(mask)


@checked
def sequence_sum(mask: Bool[Array, "B T"]) -> Scale:
  """Mean over non-empty rows of their token sums: the plain policy gradient."""
  return real(mask) / _rows(mask)


@checked
def row_mean(mask: Bool[Array, "B T"], known: Bool[Array, " B"] | None = None) -> Scale:
  """Mean over ALL rows of their token means: an empty row counts as zero, an unknown one not."""
  return per_row(real(mask) / jnp.maximum(_lengths(mask), 1.0), known)


@checked
def fixed_length(mask: Bool[Array, "B T"], known: Bool[Array, " B"] | None = None, *,
                 length: int = 0) -> Scale:
  """sum / (B * length): constant denominator of Dr.GRPO (arXiv:2503.20783), mean over rows.

  length: tokens that a response may have at most; 0 takes T, the width of the padded batch
  (then the scale depends on the bucket: name the length in a real run).
  """
  if length < 0:
    raise ValueError(f"fixed_length(length={length}): tokens, 0 or more")
  return per_row(real(mask), known, length=length or mask.shape[1])


@checked
def fixed_sum(mask: Bool[Array, "B T"], *, divisor: float = 1.0) -> Scale:
  """sum / divisor, a SUM over rows: Dr.GRPO as in newer releases of verl (loss_scale_factor).

  Raises ValueError for a divisor that is not above 0.
  """
  if not divisor > 0.0:
    raise ValueError(f"fixed_sum(divisor={divisor}): above 0")
  return real(mask) / divisor


@checked
def selected_mean(mask: Bool[Array, "B T"], weight: Float[Array, "B T"]) -> Scale:
  """Mean over the valid tokens whose weight is not zero (selected tokens, selected rows)."""
  on = real(mask & (weight != 0.0))
  return on / jnp.maximum(on.sum(), 1.0)


@checked
def selected_sequence_mean(mask: Bool[Array, "B T"], weight: Float[Array, "B T"]) -> Scale:
  """Mean over rows with a selected token of the mean over their selected tokens."""
  return sequence_mean(mask & (weight != 0.0))


@checked
def right(verdict: Int[Array, " B"], mask: Bool[Array, "B T"]) -> Penalty:
  """1 where the response is right: as a penalty of weight 0, aggregated by `row_mean`,
  it puts the success rate of the known rows among the metrics that controllers read."""
  return jnp.broadcast_to(real(verdict == 1)[:, None], mask.shape)
