"""From golden files to methods: one table of names, one account of every array and hyper-parameter.

A golden file `SLUG_CASE.npz` holds inputs and outputs of an official implementation. The function
`golden(case)` of `tests/methods/SLUG_test.py`, or of `tests/analysis`, runs ours on the inputs and
compares every output. Files that compare several methods are listed in `SHARED`.
Nothing is skipped in silence: an array that is neither an input, nor compared, nor ignored with a
reason fails the file, and so do a hyper-parameter (an entry of `config`, or of any other stored
JSON) that is neither read, nor the one value that the adapter computes, nor ignored with a reason,
and a file whose slug nobody knows.
"""

import contextlib
import dataclasses
import importlib
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from entrolab import aggregate, vocab
from entrolab.methods import kl
from entrolab.objective import term
from entrolab.typing import Array, Bool, Float, Scale

VALUE, GRADIENT = 1e-6, 1e-5  # largest relative error, in float64
# golden name -> column of a batch
COLUMNS = dict(tokens="tokens", response_mask="mask", old_logprobs="old_logp",
               ref_logprobs="ref_logp", advantages="adv", rewards="rewards",
               rollout_logprobs="sampled_logp")
INPUTS = {*COLUMNS, "logits", "group_ids"}  # every file may carry them, used or not
DESCRIBES = ("source", "note", "mended")  # entries of a config that are no hyper-parameters
# golden files of several methods -> the test file that compares them
SHARED = {"base_objectives_adv": "tests.methods.advantages_test",
          "base_objectives_misc": "tests.methods.value_loss_test",
          "base_objectives_pg": "tests.methods.surrogates_test",
          "base_objectives_rollcorr": "tests.methods.rollout_correction_test",
          "base_objectives_trl": "tests.methods.trl_losses_test"}
METHODS = str(pathlib.Path("entrolab/methods"))
# for programs that run a few times, in a third of the time to compile: without LLVM's passes, and
# without XLA's fusion emitters for the CPU, whose code LLVM takes twice as long to translate
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
# compiled once for all files of a shape; outside jit every call compiles the nucleus's loops again
statistics = jax.jit(vocab.from_logits, static_argnums=2)


class Mismatch(AssertionError):
  """A stored array that ours does not reproduce, or that nobody accounts for."""


class Config(dict):
  """A stored JSON object that knows which of its entries were read; `keys` and `in` read none."""

  def __init__(self, entries, path, name):
    super().__init__({key: _tracked(value, path, f"{name}.{key}")
                      for key, value in entries.items()})
    self.path, self.name, self.seen = path, name, set()
    self.ignored = {}

  def __getitem__(self, key):
    if key not in self:
      raise Mismatch(f"{self.path.name}: {self.name} has no {key}; has: {', '.join(self)}")
    self.seen.add(key)
    return super().__getitem__(key)

  def get(self, key, default=None):
    return self[key] if key in self else default

  def items(self):
    self.seen.update(self)
    return super().items()

  def values(self):
    self.seen.update(self)
    return super().values()

  def expect(self, **known):
    """For each entry that is there: the one value, or the tuple of values, that ours computes."""
    for key, values in known.items():
      values = values if isinstance(values, tuple) else (values,)
      if key in self and self[key] not in values:
        raise Mismatch(f"{self.path.name}: {self.name}.{key} is {self[key]!r}; the adapter "
                       f"computes {' or '.join(map(repr, values))}")

  def ignore(self, reason, *keys):
    """Leaves entries out, and says why: in this file they cannot act."""
    if len(reason) < 8:
      raise ValueError(f"ignore({keys}): say why")
    self.ignored.update(dict.fromkeys((key for key in keys if key in self), reason))

  def unread(self):
    """Paths of the entries that nobody accounts for."""
    for key in self.keys():
      value = super().__getitem__(key)
      if key not in self.seen and key not in self.ignored and key not in DESCRIBES:
        yield f"{self.name}.{key}"
      elif key in self.seen:
        yield from _unread(value)


def _tracked(value, path, name):
  if isinstance(value, dict):
    return Config(value, path, name)
  if isinstance(value, list):
    return [_tracked(x, path, f"{name}[{i}]") for i, x in enumerate(value)]
  return value


def _unread(value):
  if isinstance(value, Config):
    yield from value.unread()
  elif isinstance(value, list):
    for x in value:
      yield from _unread(x)


@dataclasses.dataclass
class Row:
  """One compared array: its largest relative error and the tolerance."""
  name: str
  error: float
  tolerance: float


class Case:
  """The arrays of one golden file, each of which has to be accounted for.

  hasty: the first array out of tolerance raises Mismatch at once, and not `finish` for all.
  """

  def __init__(self, path, *, hasty=False):
    self.path, self.hasty = pathlib.Path(path), hasty
    with np.load(self.path, allow_pickle=False) as stored:
      self.arrays = {name: stored[name] for name in stored.files}
    self.used: set[str] = set()
    self.rows: list[Row] = []
    self.ignored: dict[str, str] = {}
    self.broken: list[str] = []
    self.parsed = {}

  def __contains__(self, name):
    return name in self.arrays

  def text(self, name):
    """A stored JSON string; its objects keep account of what is read."""
    self.used.add(name)
    if name not in self.parsed:
      self.parsed[name] = _tracked(json.loads(str(self.arrays[name])), self.path, name)
    return self.parsed[name]

  @property
  def config(self):
    """The hyper-parameters of the file."""
    return self.text("config")

  def raw(self, name):
    """An input as stored, numpy."""
    self.used.add(name)
    return self.arrays[name]

  def __getitem__(self, name):
    """An input as a jax array; masks become bool, floats 64 bits wide."""
    value = self.raw(name)
    value = value > 0 if name == "response_mask" else value
    return jnp.asarray(value, np.float64) if value.dtype.kind == "f" else jnp.asarray(value)

  def columns(self, **more):
    """The batch columns of the file, with noise zero (ties by position), and `more`."""
    own = {column: self[name] for name, column in COLUMNS.items() if name in self}
    return {**own, "noise": jnp.zeros(own["mask"].shape), **more}

  def live(self, logits, **spec):
    """logp, entropy (and what spec.names asks for) of the stored tokens under these logits."""
    names = spec.pop("names", ("logp", "entropy"))
    return statistics(logits, self["tokens"], vocab.Spec(names=names, **spec))

  def compare(self, name, value, *, where=None, tolerance=None):
    """Compares with the stored array of that name: masks exactly, NaN where it has NaN."""
    want = np.asarray(self.raw(name))
    got = np.asarray(value)
    if got.shape != want.shape:
      raise Mismatch(f"{self.path.name}: {name} has shape {want.shape}, ours {got.shape}")
    if where is not None:
      keep = np.broadcast_to(np.asarray(where, bool), want.shape)
      want, got = want[keep], got[keep]
    if tolerance is None:
      tolerance = GRADIENT if name.startswith("grad") else VALUE
    self.add(Row(name, _error(got, want), tolerance))

  def add(self, row):
    """Takes in a comparison."""
    self.rows.append(row)
    if self.hasty and not row.error <= row.tolerance:
      raise Mismatch(f"{self.path.name}: {row.name} is off by {row.error:.2e}")

  def require(self, holds, sentence):
    """Fails the file with this sentence unless it holds, without hiding what else is wrong."""
    if not holds:
      self.broken.append(sentence)
      if self.hasty:
        raise Mismatch(f"{self.path.name}: {sentence}")

  def ignore(self, name, reason):
    """Leaves an array out, and says why."""
    if len(reason) < 8:
      raise ValueError(f"ignore({name!r}): say why")
    if name in self:
      self.used.add(name)
      self.ignored[name] = reason

  def finish(self):
    """The worst row; raises Mismatch when one is out of tolerance or an array is unaccounted."""
    left = sorted(self.arrays.keys() - self.used - INPUTS)
    if left:
      raise Mismatch(f"{self.path.name}: neither input, compared nor ignored: {', '.join(left)}")
    if not self.rows:
      raise Mismatch(f"{self.path.name}: nothing was compared")
    bad = [f"{r.name} is off by {r.error:.2e} (at most {r.tolerance:.0e})" for r in self.rows
           if not r.error <= r.tolerance]
    unread = [key for value in self.parsed.values() for key in _unread(value)]
    if unread:
      bad.append(f"hyper-parameters that nobody reads: {', '.join(unread)}")
    for config in (value for value in self.parsed.values() if isinstance(value, Config)):
      self.ignored.update({f"{config.name}.{key}": why for key, why in config.ignored.items()})
    if self.broken or bad:
      raise Mismatch(f"{self.path.name}: " + "; ".join([*self.broken, *bad]))
    return max(self.rows, key=lambda r: r.error / r.tolerance)


def _error(got, want):
  if want.dtype.kind in "bSU" or got.dtype.kind == "b":
    return float((got.astype(bool) != want.astype(bool)).any()) if want.dtype.kind not in "SU" \
        else float((got != want).any())
  got, want = got.astype(np.float64), want.astype(np.float64)
  if got.size == 0:
    return 0.0
  odd = ~np.isfinite(want)
  if not np.array_equal(got[odd], want[odd], equal_nan=True) or not np.isfinite(got[~odd]).all():
    return float("inf")
  got, want = got[~odd], want[~odd]
  if got.size == 0:
    return 0.0
  floor = 1e-3 * np.abs(want).max() + 1e-9
  return float((np.abs(got - want) / (np.abs(want) + floor)).max())


def slugs():
  """Every slug that has an adapter, and its module: the test files of methods and analyses."""
  here = pathlib.Path(__file__).parent
  own = {path.name.removesuffix("_test.py"): f"tests.{folder}.{path.stem}"
         for folder in ("methods", "analysis") for path in (here / folder).glob("*_test.py")}
  return {**own, **SHARED}


def slug_of(path):
  """The slug of a golden file, the longest that fits; raises Mismatch where none does."""
  stem, known = pathlib.Path(path).stem, slugs()
  found = [slug for slug in sorted(known, key=len) if stem == slug or stem.startswith(slug + "_")]
  if not found:
    raise Mismatch(f"{stem}.npz: no method of that name; have: {', '.join(sorted(known))}")
  return found[-1]


def adapter(path):
  """The `golden` function of a file; raises Mismatch for a slug that nobody knows."""
  name = slugs()[slug_of(path)]
  root = str(pathlib.Path(__file__).parents[1])
  if root not in sys.path:
    sys.path.insert(0, root)
  module = importlib.import_module(name)
  if not hasattr(module, "golden"):
    raise Mismatch(f"{pathlib.Path(path).name}: {name} has no golden(case)")
  return module.golden


@contextlib.contextmanager
def methods_called(names):
  """Adds to the set `names` every file of entrolab/methods of which a function is called."""
  def note(frame, *_):
    file = frame.f_code.co_filename
    if METHODS in file:
      names.add(pathlib.PurePath(file).stem)

  before = sys.gettrace()
  sys.settrace(note)  # sees calls alone, as `note` asks for no line events
  try:
    yield
  finally:
    sys.settrace(before)


@contextlib.contextmanager
def double():
  """64-bit types on; the name moved between the supported versions of jax."""
  if hasattr(jax, "enable_x64"):
    enable = jax.enable_x64
  else:
    from jax.experimental import enable_x64 as enable
  with enable(True):
    yield


def check(path):
  """Runs one file; returns its finished Case and worst Row, or raises Mismatch."""
  run, case = adapter(path), Case(path)
  with double():
    run(case)
  return case, case.finish()


def selected_sum(mask: Bool[Array, "B T"], weight: Float[Array, "B T"]) -> Scale:
  """Mean over rows with a selected token of the sum over their selected tokens."""
  return aggregate.sequence_sum(mask & (weight != 0.0))


# the names of verl's `agg_loss`: over all tokens, and over those with a weight alone
AGGREGATES = {"token-mean": aggregate.token_mean, "seq-mean-token-sum": aggregate.sequence_sum,
              "seq-mean-token-mean": aggregate.sequence_mean}
SELECTED = {"token-mean": aggregate.selected_mean, "seq-mean-token-sum": selected_sum,
            "seq-mean-token-mean": aggregate.selected_sequence_mean}


def aggregation(config, key="agg", *, width, rest="", names=AGGREGATES, default=None):
  """The aggregation that a config names, as a term; `rest` is what may stand behind the name.

  width: T, by which seq-mean-token-sum-norm divides the sum over rows where no `loss_scale_factor`
  is stored. default: the name where the config has none.
  """
  text = config[key] if default is None else config.get(key, default)
  found = re.match(r"[a-z]+(-[a-z]+)+", text)
  name, behind = (found[0], text[found.end():]) if found else (text, "")
  if behind not in ("", rest):
    raise Mismatch(f"{config.path.name}: {config.name}.{key} is {text!r}; nobody reads {behind!r}")
  if name == "seq-mean-token-sum-norm" and names is AGGREGATES:
    return term(aggregate.fixed_sum, divisor=float(config.get("loss_scale_factor") or width))
  if name not in names:
    raise Mismatch(f"{config.path.name}: {config.name}.{key} is {text!r}; choices: "
                   f"{', '.join(names)}")
  return term(names[name])


def divergence(config, key="kl"):
  """The estimator of the KL that a config names: k1, k2, k3, or "k3 clamped to [-10,10]"."""
  text = config[key]
  if found := re.fullmatch(r"k3 clamped to \[-([0-9.e+-]+), ?([0-9.e+-]+)\]", text):
    if float(found[1]) == float(found[2]):
      return term(kl.k3, cap=float(found[1]))
  plain = {"k1": term(kl.k1), "k2": term(kl.k2), "k3": term(kl.k3, cap=float("inf"))}
  if text not in plain:
    raise Mismatch(f"{config.path.name}: {config.name}.{key} is {text!r}; choices: "
                   f"{', '.join(plain)}, 'k3 clamped to [-c,c]'")
  return plain[text]


def weighted_mean(case, scale, value):
  """sum(scale value) over the file's valid tokens."""
  mask = case["response_mask"]
  return (scale({"mask": mask}) * jnp.where(mask, value, 0.0)).sum()


def per_group(case, fn, *columns, **knobs):
  """A group function on the file's ragged, possibly scattered groups, one group at a time."""
  ids, out = case.raw("group_ids"), np.zeros(np.shape(columns[0]))
  for one in np.unique(ids):
    rows = np.flatnonzero(ids == one)
    out[rows] = fn(*(jnp.asarray(column)[rows] for column in columns), size=len(rows), **knobs)
  return jnp.asarray(out)


def whole_groups(case):
  """The size of the file's groups when they are contiguous and alike, else None."""
  ids = case.raw("group_ids")
  size = int((ids == ids[0]).sum())
  tidy = len(ids) % size == 0 and (ids.reshape(-1, size) == ids[::size, None]).all()
  return size if tidy and len(np.unique(ids)) * size == len(ids) else None


def loss_and_grad(objective, case, logits, **more):
  """(loss, gradient by logits) of an objective on the file's columns at these logits."""
  spec = objective.statistics

  def loss(z):
    live = statistics(z, case["tokens"], spec)
    return objective.loss({**case.columns(**more), **live})[0]

  return jax.value_and_grad(loss)(logits)


def slack(case, objective, live, loss):
  """The tolerance of a loss whose terms cancel: 3e-8 of their sizes, since the row means of the
  official code divide by n + 1e-8."""
  columns = {**case.columns(), **live}
  scored = objective.score(columns)
  terms = jnp.abs(scored["scale"] * scored["weight"] * objective.surrogate(columns))
  size = jnp.where(columns["mask"], terms, 0.0).sum()
  return max(VALUE, float(3e-8 * size / jnp.maximum(jnp.abs(loss), 1e-12)))
