"""The one equation, and how methods are composed into it.

    loss = sum_bt scale_bt ( prod_k weight^k_bt surrogate_bt(adv) + sum_j beta_j penalty^j_bt )

A method is a pure function of named columns; `term` binds its hyper-parameters; an `Objective`
is a frozen value with terms in its slots. Nothing here knows that a trainer exists.

Partition invariance: everything that ranks, thresholds, averages or squares over the batch is
evaluated by `score` on the whole optimiser batch, without gradient; `loss` then only adds up
tokens, so that any number of micro-batches gives the same gradient. With one micro-batch
`score` reads the statistics that the loss computes anyway; with several it may need one more
forward pass over the batch, without gradient (`needs_score_pass`). `scope="micro"` scores each
micro-batch alone, as some official implementations do.

Unknown is not wrong: where a term reads verdicts, a row whose verdict is unknown (-1) is to every
term as if it were not in the batch. Its column `known` is False, its tokens are outside the mask
that terms see, and its reward is NaN, which statistics over rewards leave out.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from entrolab import aggregate as aggregates
from entrolab import control as controls
from entrolab.batch import COLUMNS, FLAGS, Batch
from entrolab.ranks import masked_mean
from entrolab.statistics import NAMES, Spec
from entrolab.terms import Columns, Term
from entrolab.terms import term as term  # where recipes and other trainers import it from
from entrolab.typing import Array, boolean, real


@dataclasses.dataclass(frozen=True)
class Penalty:
  """beta * outer( sum_bt scale_bt * weight_bt * value_bt ): one entry of `Objective.penalties`."""
  beta: float | str  # a constant, or the name of a value that a controller moves
  value: Term  # of the penalty slot
  weight: Term | None = None  # selects or weighs tokens, without gradient; None: all alike
  scale: Term | None = None  # how the tokens add up; None: as in the rest of the objective
  outer: Term | None = None  # of the sum, such as a squared distance; None: the sum itself


Chain = Term | tuple[Term, ...]


def _chain(terms: Chain) -> tuple[Term, ...]:
  return (terms,) if isinstance(terms, Term) else tuple(terms)


def _penalty(entry: Any) -> Penalty:
  return entry if isinstance(entry, Penalty) else Penalty(*entry)


@dataclasses.dataclass(frozen=True)
class Objective:
  """An algorithm as a value: hashable, printable, a static argument of `jit`.

  A chain is one term or several, of which each reads what the one before it has filled: `rewards`
  or `adv`. Raises TypeError for a term in the wrong slot or a column that nothing fills, when it is
  built.
  """
  surrogate: Term  # the policy-gradient loss of a token
  advantage: Chain = ()  # fills `adv` from `rewards`
  reward: Chain = ()  # fills `rewards` from `verdict`
  weights: Chain = ()  # are multiplied with each other and with the surrogate
  penalties: tuple[Any, ...] = ()  # each a `Penalty`, or `(beta, term)`
  aggregate: Term = Term(aggregates.token_mean)  # the scale: how tokens add up
  control: tuple[controls.Controller, ...] = ()  # terms read their values by name
  vocab: Spec = Spec()  # of the statistics: nucleus, temperatures
  scope: Literal["batch", "micro"] = "batch"  # what `score` sees at once
  extra: tuple[str, ...] = ()  # names of further columns that the rollout fills

  def __post_init__(self) -> None:
    object.__setattr__(self, "reward", _chain(self.reward))
    object.__setattr__(self, "advantage", _chain(self.advantage))
    object.__setattr__(self, "weights", _chain(self.weights))
    object.__setattr__(self, "penalties", tuple(map(_penalty, self.penalties)))
    if self.scope not in ("batch", "micro"):
      raise ValueError(f"scope={self.scope!r}; choices: 'batch', 'micro'")
    known = {*COLUMNS, *self.extra, *NAMES, *controls.init(self.control)}
    for slot, bound in self.terms():
      _fits(slot, bound)
      allowed = known | ({"weight"} if slot == "scale" else set())
      allowed |= {"mean"} if slot == "outer" else set()
      for name in bound.reads:
        if name not in allowed:
          near = difflib.get_close_matches(name, allowed, n=1)
          hint = f"; did you mean {near[0]!r}?" if near else ""
          raise TypeError(f"{bound.name}() reads {name}, which nothing fills{hint}; "
                          f"columns: {', '.join(sorted(allowed))}")
    for entry in self.penalties:
      if isinstance(entry.beta, str) and entry.beta not in controls.init(self.control):
        raise TypeError(f"penalty {entry.value.name} has beta={entry.beta!r}, which no controller "
                        f"names; have: {', '.join(controls.init(self.control)) or 'none'}")

  def terms(self) -> Iterable[tuple[str, Term]]:
    """Every (slot, term) of the objective."""
    yield from (("reward", t) for t in _chain(self.reward))
    yield from (("advantage", t) for t in _chain(self.advantage))
    yield from (("weight", t) for t in _chain(self.weights))
    yield "surrogate", self.surrogate
    yield "scale", self.aggregate
    for entry in self.penalties:
      parts = ("penalty", entry.value), ("weight", entry.weight), ("scale", entry.scale)
      yield from ((slot, t) for slot, t in (*parts, ("outer", entry.outer)) if t is not None)

  @property
  def reads(self) -> frozenset[str]:
    """Every column that some term reads."""
    return frozenset(name for _, bound in self.terms() for name in bound.reads)

  @property
  def statistics(self) -> Spec:
    """The statistics over the vocabulary that terms read; entropy always, for the log."""
    names = {"logp", "entropy"} | (self.reads & set(NAMES))
    return dataclasses.replace(self.vocab, names=tuple(sorted(names)))

  @property
  def needs_score_pass(self) -> bool:
    """Whether `score` reads statistics of the current policy. Then several micro-batches need a
    forward pass over the whole optimiser batch, without gradient, before the first of them."""
    if self.scope == "micro":
      return False
    scored = [t for slot, t in self.terms() if slot in ("advantage", "weight", "scale")]
    scored += [entry.value for entry in self.penalties if entry.outer is not None]
    return any(set(t.reads) & set(NAMES) for t in scored)

  def known(self, columns: Columns) -> Array:
    """bool [B]: the rows that are learned from, whether or not `prepare` has filled the column.

    All but those whose verdict is unknown, where a term reads verdicts, and those that the rollout
    has marked.
    """
    known = columns.get("known", jnp.ones_like(columns["mask"][:, 0], bool))
    if "verdict" in self.reads and "verdict" in columns:
      known = known & (columns["verdict"] >= 0)
    return known

  def prepare(self, batch: Batch, control: Columns | None = None) -> Batch:
    """Fills known, rewards and adv over a whole rollout; shaping that reads the current policy
    waits.

    A reward that is NaN in a known row is a fault of the reward: its advantage is NaN, too, so that
    the update is refused.
    """
    columns = {**batch.columns(), **(control or {})}
    known = self.known(columns)
    columns = _clean({**columns, "known": known})
    for bound in _chain(self.reward):
      rewards = jax.lax.stop_gradient(bound(columns))
      # whatever a reward makes of a row whose verdict is unknown: it is not known
      columns["rewards"] = jnp.where(known, rewards, jnp.nan)
    for bound in _chain(self.advantage):
      if set(bound.reads) & set(NAMES):
        break
      columns["adv"] = _per_token(bound(columns), columns["mask"])
    adv = columns.get("adv")
    if adv is not None and "rewards" in columns:
      fault = known & jnp.isnan(columns["rewards"])
      adv = jnp.where(fault[:, None] & columns["mask"], jnp.nan, adv)
    return batch.replace(known=known, rewards=columns.get("rewards"), adv=adv)

  def shaped(self, columns: Columns) -> dict[str, Any]:
    """The columns as terms see them, with `adv` as the current policy shapes it."""
    columns = _clean({**columns, "known": self.known(columns)})
    for bound in _chain(self.advantage):
      if set(bound.reads) & set(NAMES):
        columns["adv"] = _per_token(bound(columns), columns["mask"])
    return columns

  def score(self, columns: Columns) -> dict[str, Any]:
    """Everything that looks at the whole batch, without gradient: adv, weights, scales, means.

    columns: the batch, the current statistics and the controlled values, by name.
    """
    columns = self.shaped(jax.lax.stop_gradient(dict(columns)))
    mask = columns["mask"]
    weight = jnp.ones_like(real(mask))
    for bound in _chain(self.weights):
      weight = weight * jnp.where(mask, real(bound(columns)), 0.0)
    columns["weight"] = weight
    scored = {"adv": columns.get("adv"), "weight": weight, "scale": self.aggregate(columns)}
    for j, entry in enumerate(self.penalties):
      columns["weight"] = (jnp.ones_like(weight) if entry.weight is None
                           else jnp.where(mask, real(entry.weight(columns)), 0.0))
      share = scored["scale"] if entry.scale is None else entry.scale(columns)
      scored[f"share{j}"] = jnp.where(mask, share, 0.0) * columns["weight"]
      if entry.outer is not None:
        mean = _total(scored[f"share{j}"], entry.value(columns), mask)
        outer = entry.outer
        value, slope = jax.value_and_grad(lambda m, f=outer: f({**columns, "mean": m}))(mean)
        scored[f"mean{j}"], scored[f"slope{j}"] = mean, slope
        scored[f"rest{j}"] = value - slope * mean
    return jax.lax.stop_gradient(scored)

  def loss(self, columns: Columns, scored: Columns | None = None, *, share: float = 1.0,
           fraction: float = 1.0) -> tuple[Array, dict[str, Array]]:
    """The loss of one micro-batch, and its metrics (all of them add up over micro-batches).

    columns: as for `score`, with gradient in the statistics. scored: the rows of this micro-batch
    out of `score` of the whole batch; None scores these columns alone. share: factor on scales
    that were scored for this micro-batch alone. fraction: its part of the batch, in rows.
    """
    columns = _clean({**columns, "known": self.known(columns)})
    scored = self.score(columns) if scored is None else scored
    mask = columns["mask"]
    if scored["adv"] is not None:
      columns = {**columns, "adv": scored["adv"]}
    loss = _total(share * scored["scale"] * scored["weight"], self.surrogate(columns), mask)
    metrics = {f"term/{self.surrogate.name}": loss}
    for j, entry in enumerate(self.penalties):
      mean = _total(share * scored[f"share{j}"], entry.value(columns), mask)
      metrics[f"term/{entry.value.name}"] = mean
      if entry.outer is not None:  # its tangent at the mean of the whole batch
        mean = scored[f"slope{j}"] * mean + fraction * scored[f"rest{j}"]
        metrics[f"term/{entry.outer.name}"] = mean
      beta = columns[entry.beta] if isinstance(entry.beta, str) else entry.beta
      loss = loss + beta * mean
    return loss, jax.lax.stop_gradient({"train/loss": loss, **metrics})

  def tokens(self, columns: Columns, scored: Columns, *, share: float = 1.0) -> dict[str, Array]:
    """What every token adds to the loss: {term: [B, T]}, the surrogate's under "surrogate".

    All of them add up to `loss` without the constants beta_j (outer_j(m) - outer_j'(m) m) of outer
    functions, which no token moves; their gradients add up to that of `loss`. Arguments as there.
    """
    columns = _clean(columns)
    mask = columns["mask"]
    if scored["adv"] is not None:
      columns = {**columns, "adv": scored["adv"]}
    of_term = lambda factor, value: share * factor * jnp.where(mask, value, 0.0)
    out = {"surrogate": of_term(scored["scale"] * scored["weight"], self.surrogate(columns))}
    for j, entry in enumerate(self.penalties):
      beta = columns[entry.beta] if isinstance(entry.beta, str) else entry.beta
      slope = 1.0 if entry.outer is None else scored[f"slope{j}"]
      value = beta * slope * of_term(scored[f"share{j}"], entry.value(columns))
      name = entry.value.name  # two penalties of one function are one entry
      out[name] = value + out.get(name, 0.0)
    return out

  def tokens_changed(self, scored: Columns, batch: Batch) -> Array:
    """Share of valid tokens whose weight, selection or shaped advantage the method changed."""
    mask = batch.counted
    changed = scored["weight"] != 1.0
    if scored["adv"] is not None:
      changed = changed | (scored["adv"] != (0.0 if batch.adv is None else batch.adv))
    for j in range(len(self.penalties)):
      changed = changed | (scored[f"share{j}"] != 0.0)
    return masked_mean(real(changed), mask)

  def means(self, scored: Columns) -> dict[str, Array]:
    """The aggregated means under outer functions, by the name of the penalty."""
    return {entry.value.name: scored[f"mean{j}"]
            for j, entry in enumerate(self.penalties) if entry.outer is not None}


def _fits(slot: str, bound: Term) -> None:
  if not isinstance(bound, Term):
    raise TypeError(f"the {slot} slot has {bound!r}; write term(function, ...)")
  if bound.slot != slot:
    raise TypeError(f"{bound.name}() returns a {bound.slot or 'value without a slot'}; "
                    f"this place takes a {slot}")


def _total(share: Array, value: Array, mask: Array) -> Array:
  """sum(share * value) over valid tokens, whatever stands in the padding."""
  return (share * jnp.where(mask, value, 0.0)).sum()


def _per_token(value: Array, mask: Array) -> Array:
  """[B] or [B, T] -> [B, T], zero on padding, gradient stopped."""
  value = value if value.ndim == 2 else value[:, None]
  return jax.lax.stop_gradient(jnp.where(mask, value, 0.0))


def _clean(columns: Columns) -> dict[str, Any]:
  """Columns as terms may read them: flags as bool, the mask without the rows that are not known,
  and every float [B, T] column zero outside it.

  A NaN there would reach the gradient through 0 * NaN, whatever is masked afterwards.
  """
  flags = {name: boolean(columns[name]) for name in FLAGS & columns.keys()}
  columns = {**columns, **flags}
  mask = columns["mask"]
  if "known" in columns:
    mask = mask & columns["known"][:, None]

  def clean(x):
    per_token = jnp.shape(x) == mask.shape and jnp.issubdtype(jnp.result_type(x), jnp.floating)
    return jnp.where(mask, x, 0.0) if per_token else x

  return {**{name: clean(x) for name, x in columns.items()}, "mask": mask}
