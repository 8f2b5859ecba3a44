"""Data order and tasks: what a seed fixes, what a checkpoint resumes, what a bad row says."""

import json
import sys
import types
from typing import get_args

import grain
import numpy as np
import pytest

from entrolab.tasks import prompts, written
from entrolab.tasks.arithmetic import Arithmetic, Kind
from entrolab.tasks.countdown import Countdown
from entrolab.tasks.gym import ReasoningGym
from entrolab.tasks.task import Example, Lazy
from entrolab.tasks.written import Chat, FewShot, Hub, Jsonl
from entrolab.verify import choice, exact

SMALL = Countdown(fixed=24)


class Words:
  """A tokenizer of one token a word, for tests: spaces are not kept."""
  name, pad_id, eos_id, stop_ids = "words", 0, 1, (1,)
  words = ["<pad>", "</s>", "7", "7\n", "\n", "ask", "x"]
  vocab_size = len(words)

  def encode(self, text):
    return [self.words.index(w) for w in text.split()]

  def decode(self, ids):
    return "".join(self.words[i] for i in ids if i > 1)

  def chat(self, messages):
    return "".join(f"<{m['role']}>{m['content']}" for m in messages)


def ids(batch):
  return [e.id for e in batch]


def take(it, steps):
  return [next(it) for _ in range(steps)]


def test_order_is_fixed_by_the_seed_alone():
  first = take(prompts.iterator(SMALL, 3, 8), 7)
  assert first == take(prompts.iterator(SMALL, 3, 8), 7)
  assert first != take(prompts.iterator(SMALL, 4, 8), 7)


def test_an_epoch_holds_every_problem_once_and_the_next_is_in_another_order():
  steps = [ids(b) for b in take(prompts.iterator(SMALL, 0, 8), 6)]
  first, second = sum(steps[:3], []), sum(steps[3:], [])
  assert sorted(first) == sorted(second) == list(range(24))
  assert first != second


def test_an_incomplete_last_batch_is_dropped_so_that_no_batch_repeats_a_problem():
  for batch in take(prompts.iterator(SMALL, 0, 7), 20):
    assert len(set(ids(batch))) == 7


@pytest.mark.parametrize("at", [1, 4, 11])  # mid epoch, in the second, in the fourth
def test_resumed_order_equals_the_uninterrupted_one(at):
  whole = take(prompts.iterator(SMALL, 5, 8), 14)
  it = prompts.iterator(SMALL, 5, 8)
  take(it, at)
  state = it.get_state()
  take(it, 2)
  other = prompts.iterator(SMALL, 5, 8)
  other.set_state(state)
  assert take(other, 14 - at) == whole[at:]
  it.set_state(state)  # back in the same iterator
  assert next(it) == whole[at]


@pytest.mark.parametrize("places", [[(0, 1), (2, 3), (4, 5), (6, 7)], [(0, 7, 1, 3), (2, 4, 5, 6)]])
def test_processes_divide_each_step_of_the_same_order(places):
  whole = take(prompts.iterator(SMALL, 1, 8), 5)
  for mine in places:
    part = take(prompts.iterator(SMALL, 1, 8, places=mine), 5)
    assert part == [[step[place] for place in mine] for step in whole]


def test_a_process_makes_only_its_own_examples():
  made = []

  class Spy:
    max_prompt, stop = 10, ()

    def examples(self, split, seed):
      make = lambda i: made.append(i) or Example(i, "", "", "")
      return Lazy(16, make, "spy")

  next(prompts.iterator(Spy(), 0, 8, places=(1, 2, 6, 7)))
  assert len(made) == 4


def test_the_state_goes_into_a_checkpoint_and_back(tmp_path):
  orbax = pytest.importorskip("orbax.checkpoint")
  it = prompts.iterator(SMALL, 5, 8)
  take(it, 4)
  with orbax.CheckpointManager(tmp_path) as manager:
    manager.save(4, args=orbax.args.Composite(data=grain.checkpoint.CheckpointSave(it)))
    want = next(it)
  other = prompts.iterator(SMALL, 5, 8)
  with orbax.CheckpointManager(tmp_path) as manager:
    manager.restore(4, args=orbax.args.Composite(data=grain.checkpoint.CheckpointRestore(other)))
  assert next(other) == want


def test_a_state_of_other_data_is_refused():
  state = prompts.iterator(SMALL, 5, 8).get_state()
  for other in (prompts.iterator(SMALL, 6, 8), prompts.iterator(SMALL, 5, 4),
                prompts.iterator(Countdown(fixed=25), 5, 8)):
    with pytest.raises(ValueError, match="the saved position is in"):
      other.set_state(state)


def test_bad_sizes_are_named():
  with pytest.raises(ValueError, match="24 examples, 25 prompts"):
    prompts.iterator(SMALL, 0, 25)
  with pytest.raises(ValueError, match=r"places \[7, 8\] of 8 prompts a step: 0 to 7"):
    prompts.iterator(SMALL, 0, 8, places=(7, 8))
  with pytest.raises(ValueError, match="'test'; choices: train, eval"):
    SMALL.examples("test", 0)
  with pytest.raises(ValueError, match="prompt 1 has 3 tokens; the task allows 1 to 2"):
    prompts.padded([[1, 2], [1, 2, 3]], 2, 0)


def test_padding_is_on_the_left():
  tokens, mask = prompts.padded([[5], [6, 7]], 3, 9)
  np.testing.assert_array_equal(tokens, [[9, 9, 5], [9, 6, 7]])
  np.testing.assert_array_equal(mask, [[False, False, True], [False, True, True]])


def key_of(task, example):
  numbers, target = task.problem(example)
  return tuple(sorted(numbers)), target


def test_countdown_verifies_its_demonstrations_and_no_neighbours():
  task = Countdown()
  made = [task.examples("train", 0)[i] for i in range(300)]
  assert {v.status for v in task.verify([e.answer for e in made], made)} == {"right"}
  swapped = task.verify([e.answer for e in made[1:]], made[:-1])
  assert {v.status for v in swapped} == {"wrong"}
  clipped = task.verify([e.answer.rpartition(",")[0] for e in made], made)
  assert {v.status for v in clipped} == {"wrong"}


def test_countdown_splits_share_no_problem_and_fixed_ones_are_distinct():
  task = Countdown()
  keys = lambda split, seed: {key_of(task, task.examples(split, seed)[i]) for i in range(2000)}
  held = keys("eval", 0) | keys("eval", 1)
  assert held.isdisjoint(keys("train", 0) | keys("train", 1))
  fixed = Countdown(fixed=500).examples("train", 0)
  assert len({key_of(task, e) for e in fixed}) == 500
  assert [e.id for e in fixed] == list(range(500))
  assert held.isdisjoint(key_of(task, e) for e in fixed)


def test_every_prefix_of_the_evaluation_is_of_one_mixture():
  held = Countdown().examples("eval", 0)
  three = np.array([held[i].source == "countdown/3" for i in range(2000)])
  assert abs(three[:500].mean() - three[1500:].mean()) < 0.1  # 3 standard errors


def test_countdown_says_when_there_are_too_few_problems():
  with pytest.raises(ValueError, match="distinct training problems found"):
    Countdown(largest=3, highest=2, fixed=99).examples("train", 0)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_arithmetic_lines_are_true_and_the_answer_is_right(kind):
  task = Arithmetic(kind)
  by_words = {"max": lambda q: max(map(int, q.removeprefix("max of ").split(", "))),
              "count": lambda q: q.removeprefix("count a in ").count("a"),
              "mod": lambda q: int(q.split()[0]) % int(q.split()[2])}
  value = by_words.get(kind, eval)
  for at in range(40):
    example = task.examples("train", 0)[at]
    *lines, question = example.prompt.split("\n")
    assert len(lines) == 4 and len({*lines}) == 4
    for line in lines:
      asked, _, answer = line.rpartition(" = ")
      assert value(asked) == int(answer)
    asked = question.removesuffix(" =")
    assert asked not in example.prompt.removesuffix(question)
    verdicts = task.verify([f" {value(asked)}\n", f" {value(asked) + 1}", " no"], [example] * 3)
    assert [v.status for v in verdicts] == ["right", "wrong", "wrong"]


def test_arithmetic_asks_other_questions_in_evaluation():
  question = lambda e: e.prompt.rpartition("\n")[2]
  train, held = (Arithmetic().examples(s, 0) for s in ("train", "eval"))
  asked = {question(train[i]) for i in range(400)}
  assert asked.isdisjoint(question(held[i]) for i in range(400))
  assert Arithmetic().examples("train", 0)[7] == train[7]


def write(path, *rows):
  path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n"
                          for row in rows))
  return str(path)


def test_jsonl_rows_formats_and_split(tmp_path):
  path = write(tmp_path / "a.jsonl", *({"problem": f"p{i}", "answer": str(i)} for i in range(20)))
  task = Jsonl(path, verifier=exact.verify_integer)
  assert [e.id for e in task.examples("eval", 0)] == [9, 19]
  assert len(task.examples("train", 0)) == 18
  assert task.examples("train", 0)[0] == Example(0, "p0", "0", f"{path}:1")
  assert [v.status for v in task.verify(["it is 3", "4"], [Example(3, "p3", "3", "")] * 2)
          ] == ["right", "wrong"]
  both = Jsonl(path, eval_path=path)
  assert len(both.examples("train", 0)) == len(both.examples("eval", 0)) == 20


def test_formats_are_functions_of_the_problem():
  words = Words()
  assert written.plain("2+2?", words) == "Problem: 2+2?\nAnswer:"
  assert written.chat("2+2?", words).startswith("<user>2+2?\nLet's think")
  made = Chat("Q: {problem}", system="be brief")("2+2?", words)
  assert made == "<system>be brief<user>Q: 2+2?"
  shots = FewShot((("1+1?", "2"),))("2+2?", words)
  assert shots == "Problem: 1+1?\nAnswer: 2\n\nProblem: 2+2?\nAnswer:"


def test_choices_are_lettered_below_the_problem(tmp_path):
  path = write(tmp_path / "c.jsonl", {"problem": "Which?", "choices": ["yes", "no"],
                                      "answer": "B"}, {"problem": "r", "answer": "A"})
  task = Jsonl(path, eval_path=path, verifier=choice.verify)
  row = task.examples("train", 0)[0]
  assert row.prompt == "Which?\nA. yes\nB. no"
  assert [v.status for v in task.verify(["The answer is (B)", "A"], [row, row])
          ] == ["right", "wrong"]


def test_a_task_prints_without_addresses():
  task = Jsonl("a.jsonl", format=written.chat, verifier=exact.verify_text)
  assert repr(task) == ("Jsonl(path='a.jsonl', eval_path='', format=written.chat, "
                        "verifier=exact.verify_text, max_prompt=256, stop=())")
  assert "FewShot(solved=(('a', 'b'),))" in repr(
      Jsonl("a.jsonl", format=FewShot((("a", "b"),))))


@pytest.mark.parametrize("row, message", [
    ({"answer": "1"}, r"bad.jsonl:2: no text under 'problem' or 'prompt'; has: \['answer'\]"),
    ({"problem": " ", "answer": "1"}, "bad.jsonl:2: no text"),
    ({"problem": "p"}, r"bad.jsonl:2: 'answer' must be text and is missing from \['problem'\]"),
    ({"problem": "p", "answer": None}, "bad.jsonl:2: 'answer' must be text and is None"),
    ({"prompt": "p", "answer": 3}, "bad.jsonl:2: 'answer' must be text and is 3"),
    ("[1]\n", "bad.jsonl:2: a row must be an object, not list"),
    ("{oops\n", "bad.jsonl:2: not JSON"),
    ("\n", "bad.jsonl:2: not JSON")])
def test_bad_rows_name_file_line_and_fault(tmp_path, row, message):
  path = write(tmp_path / "bad.jsonl", {"problem": "p", "answer": "1"}, row)
  with pytest.raises(ValueError, match=message):
    Jsonl(path).examples("train", 0)


def test_relative_paths_are_below_the_named_folder(tmp_path, monkeypatch):
  write(tmp_path / "a.jsonl", {"problem": "p", "answer": "1"})
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv("ENTROLAB_DATA", raising=False)
  with pytest.raises(FileNotFoundError, match="ENTROLAB_DATA names, and it is not set"):
    Jsonl("a.jsonl").examples("train", 0)
  monkeypatch.setenv("ENTROLAB_DATA", str(tmp_path))
  assert len(Jsonl("a.jsonl").examples("train", 0)) == 1
  with pytest.raises(FileNotFoundError, match=f"b.jsonl: no such file in ENTROLAB_DATA={tmp_path}"):
    Jsonl("b.jsonl").examples("train", 0)


def test_prompts_that_are_too_long_are_left_out_and_counted(tmp_path, caplog):
  rows = [{"problem": "ask " * n, "answer": "7"} for n in (1, 5, 2, 9, 3)]
  path = write(tmp_path / "long.jsonl", *rows)
  as_is = lambda problem, tokenizer: problem
  task = Jsonl(path, path, format=as_is, max_prompt=3)
  with caplog.at_level("INFO"):
    fits = prompts.fitting(task, Words(), "train", 0)
  assert [e.id for e in fits] == [0, 2, 4]
  assert "2 of 5 prompts have over 3 tokens" in caplog.text
  it = prompts.iterator(task, 0, 3, tokenizer=Words())
  assert sorted(ids(next(it))) == [0, 2, 4]
  with pytest.raises(ValueError, match="none of 5 prompts has at most max_prompt=0"):
    prompts.fitting(Jsonl(path, path, format=as_is, max_prompt=0), Words(), "train", 0)


def test_a_stop_string_ends_a_response_inside_any_token():
  assert prompts.stop_ids(Arithmetic(), Words()) == (1, 3, 4)
  with pytest.raises(ValueError, match="no token of words contains the stop string 'stop'"):
    prompts.stop_ids(Arithmetic(stop=("stop",)), Words())


def test_the_hub_is_read_lazily_and_its_faults_are_clear(monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(ImportError, match="pip install datasets"):
    Hub("a/b").examples("train", 0)

  class Rows(list):
    column_names = ["question", "answer"]

  asked = []
  fake = types.ModuleType("datasets")
  monkeypatch.setitem(sys.modules, "datasets", fake)

  def load(name, config, split):
    asked.append((name, config, split))
    return Rows([{"question": "q", "answer": 5}])
  fake.load_dataset = load
  row = Hub("a/b", problem="question").examples("eval", 0)[0]
  assert row == Example(0, "q", "5", "a/b/test:0") and asked == [("a/b", None, "test")]
  with pytest.raises(ValueError, match="no column 'problem'; choices: .'question', 'answer'"):
    Hub("a/b").examples("train", 0)

  def offline(name, config, split):
    raise ConnectionError("no route")
  fake.load_dataset = offline
  with pytest.raises(OSError, match=r"'a/b', split 'train': cannot be loaded .*use Jsonl"):
    Hub("a/b").examples("train", 0)


def test_reasoning_gym_scores_and_survives_nonsense():
  pytest.importorskip("reasoning_gym")
  task = ReasoningGym("prime_factorization", size=20, options=(("max_value", 60),))
  train = task.examples("train", 0)
  rows = [train[i] for i in range(4)]
  assert rows == [task.examples("train", 0)[i] for i in range(4)]
  assert rows[0].prompt != task.examples("eval", 0)[0].prompt
  right = task.verify([f"so <answer> {e.answer} </answer>" for e in rows], rows)
  assert {v.status for v in right} == {"right"}
  assert {v.status for v in task.verify(["none x at all"] * 4, rows)} == {"wrong"}
  with pytest.raises(ValueError, match="rewards meaningless text"):
    ReasoningGym("game_of_life_halting")
