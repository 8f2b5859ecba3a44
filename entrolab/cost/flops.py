"""What sampling and training needed at least, beside what they took: shares of the roofline."""

import dataclasses

import numpy as np

from entrolab.cost import chips
from entrolab.models.transformer import Config
from entrolab.typing import Float, Int


@dataclasses.dataclass(frozen=True)
class Meter:
  """Of one model on some devices: chip, the rates of one; tensor: how many share the weights;
  width: bytes of a number that the sampler reads."""
  config: Config
  chip: chips.Chip
  devices: int
  tensor: int
  width: float

  @property
  def matrices(self) -> int:
    """Numbers in the matrices of all layers."""
    c = self.config
    attention = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    return c.layers * (attention + 3 * c.width * c.mlp_width)

  def forward(self, positions: Float, pairs: Float, predicted: Float) -> float:
    """FLOPs: 2 a number of the layers and a position, 4 a width of the heads and a pair of query
    and key, 2 a number of the head and a predicted token."""
    c = self.config
    return float(2 * self.matrices * positions + 4 * c.layers * c.heads * c.head_dim * pairs
                 + 2 * c.width * c.vocab_size * predicted)

  def trained(self, lengths: Int[np.ndarray, "2 B"]) -> float:
    """Seconds for the updates: forward and, twice as much, backward, of tokens that are no padding.

    lengths: of the rows in all, and of what is learned of them.
    """
    rows, new = lengths.astype(np.float64)
    flops = 3.0 * self.forward(rows.sum(), _pairs(rows), new.sum())
    return chips.roofline(self.chip, flops / self.devices, 0.0).seconds

  def sampled(self, lengths: Int[np.ndarray, "2 B"], samples: int, steps: int,
              share: float = 1.0) -> float:
    """Seconds for a rollout: prompts once a group, new tokens, and the weights read at every step.

    share: rows that were drawn, of those in `lengths`; steps: positions that were decoded.
    """
    rows, new = lengths.astype(np.float64)
    prompts = rows - new
    positions = new.sum() * share + prompts.sum() / samples
    pairs = (_pairs(rows) - _pairs(prompts)) * share + _pairs(prompts) / samples
    flops = self.forward(positions, pairs, new.sum() * share)
    read = (self.matrices + self.config.width * self.config.vocab_size) * self.width * steps
    return chips.roofline(self.chip, flops / self.devices, read / self.tensor).seconds


def _pairs(rows: Float[np.ndarray, " B"]) -> float:
  """Queries and the keys that they see."""
  return float((rows * (rows + 1.0) / 2.0).sum())
