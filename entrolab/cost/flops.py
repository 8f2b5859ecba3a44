"""The least time that rollouts and updates need, by the FLOPs of the model and its roofline."""

import dataclasses
import math

import numpy as np

from entrolab.cost import chips
from entrolab.models import parameters
from entrolab.models.parameters import Config
from entrolab.typing import Float, Int


@dataclasses.dataclass(frozen=True)
class ModelRoofline:
  """The least seconds for one model on some devices, all busy and everything overlapping."""
  config: Config  # of the model
  chip: chips.Chip  # rates of one device
  devices: int  # of the mesh
  tensor: int  # devices that share the matrices: each reads 1 / tensor of them
  bytes_per_parameter: float  # as the sampler reads them: 1 in int8, else by dtype

  @property
  def matrices(self) -> int:
    """Parameters in the matrices of all layers; embedding and head are none of these."""
    return sum(math.prod(parameter.shape(self.config)) for parameter in parameters.of(self.config)
               if parameter.layered and parameter.summed)

  def forward(self, positions: Float, pairs: Float, predicted: Float) -> float:
    """FLOPs: 2 matrices positions + 4 L heads dh pairs + 2 D V predicted.

    positions: tokens that run through the layers; pairs: of a query and a key that it sees;
    predicted: tokens that have logits.
    """
    c = self.config
    # q k and the sum over values: a multiply-add each for every entry of a head
    attention = 4 * c.layers * c.heads * c.head_dim * pairs
    head = 2 * c.width * c.vocab_size * predicted
    return float(2 * self.matrices * positions + attention + head)

  def trained(self, lengths: Int[np.ndarray, "2 B"]) -> float:
    """Seconds for the updates: forward and, twice as much, backward, without padding.

    lengths: tokens of each row in all, and those of them that are learned.
    """
    rows, new = lengths.astype(np.float64)
    flops = 3.0 * self.forward(rows.sum(), _pairs(rows), new.sum())
    return chips.roofline(self.chip, flops / self.devices, 0.0).seconds

  def sampled(self, lengths: Int[np.ndarray, "2 B"], samples: int, steps: int,
              share: float = 1.0) -> float:
    """Seconds for a rollout: prompts once a group, and new tokens, or, if that takes longer, the
    time to read the parameters at every step.

    lengths: tokens of each row in all, and the new ones.
    samples: rows a group.
    steps: positions that were decoded one after another.
    share: rows that were drawn, as a share of those in `lengths`.
    """
    rows, new = lengths.astype(np.float64)
    prompts = rows - new
    positions = new.sum() * share + prompts.sum() / samples
    pairs = (_pairs(rows) - _pairs(prompts)) * share + _pairs(prompts) / samples
    flops = self.forward(positions, pairs, new.sum() * share)
    parameters_read = self.matrices + self.config.width * self.config.vocab_size
    read = parameters_read * self.bytes_per_parameter * steps
    return chips.roofline(self.chip, flops / self.devices, read / self.tensor).seconds


def _pairs(rows: Float[np.ndarray, " B"]) -> float:
  """Pairs of a query and a key that it sees, in causal rows of these lengths."""
  return float((rows * (rows + 1.0) / 2.0).sum())
