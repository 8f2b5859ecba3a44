"""AEPO-AGENTIC: branch tool use at high entropy within a budget; clipped tokens keep a gradient.

Agentic Entropy-Balanced Policy Optimization (arXiv:2510.14545, 2025), on Agentic Reinforced Policy
Optimization (arXiv:2507.19849, 2025). Official code: RUC-NLPIR/ARPO, AEPO/verl_aepo_entropy,
verl/workers/rollout/vllm_rollout/vllm_rollout_with_tools.py and verl/trainer/ppo/core_algos.py.
Acts on: rollout, advantage, surrogate.  State: none.
Differs from the official code: (1) the entropy-aware advantage acts; as released the entropy is
never computed; (2) its mean and deviation are those of the whole optimiser batch, theirs of each
micro-batch (`scope="micro"`), and its factor never turns negative; (3) the first entropy of a
rollout is forgotten with the batch; (4) `scope="path"` of `Branching` damps the paths that branch,
as the paper, not the prompts; (5) `scope="own"` ends a prompt's streak at every round without a
new rollout of that prompt, theirs only where another prompt of the batch had one.

Not to be confused with Arbitrary Entropy Policy Optimization. Which rollouts branch is decided on
the host out of segment entropies; a segment ends at a tool call or at the end of the response.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import ranks
from entrolab.arguments import checked
from entrolab.methods import ppo
from entrolab.typing import Advantage, Array, Bool, Float, Int, Surrogate, real


@checked
def entropy_aware(adv: Float[Array, "B T"], entropy: Float[Array, "B T"], mask: Bool[Array, "B T"],
                  *, coef: float = 0.2) -> Advantage:
  """A max(1 + coef z, 0), z = (H - mean H) / std H over all valid tokens, n - 1.

  H of the current policy, no gradient; equal entropies leave A alone: a std under 84 eps, which is
  1e-5 nats in float32, what rounding leaves in an entropy of any size.
  """
  middle = ranks.centred(entropy, mask)
  count = jnp.maximum(real(mask).sum() - 1.0, 1.0).astype(entropy.dtype)
  std = jnp.sqrt(jnp.square(middle).sum() / count)
  least = 84.0 * jnp.finfo(entropy.dtype).eps
  z = jnp.where(std > least, middle / jnp.maximum(std, least), 0.0)
  return adv * jax.lax.stop_gradient(jnp.maximum(1.0 + coef * z, 0.0))


@checked
def balanced_clip(logp: Float[Array, "B T"], old_logp: Float[Array, "B T"],
                  adv: Float[Array, "B T"], *, low: float = 0.2, high: float = 0.2,
                  dual: float = 3.0, limit: float = float("inf")) -> Surrogate:
  """PPO in value; a token clipped from above keeps the gradient -A (1 + high) d log pi.

  The upper bound is (1 + high) r / stop(r). Clipped from below, or beyond the dual clip where
  A < 0, there is no gradient, as in `ppo.clipped_ratio`. limit: nats of the log-ratio.
  """
  r = ppo.ratio(logp, old_logp, limit=limit)
  bound = (1.0 + high) * r / jax.lax.stop_gradient(r)
  inside = jnp.where(r > 1.0 + high, bound, jnp.where(r < 1.0 - low, 1.0 - low, r))
  loss = jnp.maximum(-adv * r, -adv * inside)
  return jnp.where(adv < 0.0, jnp.minimum(loss, -adv * dual), loss)


@checked
def segment_entropy(top_logp: Float[Array, "N T K"], lengths: Int[Array, " N"], *, vocab: int,
                    first: int = 20) -> Float[Array, " N"]:
  """-sum p log p / log V over the K likeliest tokens of the first positions: a sum, no mean.

  top_logp: of the policy that samples; vocab: V; first: most positions that count. Raises
  ValueError for a vocabulary of fewer than 2 tokens, whose log is 0.
  """
  if vocab < 2:
    raise ValueError(f"segment_entropy(vocab={vocab}): at least 2 tokens")
  on = jnp.arange(top_logp.shape[1])[None] < jnp.minimum(lengths, first)[:, None]
  terms = jnp.where(on[..., None], jnp.exp(top_logp) * top_logp, 0.0)
  return -terms.sum((1, 2)) / math.log(vocab)


def budget(root: np.ndarray, calls: np.ndarray, *, samples: int,
           sharpness: float = 0.5) -> np.ndarray:
  """m [P]: fresh rollouts a prompt, floor(n sigmoid(sharpness (H_root - H_avg))) + 1 in [1, n].

  root: entropy of the prompt's first segment; calls: mean over the segments of one trial, the
  first included. The other n - m are left to branches.
  """
  share = 1.0 / (1.0 + np.exp(-sharpness * (np.asarray(root) - np.asarray(calls))))
  return np.clip(np.floor(samples * share).astype(int) + 1, 1, samples)


Test = Callable[[float, float, int, "Branching"], bool]


def aepo_test(u: float, gain: float, streak: int, rule: "Branching") -> bool:
  """(u + w gain) max(0, 1 - penalty streak) >= p: u uniform, gain the rise of the entropy."""
  q = (u + rule.weight * gain) * max(0.0, 1.0 - rule.penalty * streak)
  return min(max(q, 0.0), 1.0) >= rule.probability


def arpo_test(u: float, gain: float, streak: int, rule: "Branching") -> bool:
  """u - w gain <= p: ARPO, which knows no streak."""
  return min(max(u - rule.weight * gain, 0.0), 1.0) <= rule.probability


@dataclasses.dataclass(frozen=True)
class Rollout:
  """One response."""
  prompt: int  # its index
  path: tuple[int, ...] = ()  # ids of its segments, those before the branch included
  calls: int = 0  # of tools
  first: float | None = None  # entropy of its first segment since it branched off
  streak: int = 0  # rounds in a row in which it was copied
  limited: bool = False  # whether it ended because it had no calls left


@dataclasses.dataclass(frozen=True)
class Tree:
  """The rollouts of all prompts after some rounds."""
  rollouts: tuple[Rollout, ...]  # in order of creation
  active: tuple[int, ...]  # indices of those that go on
  segments: int  # drawn so far
  streaks: tuple[int, ...]  # a prompt's rounds in a row with new rollouts


@dataclasses.dataclass(frozen=True)
class Branching:
  """Rules by which the tree grows."""
  samples: int = 16  # n, rollouts a prompt in all
  beam: int = 2  # Z: a rollout that calls a tool gets Z - 1 trials to be copied
  probability: float = 0.5  # p of the test
  weight: float = 0.2  # w of the test, for the rise of the entropy
  penalty: float = 0.05  # for each round of the streak
  calls: int = 3  # most calls of tools in a rollout
  test: Test = aepo_test  # decides one trial
  # whose streak counts: the prompt's as in the code, which any round without new rollouts in the
  # batch ends; the prompt's alone (own); or the path's, as in the paper
  scope: Literal["prompt", "own", "path"] = "prompt"

  def __post_init__(self) -> None:
    if self.scope not in ("prompt", "own", "path"):
      raise ValueError(f"Branching(scope={self.scope!r}); choices: 'prompt', 'own', 'path'")

  def start(self, initial: Sequence[int]) -> Tree:
    """The tree before any token: `initial` fresh rollouts of each prompt, in [1, n]."""
    counts = [min(max(1, m), self.samples) for m in initial]
    rollouts = tuple(Rollout(p) for p, m in enumerate(counts) for _ in range(m))
    return Tree(rollouts, tuple(range(len(rollouts))), 0, (0,) * len(counts))

  def advance(self, tree: Tree, entropy: Sequence[float], calls_tool: Sequence[bool],
              draw: Callable[[int], float]) -> Tree:
    """One round: a segment of every active rollout has been drawn; which go on, which are copied.

    entropy: of the segments; calls_tool: whether the segment does and there is room for the result;
    draw: the next uniform number of a rollout, in [0, 1). New rollouts stand at the end,
    copies before fresh starts; a prompt without any active rollout gets one fresh start a round.
    """
    every, going = list(tree.rollouts), []
    gain = {}
    for place, i in enumerate(tree.active):
      old = every[i]
      first = entropy[place] if old.first is None else old.first
      goes = bool(calls_tool[place]) and old.calls < self.calls
      every[i] = dataclasses.replace(
          old, path=(*old.path, tree.segments + place), first=first, calls=old.calls + goes,
          limited=bool(calls_tool[place]) and not goes)
      gain[i] = entropy[place] - first
      if goes:
        going.append(i)
    counts = [sum(r.prompt == p for r in every) for p in range(len(tree.streaks))]
    sources = self._sources(tree, every, going, counts, gain, draw)
    if self.scope == "path":
      for i in going:
        every[i] = dataclasses.replace(every[i], streak=every[i].streak + 1 if i in sources else 0)
    new = [dataclasses.replace(every[i], first=None) for i in sources]
    here = {every[i].prompt for i in going}
    new += [Rollout(p) for p, n in enumerate(counts) if p not in here and n < self.samples]
    grown = {r.prompt for r in new}
    stays = not new and self.scope != "own"
    streaks = tuple(c + 1 if p in grown else c * stays for p, c in enumerate(tree.streaks))
    active = (*going, *range(len(every), len(every) + len(new)))
    return Tree((*every, *new), active, tree.segments + len(tree.active), streaks)

  def _sources(self, tree, every, going, counts, gain, draw) -> list[int]:
    """The rollout behind every new branch; draws one number a trial, prompts in order."""
    made: list[int] = []
    for p in dict.fromkeys(every[i].prompt for i in going):
      free = self.samples - counts[p]
      for i in (i for i in going if every[i].prompt == p):
        streak = every[i].streak if self.scope == "path" else tree.streaks[p]
        trials = min(self.beam - 1, free)
        hits = sum(self.test(draw(i), gain[i], streak, self) for _ in range(trials))
        made, free = made + [i] * hits, free - hits
    return made

  def outputs(self, tree: Tree) -> list[Rollout]:
    """n rollouts of each prompt in order of creation."""
    of_prompt = [[r for r in tree.rollouts if r.prompt == p] for p in range(len(tree.streaks))]
    return [r for rollouts in of_prompt for r in rollouts[:self.samples]]
