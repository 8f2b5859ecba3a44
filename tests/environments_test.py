"""Environments: what is asked can be done, is paid at the end alone, and is said in known words."""

import dataclasses
from fractions import Fraction

import jax
import numpy as np
import pytest

from entrolab.environments import BETWEEN, adapters, judge, play
from entrolab.environments.adapters import Attempts, Gym
from entrolab.environments.calculator import WordProblems, calculate
from entrolab.environments.forms import FIELDS, Form
from entrolab.environments.text_world import CHEST, HAND, NOTHING, TextWorld
from entrolab.environments.tools import Python, ToolUse
from entrolab.models.cloned import Cloned, Words, demonstrations
from entrolab.tasks.countdown import Countdown
from entrolab.verify import Verdict
from entrolab.verify.sandbox.outside import Limits, Sandbox, SandboxError
from entrolab.verify.workers import gymnasium
from tests.evaluating_environment import Evaluates

WORLDS = [TextWorld(), TextWorld(rooms=8, things=5, locked=1.0), Form(7), Form(8), WordProblems()]
name = lambda x: repr(x)


def solved(environment, example, turns=30):
  return play(environment, example, environment.expert, turns)


@pytest.mark.parametrize("environment", WORLDS, ids=name)
def test_the_expert_solves_200_seeds_in_known_words_within_the_limits(environment):
  words = Words(environment.words())
  source = environment.examples("train", 3)
  texts, examples = [], [source[i] for i in range(200)]
  for example in examples:
    pieces, total, done = solved(environment, example)
    assert done and total == 1.0, example
    prompt, *rest = [(text, len(words.encode(text)), acted) for text, acted in pieces]
    assert prompt[0] == environment.reset(example)[1] == example.prompt
    assert prompt[1] <= environment.max_prompt
    assert all(size <= environment.max_observation for _, size, acted in rest if not acted)
    for text, _, _ in (prompt, *rest):
      assert words.decode(words.encode(text)) == text
    texts.append(BETWEEN.join(text for text, _, acted in rest if acted))
  assert {v.status for v in environment.verify(texts, examples)} == {"right"}
  short = [BETWEEN.join(t.split(BETWEEN)[:-1]) for t in texts]  # without the last action: unpaid
  assert {v.status for v in environment.verify(short, examples)} == {"wrong"}


@pytest.mark.parametrize("environment", WORLDS, ids=name)
def test_examples_are_the_same_again_and_other_in_evaluation(environment):
  train, again = (environment.examples("train", 0) for _ in range(2))
  held = environment.examples("eval", 0)
  assert repr(train) == repr(again) != repr(held)
  assert [train[i] for i in range(50)] == [again[i] for i in range(50)]
  assert len({train[i].prompt for i in range(50)} & {held[i].prompt for i in range(50)}) <= 1


def test_a_world_is_paid_once_and_a_step_changes_no_state():
  world = TextWorld(locked=1.0)
  state, _ = world.reset(world.examples("train", 0)[0])
  goal, layout = state.layout.goal, state.layout
  assert state.place(goal) == CHEST
  for text in ("open chest", f"take {goal}", f"drop {goal}", "sing", "go nowhere", "go", ""):
    assert world.step(state, text) == (state, NOTHING, 0.0, False)
  held = dataclasses.replace(state.put("key", HAND), here=layout.chest)
  opened, text, reward, done = world.step(held, "open chest")
  assert opened.open and not held.open and text == f"chest holds {goal} >" and not (reward or done)
  taken = world.step(opened, f"take {goal}")[0]
  assert taken.place(goal) == HAND and opened.place(goal) == CHEST
  assert world.step(taken, f"drop {goal}")[2:] == (0.0, False)  # not where it belongs
  there = dataclasses.replace(taken, here=layout.target)
  assert world.step(there, f"drop {goal}")[2:] == (1.0, True)


def test_worlds_need_many_turns_and_every_room_is_reached_by_its_doors():
  world = TextWorld(rooms=8, locked=1.0)
  source, lengths = world.examples("train", 1), []
  for i in range(200):
    state, _ = world.reset(source[i])
    for room, ways in state.layout.exits:
      assert ways and all(room in state.layout.ways(other).values() for _, other in ways)
    lengths.append(sum(acted for _, acted in solved(world, source[i])[0]))
  assert min(lengths) >= 5 and np.mean(lengths) > 10 and max(lengths) <= 30


def test_a_form_is_right_only_when_all_of_it_is():
  form = Form(6)
  example = form.examples("train", 0)[4]
  state, _ = form.reset(example)
  assert form.step(state, "submit")[2:] == (0.0, True)
  for field, value in state.instruction:
    for nonsense in (field, f"{field}=nonsense", f"{field} {value}", f"fill {field}", "=", ""):
      assert form.step(state, nonsense) == (state, f"next {field}", 0.0, False)
    state = form.step(state, f"{field}={value}")[0]
  assert form.step(state, "sing")[1] == "next submit"
  assert form.step(state, "submit")[2:] == (1.0, True)
  field, value = state.instruction[2]
  wrong = next(v for v in FIELDS[field] if v != value)
  spoilt = form.step(state, f"{field}={wrong}")[0]
  assert form.step(spoilt, "submit")[2:] == (0.0, True)
  mended = form.step(spoilt, f"{field}={value}")[0]
  assert form.step(mended, "submit")[2:] == (1.0, True)


def test_an_eased_form_has_as_many_open_fields_as_its_level():
  form = Form(7)
  source = form.examples("train", 0)
  for level in range(1, 8):
    for i in range(20):
      eased = form.eased(source[i], level)
      state, text = form.reset(eased)
      assert eased.id == source[i].id and text == eased.prompt
      assert len(state.form) == 7 - level and set(state.form) <= set(state.instruction)
      assert sum(acted for _, acted in solved(form, eased)[0]) == level + 1
  assert form.eased(source[0], 7) == source[0]
  with pytest.raises(ValueError, match="level 8: 1 to 7"):
    form.eased(source[0], 8)


def test_a_clerk_slips_as_often_as_told():
  form, rng, right = Form(7, slips=0.3), np.random.default_rng(0), []
  for i in range(200):
    state = form.reset(form.examples("train", 0)[i])[0]
    for _ in range(7):
      state = form.step(state, form.expert(state, rng))[0]
    right += [value == dict(state.form)[field] for field, value in state.instruction]
  assert abs(np.mean(right) - 0.7) < 0.04


def test_the_calculator_computes_exactly():
  rng = np.random.default_rng(0)

  def random(depth):
    if depth == 0:
      n = int(rng.integers(0, 40))
      return str(n), Fraction(n)
    (a, x), (b, y) = random(depth - 1), random(depth - 1)
    op = rng.choice(["+", "-", "*", "/"])
    if op == "/" and y == 0:
      op = "+"
    value = {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else x}[op]
    return f"({a} {op} {b})", value

  for _ in range(200):
    text, value = random(3)
    assert calculate(text) == value, text
  for text, value in (("2 ** 10", 1024), ("-3 + +5", 2), ("17 // 5", 3), ("-17 % 5", 3),
                      ("2 ** -1", Fraction(1, 2)), (" 1+1 ", 2)):
    assert calculate(text) == value


@pytest.mark.parametrize("text", [
    "", "1 +", "a", "1.5", "True", "None", "'a' * 9", "[1]", "f(1)", "1 if 1 else 2", "1 < 2",
    "(1).real", "__import__('os')", "2 ** 17", "9 ** 9 ** 9", "2 ** (1 / 2)", "10 ** 15", "1 / 0",
    "5 % 0", "0 ** -1", "(" * 90, "-" * 99 + "1", "1" * 101, "10 ** 13", "\0", "1;2", "1\n2",
    "x:=1", "lambda: 1", "1_0j", "~1", "1 @ 2", "9" * 90, "1 << 99"])
def test_the_calculator_refuses(text):
  try:
    value = calculate(text)
  except ValueError:
    return
  assert abs(value) <= 10**12, text  # what is left of a long chain of signs


def test_a_tool_that_fails_says_so_and_goes_on():
  task = WordProblems()
  state, _ = task.reset(task.examples("train", 0)[0])
  assert task.step(state, "calc 1 / 0")[1:] == ("error >", 0.0, False)
  assert task.step(state, "sing")[1:] == ("error >", 0.0, False)
  shown = task.step(state, "calc 2 + 2")[0]
  assert shown.shown == "4" and not state.shown
  for wrong in ("", "x", "²", "--5", f"{state.answer + 1}", "1 2"):
    assert task.step(state, f"answer {wrong}")[2:] == (0.0, True)
  assert task.step(state, f"answer {state.answer}")[2:] == (1.0, True)


@pytest.fixture(scope="module")
def confined():
  """Programs can be confined here."""
  try:
    Sandbox()
  except SandboxError as error:
    pytest.skip(str(error))


def test_a_problem_with_an_interpreter_as_its_tool(confined):
  python = Python(Limits(seconds=30.0))
  task, plain = WordProblems(tool=python), WordProblems()
  assert repr(task) == repr(dataclasses.replace(task)) and "0x" not in repr((task, plain))
  examples = [task.examples("train", 0)[i] for i in range(2)]
  states = [task.reset(example)[0] for example in examples]
  said = [task.expert(state) for state in states]
  for state, (after, shown, *rest) in zip(states, task.steps(states, said), strict=True):
    assert (after, shown, *rest) == plain.step(state, plain.expert(state))
    assert shown == f"= {state.answer} >"
    assert task.step(after, task.expert(after))[2:] == (1.0, True)


@pytest.mark.slow
def test_programs_run_under_limits_and_disturb_no_other(confined):
  python = Python(Limits(seconds=20.0, memory=256 << 20), max_characters=60)
  programs = {
      "6 * 7": "42", "print('hi')\n[1, 2]": "hi\n[1, 2]", "x = 3": "", "": "", "# nothing": "",
      "import math\nmath.isqrt(50)": "7", "def f(n):\n  return n + 1\n\nf(1)": "2",
      "print(1)\n1 / 0": "1\nerror: ZeroDivisionError: division by zero",
      "raise SystemExit(3)": "error: SystemExit: 3", "print('x' * 10**6)": "x" * 60,
      "import os\nos._exit(0)": "error: the program ended early",
      "'\\ud800'": "?", "import sys\nsys.stdin.read()": "",
      "global answer\nanswer = None\n5": "5", "0" * 20_001: "error: 20001 characters, at most "}
  for program, shown, want in zip(programs, python(list(programs)), programs.values(),
                                  strict=True):
    assert shown == want or (len(program) > 20_000 and shown.startswith(want)), program
  hostile = {
      "x =": "SyntaxError", "x = 'x' * (1 << 30)": "MemoryError",
      "open('/etc/passwd').read()": "Error", "open('/tmp/x', 'w')": "Error",
      "import socket\nsocket.create_connection(('127.0.0.1', 80))": "Error",
      "import subprocess\nsubprocess.run(['ls'])": "Error", "import os\nos.kill(1, 9)": "Error",
      "import os\nos.write(1, b'{}')\nos.kill(os.getpid(), 9)": "ended early"}
  for program, shown in zip(hostile, python(list(hostile)), strict=True):
    assert shown.startswith("error: ") and hostile[program] in shown, (program, shown)
  short = Python(Limits(seconds=3.0))
  assert short(["while True: pass", "import time\ntime.sleep(60)"]) == [
      "error: over the deadline of 3 s"] * 2


def test_attempts_with_a_tool_are_programs_until_one_is_an_answer():
  asked = []

  def tool(programs):
    asked.append(list(programs))
    return [f"ran {len(program)}" for program in programs]

  task = ToolUse(Countdown(), tool=tool, calls=2)
  example = task.examples("eval", 0)[0]
  state, text = task.reset(example)
  assert text == example.prompt and task.max_prompt == Countdown().max_prompt
  call = "so\n```python\n1 + 1\n```"
  steps = task.steps([state] * 3, [call, example.answer, "1+1=2"])
  assert asked == [["1 + 1\n"]]
  assert [step[1:] for step in steps] == [
      ("```output\nran 6\n```\n", 0.0, False), ("", 1.0, True), ("", 0.0, True)]
  once = steps[0][0]
  twice = task.step(once, call)[0]
  assert (state.made, once.made, twice.made) == (0, 1, 2)
  assert task.step(twice, call)[2:] == (0.0, True)  # no call is left: it is the answer
  assert task.step(twice, example.answer)[2:] == (1.0, True)
  assert task.program("```python\nold\n``` and\n```python\nnew\n```\n") == "new\n"
  for answer in ("7", "```python\n1\n``` so 2", "```python\n1", "```\n1\n```"):
    assert task.program(answer) is None
  texts = [BETWEEN.join([call, example.answer]), BETWEEN.join([example.answer, "1+1=2"])]
  assert [v.status for v in task.verify(texts, [example] * 2)] == ["right", "wrong"]


class Counter:
  """Count to a secret of the seed: an environment with gymnasium's interface."""

  def reset(self, seed=None):
    self.secret, self.at = seed % 5 + 2, 0
    return np.int64(0), {}

  def step(self, action):
    self.at += action
    won = self.at == self.secret
    return np.int64(self.at), np.float64(won), won, self.at > self.secret, {}


def shown(at):
  return f"at {int(at)}"


def test_gymnasium_like_environments():
  gym = Gym(Counter, act=int, show=shown, size=100)
  source = gym.examples("train", 0)
  assert repr(gym) == repr(dataclasses.replace(gym)) and "0x" not in repr(gym)
  state, text = gym.reset(source[1])
  assert text == "at 0" and state.seed % 5 + 2 == 3
  assert gym.step(state, "many")[1:] == (gym.unread, 0.0, False)
  one = gym.step(state, "1")[0]
  two, text, reward, done = gym.step(one, "1")
  assert (text, reward, done) == ("at 2", 0.0, False)
  assert gym.step(two, "1")[1:] == ("at 3", 1.0, True)
  assert gym.step(one, "2")[1:] == ("at 3", 1.0, True)  # an old state is replayed
  assert gym.step(two, "2")[1:] == ("at 4", 0.0, True)
  assert one.actions == ("1",) and two.actions == ("1", "1")
  verdicts = gym.verify([BETWEEN.join("111"), "3", BETWEEN.join("22"), "1"], [source[1]] * 4)
  assert [v.status for v in verdicts] == ["right", "right", "wrong", "wrong"]
  assert gym.examples("eval", 0)[1].source != source[1].source


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(adapters, "SECONDS", 2.0)


def test_an_environment_that_evaluates_actions_does_so_in_a_worker(quick, tmp_path):
  gym = Gym(Evaluates, size=100)
  path = tmp_path / "written"
  example = gym.examples("train", 0)[1]
  state, _ = gym.reset(example)
  texts = [f"__import__('pathlib').Path({str(path)!r}).write_text('x')",
           "__import__('os')._exit(0)", "9**9**9**9", "float('nan')", "1 / 0",
           "[0] * 10**12", "0.5", "1"]
  steps = gym.steps([state] * len(texts), texts)
  assert [step[2] for step in steps[-2:]] == [0.5, 1.0] and not path.exists()
  for after, text, reward, done in steps[:6]:
    assert np.isnan(reward) and (done and after.lost and not text or after.actions)
  verdicts = gym.verify(texts, [example] * len(texts))
  assert [v.status for v in verdicts] == ["unknown"] * 6 + ["wrong", "right"], verdicts
  assert judge(float("inf"), 1, "done").status == "unknown" and not path.exists()


def test_an_environment_is_found_by_its_name():
  for make in (lambda: Counter(), Counter(), dataclasses.dataclass):
    if make is dataclasses.dataclass:
      assert gymnasium.reference(make)[2] == "dataclass"
      continue
    with pytest.raises(ValueError, match="by its name"):
      Gym(make)
  module, file, name = gymnasium.reference(Evaluates)
  assert gymnasium.found(module, file, name) is Evaluates
  assert gymnasium.found("no_such_module", file, name).__name__ == name


class Unsure(Countdown):
  """A task that knows nothing of an answer."""

  def verify(self, texts, examples):
    return [Verdict("unknown", "who knows")] * len(texts)


@pytest.mark.parametrize("wrap", [Attempts, lambda task: ToolUse(task, tool=lambda programs: [])])
def test_an_answer_of_which_nothing_is_known_leaves_its_episode_unknown(wrap):
  task = wrap(Unsure())
  example = task.examples("eval", 0)[0]
  _, _, reward, done = task.step(task.reset(example)[0], "7")
  assert done and judge(reward, 1, "done").status == "unknown"


def test_attempts_at_a_task_with_one_answer():
  twice = Attempts(Countdown(), tries=2)
  example = twice.examples("eval", 0)[0]
  state, text = twice.reset(example)
  assert text == example.prompt
  once, text, reward, done = twice.step(state, "1+1=2")
  assert (text, reward, done) == (twice.again, 0.0, False)
  assert twice.step(once, "1+1=2")[2:] == (0.0, True)
  assert twice.step(once, example.answer)[2:] == (1.0, True)
  assert twice.step(state, example.answer)[2:] == (1.0, True)
  texts = [BETWEEN.join(["1+1=2", example.answer]), "1+1=2"]
  assert [v.status for v in twice.verify(texts, [example] * 2)] == ["right", "wrong"]


def test_attempts_at_reasoning_gym():
  pytest.importorskip("reasoning_gym")
  from entrolab.tasks.gym import ReasoningGym
  task = Attempts(ReasoningGym("chain_sum", size=20))
  example = task.examples("train", 0)[3]
  state, text = task.reset(example)
  assert text == example.prompt
  state, _, reward, done = task.step(state, "<answer>nothing</answer>")
  assert not reward and not done
  assert task.step(state, f"<answer>{example.answer}</answer>")[2:] == (1.0, True)


def test_words_are_tokens_and_digits_are_their_own():
  words = Words(("go", "12", "1", "2", "+"))
  assert words.vocab_size % 8 == 0 and words.decode(words.encode("go 1 + 22")) == "go 1 + 22"
  assert words.encode("12") == [words.ids["1"], words.ids["2"]]
  assert words.decode([0, *words.encode("go"), 1, 0]) == "go"
  with pytest.raises(ValueError, match="no token for 'stay'"):
    words.encode("go stay")


def test_a_cloned_model_learns_what_was_shown_and_is_the_same_again():
  model = Cloned(Form(2), steps=40, batch=16, turns=4, length=24, pool=64, width=16, layers=1,
                 heads=2, lr=1e-2)
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # for optax
    (config, params, words), again = model.load(), model.load()
  assert config.vocab_size == words.vocab_size
  for a, b in zip(params["layers"].values(), again[1]["layers"].values(), strict=True):
    np.testing.assert_array_equal(a, b)
  tokens, acted = demonstrations(model, words)
  texts = words.decode(tokens[0])
  assert texts.startswith(Form(2).examples("train", 1_000_003)[0].prompt)
  ends = (tokens == words.eos_id)
  assert (ends & acted).sum() == ends.sum() == 3 * model.pool and not acted[:, 0].any()
