"""Laws that every strategy of entrolab/rollout obeys; a new one joins by a line in `CASES`.

Each is run with an engine that fills all further columns which the strategy does not fill itself.
Rows are known by their keys, the column `row`, so that the laws need not know where a strategy puts
them.
"""

import dataclasses
import functools
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entrolab import rollout, sharding
from entrolab.methods import spear
from entrolab.methods.aepo_agentic import Branching
from entrolab.models import tiny
from entrolab.rollout import columns
from entrolab.rollout.agentic import Agentic
from entrolab.rollout.branch import Cure, visible
from entrolab.rollout.greedy import Greedy
from entrolab.rollout.multiturn import MultiTurn
from entrolab.rollout.oversample import Oversample
from entrolab.rollout.plain import Plain
from entrolab.rollout.replay import Replay
from entrolab.rollout.sft import SFT
from entrolab.rollout.strategy import FEATURES, Request, Sampling, Strategy, check
from entrolab.rollout.switch import Switch
from entrolab.rollout.tempered import Tempered
from entrolab.rollout.votes import Votes
from entrolab.tasks.countdown import Countdown
from tests.multiturn_test import Random, Walk

pytestmark = pytest.mark.usefixtures("compiled")

PROMPTS, SLOTS, STEP = 4, 2, 3
ONE, MESH = (1, 1, 1), (2, 2, 2)
CONTROL = {"temperature": jnp.asarray(1.2, jnp.float32)}
# columns that a rollout may have whatever its strategy
ALWAYS = {"tokens", "mask", "present", "prompt", "prompt_mask", "group", "row", "finished",
          "old_logp", "old_entropy", "sampled_logp", "verdict"}
PLACES = {"group", "trajectory"}  # columns that number the rows of a batch


@dataclasses.dataclass(frozen=True)
class Case:
  """A small instance of a strategy, and what it is run with."""
  strategy: Strategy
  samples: int = 2
  max_tokens: int = 12
  episodes: bool = False  # in the walk of multiturn_test, with its random decoder


CASES = {type(case.strategy): case for case in (
    Case(Plain()),
    Case(Greedy()),
    Case(Tempered(one_in=1)),
    Case(Oversample(size=1)),
    Case(Votes(votes=4, size=1)),
    Case(SFT(), samples=1, max_tokens=18),
    Case(Cure(2, 1, most=4, admissible=visible), samples=4),
    Case(Replay(buffer=spear.Replay(size=2, tools=False), prompts=2)),
    Case(Switch(Plain(), Oversample(size=1), at=STEP)),
    Case(MultiTurn(turns=3, action=4), max_tokens=20, episodes=True),
    Case(Agentic(turns=3, action=4, rule=Branching(samples=4, beam=2, calls=2, scope="own"),
                 initial=2), samples=4, max_tokens=20, episodes=True),
)}


def strategies():
  """Every strategy that a module of entrolab/rollout defines."""
  for module in pkgutil.iter_modules(rollout.__path__):
    for thing in vars(importlib.import_module(f"entrolab.rollout.{module.name}")).values():
      if isinstance(thing, type) and Strategy in thing.__mro__ and dataclasses.is_dataclass(thing):
        if thing.__module__ == f"entrolab.rollout.{module.name}":
          yield thing


FOUND = sorted(strategies(), key=lambda kind: kind.__name__)


def each(*heavy):
  """Every strategy; those whose programs take long to compile run with `-m slow`."""
  marks = lambda kind: [pytest.mark.slow] if kind in heavy else []
  return pytest.mark.parametrize("kind", [
      pytest.param(kind, marks=marks(kind), id=kind.__name__) for kind in FOUND])


@functools.cache
def parts(episodes):
  """(model configuration, parameters, tokenizer, task)."""
  config, params, tokenizer = Random().load() if episodes else tiny.load()
  return config, jax.tree.map(jnp.asarray, params), tokenizer, Walk() if episodes else Countdown()


@functools.cache
def engine(kind, mesh):
  """Fills all further columns that the strategy does not fill itself."""
  case = CASES[kind]
  config, _, tokenizer, task = parts(case.episodes)
  names = [name for name in columns.FILLERS if name not in case.strategy.columns]
  return case.strategy.engine(config, tokenizer, task, sharding.make_mesh(*mesh), names)


def request(kind, chosen=tuple(range(PROMPTS)), **sampling):
  """For the chosen ones of PROMPTS prompts; further prompts follow at further calls."""
  case = CASES[kind]
  _, params, _, task = parts(case.episodes)
  source, calls = task.examples("eval", 5), []

  def next_prompts():
    calls.append(chosen)
    return [source[PROMPTS * (len(calls) - 1) + i] for i in chosen]

  shape = Sampling(prompts=len(chosen), samples=case.samples, max_tokens=case.max_tokens)
  return Request(params, next_prompts, jax.random.key(7), STEP, CONTROL,
                 dataclasses.replace(shape, **sampling))


@functools.cache
def drawn(kind, mesh=ONE, chosen=tuple(range(PROMPTS)), **sampling):
  """The rollout of one step."""
  return CASES[kind].strategy(engine(kind, mesh), request(kind, chosen, **sampling))


def rows(got):
  """{key of a row: {column: its value}}, with the text and the verdict of the row."""
  filled = {name: np.asarray(x) for name, x in got.batch.columns().items()}
  found = {}
  for at, key in enumerate(filled["row"]):
    found[key.tobytes()] = {
        **{name: x[at] for name, x in filled.items() if name not in PLACES},
        "prompt": filled["prompt"][at][filled["prompt_mask"][at]], "prompt_mask": None,
        "text": got.texts[at], "status": got.verdicts[at].status}
  assert len(found) == len(got.texts)  # no two rows have one key
  return found


def same_rows(ours, theirs):
  """Tokens and whatever is counted or judged are equal; statistics are, to rounding."""
  for key, row in ours.items():
    other = theirs[key]
    assert row.keys() == other.keys()
    for name, value in row.items():
      if getattr(value, "dtype", None) == np.float32:
        np.testing.assert_allclose(value, other[name], atol=1e-4, err_msg=name)
      else:
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_every_strategy_has_a_case():
  missing = [kind.__name__ for kind in FOUND if kind not in CASES]
  assert not missing, f"{', '.join(missing)}: add a Case with a small instance to CASES"
  assert set(CASES) == set(FOUND)


@each(Agentic)
def test_it_fills_the_columns_that_it_announces(kind):
  """Fails where `columns` lacks a name, or where one is only filled in some of the steps."""
  case, got = CASES[kind], drawn(kind)
  filled = set(got.batch.columns())
  assert filled - ALWAYS - set(columns.FILLERS) == set(case.strategy.columns) - set(
      columns.FILLERS)
  assert set(columns.FILLERS) <= filled  # announced, or asked of the engine
  count = case.strategy.groups(PROMPTS) * case.samples
  assert {len(x) for x in got.batch.columns().values()} == {count}
  assert len(got.texts) == len(got.verdicts) == len(got.examples) == count


@each(Agentic, MultiTurn)
def test_a_row_alone_is_the_row_of_a_batch(kind):
  """Fails where a key, a shape or a decision depends on the other prompts of the step."""
  alone = rows(drawn(kind, chosen=(2,)))
  same_rows(alone, rows(drawn(kind)))
  assert len(alone) == CASES[kind].strategy.groups(1) * CASES[kind].samples


@each(Agentic, MultiTurn, Cure, Greedy, Tempered)
def test_every_mesh_draws_the_same(kind):
  """Fails where rows are placed otherwise than by `engine.place`, or counted on one device."""
  many, one = drawn(kind, mesh=MESH), drawn(kind)
  same_rows(rows(many), rows(one))
  assert many.texts == one.texts and many.counts == one.counts


def refused(kind, feature, processes=1, **sampling):
  """Whether `check` refuses it, which it does with the strategy's own sentence."""
  strategy = CASES[kind].strategy
  asked = request(kind, **sampling).sampling
  if feature not in strategy.unsupported:
    check(strategy, asked, processes)
    return False
  error = NotImplementedError if feature == "processes" else ValueError
  with pytest.raises(error, match=f"with {kind.__name__}: ") as found:
    check(strategy, asked, processes)
  sentence = strategy.unsupported[feature]
  assert sentence and str(found.value).endswith(sentence)
  return True


@each(Agentic)
def test_refills_are_honoured_or_refused(kind):
  if refused(kind, "refills", refills=1):
    return
  got = drawn(kind, refills=1)
  assert got.refills == 1 and got.sampled == 2 * drawn(kind).sampled
  assert len(got.texts) == len(drawn(kind).texts)
  samples = CASES[kind].samples
  np.testing.assert_array_equal(got.batch.group, np.repeat(np.arange(PROMPTS), samples))


@each(Greedy, Tempered, Oversample, Switch, Votes)
def test_slots_are_honoured_or_refused(kind):
  if refused(kind, "slots", slots=SLOTS):
    return
  same_rows(rows(drawn(kind, slots=SLOTS)), rows(drawn(kind)))


@each()
def test_several_processes_are_accepted_or_refused(kind):
  refused(kind, "processes", processes=2)


@each()
def test_rows_may_be_drawn_ahead_or_that_is_refused(kind):
  strategy, made = CASES[kind].strategy, engine(kind, ONE)
  if refused(kind, "ahead", ahead=1):
    with pytest.raises(TypeError, match="does not draw its rows apart"):
      strategy.dispatch(made, request(kind))
    return
  dispatched = strategy.dispatch(made, request(kind))
  same_rows(rows(made.judged(dispatched, rows=made.rows(dispatched))), rows(drawn(kind)))


def test_features_that_exclude_each_other_whatever_the_strategy():
  check(Plain(), Sampling(refills=1), processes=2)  # every process knows the verdicts of all
  with pytest.raises(ValueError, match="ahead=1 with sampling.refills=1: groups are replaced by"):
    check(Plain(), Sampling(refills=1, ahead=1))


def test_what_a_part_does_not_support_the_whole_does_not():
  rule = Branching(samples=4, beam=2, calls=2, scope="prompt")
  for strategy, want in (
      (Cure(4, 0), {"ahead"}),
      (Cure(2, 1), {"ahead", "slots"}),
      (Switch(Plain(), Plain(), 1), set()),
      (Switch(Cure(4, 0), Cure(2, 1), 1), {"ahead", "slots"}),
      (Replay(Cure(2, 1)), {"ahead", "slots"}),
      (Agentic(turns=3, rule=rule), {"ahead", "slots", "processes"})):
    assert set(strategy.unsupported) == want <= set(FEATURES)


def test_a_switch_of_batches_of_other_sizes_is_refused():
  small, large = (Replay(buffer=spear.Replay(size=4, tools=False), prompts=n) for n in (1, 2))
  assert Switch(small, small, 1).further_rows(4, 1, 1) == 4
  with pytest.raises(ValueError, match="further rows of Replay are 4, those of Replay are 8"):
    Switch(small, large, 1).further_rows(4, 1, 1)
  with pytest.raises(ValueError, match="columns of Plain are"):
    Switch(Plain(), Greedy(), 1)
