"""The contract of `tasks.task`: what holds for every task and environment of the package.

A class of the package that has no instance in INSTANCES fails here by its name.
"""

import dataclasses
import importlib
import inspect
import json
import pkgutil
import types

import numpy as np
import pytest

import entrolab
from entrolab.environments.adapters import Attempts, Gym
from entrolab.environments.calculator import WordProblems
from entrolab.environments.forms import Form
from entrolab.environments.text_world import TextWorld
from entrolab.environments.tools import ToolUse
from entrolab.models import tiny
from entrolab.models.cloned import Words
from entrolab.tasks.arithmetic import Arithmetic
from entrolab.tasks.countdown import Copies, Countdown
from entrolab.tasks.gym import ReasoningGym
from entrolab.tasks.task import SPLITS, Environment, Task
from entrolab.tasks.written import Hub, Jsonl
from entrolab.verify import exact

EXAMPLES = 30  # of each split that the tests read
TEXTS = ("", " ", "7", "\0\ud800\u202e４２ é\n", "9" * 10_000, "(" * 10_000, "step by step " * 999)


class Counter:
  """Count to a secret: an environment with gymnasium's interface."""

  def reset(self, seed):
    self.secret, self.at = seed % 5 + 2, 0
    return np.int64(0), {}

  def step(self, action):
    self.at += action
    return np.int64(self.at), float(self.at == self.secret), self.at >= self.secret, False, {}


def no_programs(programs):
  """A tool that starts no process."""
  return ["error: not run"] * len(programs)


# class -> a small instance, of the path of a JSONL file for the classes that read one
INSTANCES = {
    Arithmetic: lambda path: Arithmetic("sum3"),
    Countdown: lambda path: Countdown(fixed=40),
    Copies: lambda path: Copies(Countdown(), indices=(0, 3), copies=20),
    ReasoningGym: lambda path: ReasoningGym("chain_sum", size=EXAMPLES),
    Jsonl: lambda path: Jsonl(path, verifier=exact.verify_integer, max_prompt=64),
    TextWorld: lambda path: TextWorld(locked=1.0),
    Form: lambda path: Form(3, slips=0.5),
    WordProblems: lambda path: WordProblems(),
    Gym: lambda path: Gym(Counter, act=int, size=100),
    Attempts: lambda path: Attempts(Countdown(), tries=2),
    ToolUse: lambda path: ToolUse(Countdown(), tool=no_programs)}
NOT_TESTED = {Hub: "downloads its rows; data_test replaces the library that does"}

# The optional members that a class has; of the others a call must raise TypeError.
OPTIONAL = {"solution": (Countdown,), "eased": (Form,), "expert": (TextWorld, Form, WordProblems)}


class Characters:
  """A tokenizer of a token for each character."""
  name, pad_id, eos_id, stop_ids, vocab_size = "characters", 0, 1, (1,), 0x110000

  def encode(self, text):
    return [ord(c) for c in text]

  def decode(self, ids):
    return "".join(map(chr, ids))

  def chat(self, messages):
    return messages[-1]["content"]


def concrete(base):
  """The classes of the package that subclass `base` and can be made, protocols left out."""
  for module in pkgutil.walk_packages(entrolab.__path__, "entrolab."):
    if module.name.split(".")[1] in ("tasks", "environments"):
      importlib.import_module(module.name)
  found, todo = set(), [base]
  while todo:
    for kind in todo.pop().__subclasses__():
      todo.append(kind)
      if kind.__module__.startswith("entrolab.") and not vars(kind).get("_is_protocol", False):
        found.add(kind)
  return found


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  rows = [{"problem": f"{n} + {n}", "answer": str(2 * n)} for n in range(10 * EXAMPLES)]
  file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(file)


@pytest.fixture(params=INSTANCES, ids=lambda kind: kind.__name__)
def task(request, path):
  if request.param is ReasoningGym:
    pytest.importorskip("reasoning_gym")
  return INSTANCES[request.param](path)


def some(task, split, seed=0):
  source = task.examples(split, seed)
  return [source[at] for at in range(min(EXAMPLES, len(source)))]


def tokenizer_of(task):
  """That of the model that a preset trains on the task."""
  if isinstance(task, TextWorld | Form | WordProblems):
    return Words(task.words())
  if isinstance(task, Countdown | Copies | Attempts | ToolUse):
    return tiny.load()[2]
  return Characters()


def is_environment(task):
  return Environment in type(task).__mro__


def raises_type_error(member):
  return inspect.isfunction(member) and "raise TypeError" in inspect.getsource(member)


def test_every_class_is_in_the_table():
  missing = concrete(Task) - INSTANCES.keys() - NOT_TESTED.keys()
  assert not missing, f"no instance of {sorted(kind.__name__ for kind in missing)} in INSTANCES"
  assert not INSTANCES.keys() - concrete(Task)
  assert all(NOT_TESTED.values())


def test_a_class_without_an_instance_is_found():
  kind = types.new_class("Forgotten", (Task,), {}, lambda body: body.update(
      {"__module__": "entrolab.tasks.forgotten"}))
  assert kind in concrete(Task)
  assert kind not in INSTANCES
  kind.__module__ = "tests"  # not of the package: the test above does not see it


def test_every_required_member_is_defined(task):
  """A protocol's `...` would return None in silence."""
  required = ["max_prompt", "examples", "prompt", "verify"]
  if is_environment(task):
    required += ["max_observation", "reset", "step"]
  for name in required:
    definer = next(kind for kind in type(task).__mro__
                   if name in vars(kind) or name in vars(kind).get("__annotations__", {}))
    assert definer not in (Task, Environment), f"{type(task).__name__} does not define {name}"


def test_it_is_a_frozen_dataclass_whose_repr_is_stable(task, path):
  again = INSTANCES[type(task)](path)
  assert type(task).__dataclass_params__.frozen
  assert repr(task) == repr(again) == repr(dataclasses.replace(task))
  assert " at 0x" not in repr(task) and repr(task).startswith(type(task).__name__)
  for split in SPLITS:
    name = repr(task.examples(split, 3))
    assert name == repr(again.examples(split, 3)) and " at 0x" not in name
  assert repr(task.examples("train", 0)) != repr(task.examples("eval", 0))


@pytest.mark.parametrize("split", SPLITS)
def test_examples_depend_on_split_and_seed_alone_and_have_unique_ids(task, path, split):
  again = INSTANCES[type(task)](path)
  for seed in (0, 1):
    first = some(task, split, seed)
    source = again.examples(split, seed)
    assert [source[at] for at in reversed(range(len(first)))] == first[::-1]  # in any order
    assert len({example.id for example in first}) == len(first)
    with pytest.raises(IndexError):
      source[len(source)]
  with pytest.raises(ValueError, match="split 'test'; choices: train, eval"):
    task.examples("test", 0)


def test_splits_share_no_problem_and_every_seed_has_the_same_evaluation(task):
  held = some(task, "eval")
  assert held == some(task, "eval", seed=1)
  questions = [task.question(example) for example in held]
  assert all(questions) and len({*questions}) > 1
  for seed in (0, 1):
    assert not {*questions} & {task.question(example) for example in some(task, "train", seed)}


def test_prompts_fit(task):
  """Of listed rows `prompts.fitting` leaves out those that do not."""
  tokenizer = tokenizer_of(task)
  source = task.examples("train", 0)
  for example in some(task, "train") + some(task, "eval"):
    ids = task.prompt(example, tokenizer)
    assert ids and all(isinstance(token, int) for token in ids)
    assert source.listed or len(ids) <= task.max_prompt


def test_any_text_has_a_verdict(task):
  examples = some(task, "eval")[:2]
  for example in examples:
    verdicts = task.verify(TEXTS, [example] * len(TEXTS))
    assert len(verdicts) == len(TEXTS)
    assert all(verdict.why and verdict.status != "right" for verdict in verdicts[:2]), verdicts
  assert task.verify([], []) == []
  for text in TEXTS:
    key = task.key(text)
    assert key is None or isinstance(key, str)
  assert task.key("") is None


def test_optional_members_work_or_name_the_class(task):
  example = some(task, "train")[0]
  calls = {"solution": lambda: task.solution(example), "eased": lambda: task.eased(example, 1)}
  if is_environment(task):
    calls["expert"] = lambda: task.expert(task.reset(example)[0], np.random.default_rng(0))
    assert task.as_environment() is task
  else:
    with pytest.raises(TypeError, match=type(task).__name__):
      task.as_environment()
  for name, call in calls.items():
    if isinstance(task, OPTIONAL[name]):
      assert call()
    else:
      with pytest.raises(TypeError, match=f"{type(task).__name__} has no {name}"):
        call()
  if isinstance(task, OPTIONAL["solution"]):
    assert task.verify([task.solution(example)], [example])[0].status == "right"
  assert isinstance(task.think_end, str) and isinstance(task.step_end, str)
  assert isinstance(task.stop, tuple)


def test_the_table_of_optional_members_is_complete():
  """The test above calls every member of the protocols whose default raises."""
  optional = {name for base in (Task, Environment) for name, member in vars(base).items()
              if not name.startswith("_") and raises_type_error(member)}
  assert optional == {*OPTIONAL, "as_environment"}


@pytest.mark.parametrize("kind", [kind for kind in INSTANCES if Environment in kind.__mro__],
                         ids=lambda kind: kind.__name__)
def test_a_step_changes_no_state(kind, path):
  task = INSTANCES[kind](path)
  example = some(task, "train")[0]
  state, text = task.reset(example)
  assert isinstance(text, str)
  before = repr(state)
  for action in ("", "sing", "é\0", "7"):
    first, second = task.step(state, action), task.step(state, action)
    assert first[1:] == second[1:] and first[0] == second[0]
    assert repr(state) == before or isinstance(task, Gym)  # its live environment has an address
    assert isinstance(first[1], str) and isinstance(first[2], float) and isinstance(first[3], bool)
  assert task.steps([state] * 2, ["sing", "7"])[0][1:] == task.step(state, "sing")[1:]
