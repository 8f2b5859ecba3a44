"""Columns by name, and a softmax policy over them, for laws that hold for every method."""

import importlib
import inspect
import pkgutil
from importlib import util

import jax.numpy as jnp
import numpy as np

from entrolab import aggregate, methods, vocab
from entrolab.batch import COLUMNS
from entrolab.methods import bonus, grpo, ppo
from entrolab.objective import Objective, Penalty, Term, term
from entrolab.typing import Array, Float, Weight, slot_of

G, B, T, V = 4, 16, 12, 16


def confident(old_logp: Float[Array, "B T"]) -> Weight:
  """A weight for scales that read one: drops the least likely tokens."""
  return (old_logp > -4.0).astype(old_logp.dtype)


# values for knobs that have no default, by name; a method's test may add to it as `KNOBS`
KNOBS = dict(size=G, max_tokens=T, buffer=4, steps=3)
# how to draw columns that only some methods read; a method's test may add to it as `COLUMNS`
EXTRA = dict(anchor=lambda rng: np.float32(0.5), mean=lambda rng: np.float32(0.4))


def functions():
  """Every public function of entrolab/methods that fills a slot, with its module."""
  found = []
  for info in pkgutil.iter_modules(methods.__path__):
    module = importlib.import_module(f"entrolab.methods.{info.name}")
    for name, fn in vars(module).items():
      own = inspect.isfunction(fn) and fn.__module__ == module.__name__
      if own and not name.startswith("_") and slot_of(inspect.signature(fn).return_annotation):
        found.append(fn)
  for name, fn in vars(aggregate).items():
    own = inspect.isfunction(fn) and fn.__module__ == aggregate.__name__ and name[0] != "_"
    if own and slot_of(inspect.signature(fn).return_annotation):
      found.append(fn)
  return found


def label(fn):
  """module.function."""
  return f"{fn.__module__.rsplit('.', 1)[-1]}.{fn.__name__}"


def home(fn):
  """The module of the method's test: where its KNOBS and COLUMNS belong."""
  return f"tests.methods.{fn.__module__.rsplit('.', 1)[-1]}_test"


def home_file(fn):
  """The file of `home`, for messages."""
  return home(fn).replace(".", "/") + ".py"


def added(fn, name):
  """What the test of the method defines as `name`: COLUMNS or KNOBS; nothing where it does not."""
  path = home(fn)
  return vars(importlib.import_module(path)).get(name, {}) if util.find_spec(path) else {}


def drawers(fn):
  """EXTRA, and what the test of the method adds."""
  return {**EXTRA, **added(fn, "COLUMNS")}


def computed(fn):
  """The columns that the objective or the current policy fills, so that no batch holds them."""
  slot = slot_of(inspect.signature(fn).return_annotation)
  return {*vocab.NAMES, "known", "rewards", "adv", *(("weight",) if slot == "scale" else ())}


def bound(fn, size=G):
  """The function with its required knobs set, for groups of `size`."""
  parameters = inspect.signature(fn).parameters.values()
  needed = {p.name for p in parameters
            if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
  values = {**KNOBS, **added(fn, "KNOBS"), "size": size}
  missing = sorted(needed - values.keys())
  assert not missing, (
      f"{label(fn)}: no value for {', '.join(missing)}, hyper-parameters without a default. Add to "
      f"{home_file(fn)}: KNOBS = dict({', '.join(f'{name}=...' for name in missing)})")
  return term(fn, **{name: values[name] for name in needed})


def objective(fn, size=G, **more):
  """An objective that holds the function in the slot its return type names, for groups of `size`.
  """
  it = bound(fn, size)
  own = dict(reward=term(grpo.outcome), advantage=term(grpo.group_advantage, size=size),
             surrogate=term(ppo.clipped_ratio, low=0.2, high=0.28))
  if it.slot == "reward":
    own["reward"] = (own["reward"], it) if "rewards" in it.reads else it
  elif it.slot == "advantage":
    own["advantage"] = (own["advantage"], it) if "adv" in it.reads else it
  elif it.slot == "surrogate":
    own["surrogate"] = it
  elif it.slot == "weight":
    own["weights"] = it
  elif it.slot == "scale":
    own["aggregate"] = it
    own["weights"] = term(confident)
  elif it.slot == "penalty":
    own["penalties"] = (Penalty(0.3, it),)
  else:
    own["penalties"] = (Penalty(0.3, term(bonus.negative_entropy), outer=it),)
  known = {*COLUMNS, *vocab.NAMES, "weight", "mean"}
  return Objective(**own, extra=tuple(n for n in it.reads if n not in known), **more)


def batch(fn, seed=0, *, verdict=None, mask=None):
  """(columns, logits): ragged rows, groups of G; the policy has moved a little since the draw."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(B, T, V)).astype(np.float32) * 1.5
  tokens = rng.integers(0, V, (B, T)).astype(np.int32)
  old = logits + 0.3 * rng.normal(size=logits.shape).astype(np.float32)
  ref = logits + 0.3 * rng.normal(size=logits.shape).astype(np.float32)
  lengths = rng.integers(1, T + 1, B)
  mask = np.arange(T) < lengths[:, None] if mask is None else mask
  pick = vocab.Spec(names=("entropy", "logp"))
  stats, other = (vocab.from_logits(jnp.asarray(z), jnp.asarray(tokens), pick) for z in (old, ref))
  out = dict(tokens=tokens, mask=mask, old_logp=np.asarray(stats["logp"]),
             old_entropy=np.asarray(stats["entropy"]), ref_logp=np.asarray(other["logp"]),
             sampled_logp=np.asarray(stats["logp"]), group=np.arange(B, dtype=np.int32) // G,
             verdict=rng.integers(0, 2, B).astype(np.int32) if verdict is None else verdict,
             finished=rng.random(B) < 0.8, noise=rng.random((B, T)).astype(np.float32),
             phase=np.tile(np.arange(T, dtype=np.int32) // 4, (B, 1)),
             row=rng.integers(0, 2**31, (B, 2)).astype(np.uint32))
  own = drawers(fn)
  for name in inspect.signature(fn).parameters:
    if name in own:
      out[name] = own[name](rng)
  missing = [name for name in Term(fn).reads if name not in out and name not in computed(fn)]
  assert not missing, (
      f"{label(fn)}: no values for the columns {', '.join(missing)}. Add to {home_file(fn)}: "
      f"COLUMNS = dict({', '.join(f'{name}=lambda rng: ...' for name in missing)}), with rng a "
      f"numpy generator and as value an array of [{B}], of [{B}, {T}], or a scalar where a "
      "controller holds it; floats are float32. A hyper-parameter stands behind the *, and is none")
  return out, logits
