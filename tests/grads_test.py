"""Gradients against finite differences, for every function of a surrogate, penalty or outer slot.

What a function holds constant (`stop_gradient`) stays at its value while the arguments move, so
that straight-through forms and detached weights are checked for the gradient they mean to have.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import vocab
from entrolab.objective import Term
from tests import adapters, probe

LIVE = (*vocab.NAMES, "value", "mean")  # columns through which a gradient may flow
STEP, DIRECTIONS = 1e-6, 4
SPEC = vocab.Spec(names=vocab.NAMES, tempered=1.3)


def live(fn):
  return [name for name in Term(fn).reads if name in LIVE]


FUNCTIONS = [fn for fn in probe.functions()
             if Term(fn).slot in ("surrogate", "penalty", "outer") and live(fn)]


class Frozen:
  """Stands in for `stop_gradient`: the first evaluation records, later ones play back."""

  def __init__(self, monkeypatch):
    self.kept, self.at, self.recording = [], 0, True
    monkeypatch.setattr(jax.lax, "stop_gradient", self)

  def __call__(self, x):
    if self.recording:
      self.kept.append(x)
    else:
      x, self.at = self.kept[self.at], self.at + 1
    return x

  def replay(self):
    self.recording, self.at = False, 0


def columns(fn, seed):
  """The columns of `probe.batch` in float64, with the statistics of its logits."""
  batch, logits = probe.batch(fn, seed)
  batch = {k: jnp.asarray(v, np.float64 if np.asarray(v).dtype.kind == "f" else None)
           for k, v in batch.items()}
  stats = adapters.statistics(jnp.asarray(logits, np.float64), batch["tokens"], SPEC)
  adv = np.random.default_rng(seed + 1).normal(size=batch["mask"].shape)
  return {"adv": jnp.asarray(adv), **batch, **stats}


@pytest.mark.parametrize("fn", FUNCTIONS, ids=probe.label)
def test_gradient_is_the_finite_difference(fn, monkeypatch):
  bound, names = probe.bound(fn), live(fn)
  rng = np.random.default_rng(7)
  with adapters.double():
    held = columns(fn, 0)
    held = {name: held[name] for name in bound.reads}
    x = {name: held[name] for name in names}
    share = jnp.asarray(rng.normal(size=np.shape(bound(held))))
    if "mask" in held and share.ndim:
      share = jnp.where(held["mask"], share, 0.0)
    total = lambda x: (share * bound({**held, **x})).sum()
    grad = jax.grad(total)(x)
    frozen = Frozen(monkeypatch)
    total(x)
    for _ in range(DIRECTIONS):
      along = {name: rng.normal(size=np.shape(v)) for name, v in x.items()}
      ends = []
      for sign in (1.0, -1.0):
        frozen.replay()
        ends.append(float(total({k: v + sign * STEP * along[k] for k, v in x.items()})))
      want = (ends[0] - ends[1]) / (2.0 * STEP)
      got = sum(float((grad[name] * along[name]).sum()) for name in names)
      size = sum(float(jnp.abs(grad[name] * along[name]).sum()) for name in names)
      assert abs(got - want) <= 1e-6 * size + 1e-8, (got, want)
