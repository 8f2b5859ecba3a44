"""Evaluation does not train on itself: what is held out, drawn, shuffled, read and left out."""

import json
import types

import pytest

from entrolab.environments.adapters import Gym
from entrolab.environments.calculator import WordProblems
from entrolab.environments.forms import Form
from entrolab.environments.text_world import TextWorld
from entrolab.tasks import choices, prompts
from entrolab.tasks.arithmetic import Arithmetic, Kind
from entrolab.tasks.countdown import Countdown
from entrolab.tasks.gym import ReasoningGym
from entrolab.tasks.task import Example, Lazy, drawn, operands
from entrolab.tasks.written import Choice, Hub, Jsonl
from entrolab.trainer.data import Facts
from entrolab.verify import choice, exact

KINDS = Kind.__args__
GENERATED = [*map(Arithmetic, KINDS), Countdown(), Countdown(2, 3, 6), Form(1), Form(2), Form(7),
             TextWorld(2, 1), TextWorld(), WordProblems(3), WordProblems()]
NAMES = [repr(task)[:50] for task in GENERATED]


def first(task, split, seed, count):
  source = task.examples(split, seed)
  return [source[at] for at in range(count)]


def numbers_of(example):
  """The operands of an arithmetic question, read another way than the task does."""
  question = example.prompt.rpartition("\n")[2].removesuffix(" =")
  if question.startswith("count"):
    return sorted(question.removeprefix("count a in "))
  return sorted(int(word) for word in question.replace(",", "").split() if word.isdigit())


@pytest.mark.parametrize("task", GENERATED, ids=NAMES)
def test_no_problem_is_in_both_parts_and_every_seed_has_the_same_evaluation(task):
  held = first(task, "eval", 0, 60)
  assert held == first(task, "eval", 5, 60)
  questions = set(map(task.question, held))
  for seed in (0, 1, 7):
    assert questions.isdisjoint(map(task.question, first(task, "train", seed, 60)))


@pytest.mark.parametrize("kind", KINDS)
def test_an_exchange_of_operands_is_no_other_problem(kind):
  task = Arithmetic(kind)
  held = {tuple(numbers_of(e)) for e in first(task, "eval", 0, 150)}
  trained = {tuple(numbers_of(e)) for seed in (0, 1) for e in first(task, "train", seed, 150)}
  assert held.isdisjoint(trained)
  # nor do the solved lines give away an exchanged question
  for example in first(task, "train", 2, 30):
    *lines, _ = example.prompt.split("\n")
    solved = [numbers_of(Example(0, line.partition(" = ")[0], "", "")) for line in lines]
    assert numbers_of(example) not in solved


def test_operands_are_words_in_any_order():
  assert operands("3 + 7") == operands("7 + 3") != operands("3 - 7")
  assert operands("max of 4, 17, 3") == operands("max of 3, 4, 17")
  assert operands("1 + 11") != operands("11 + 11")


@pytest.mark.parametrize("task, wanted, has", [
    (Arithmetic("multiply", shots=0), 32, range(4, 12)),
    (Arithmetic("add", shots=0), 32, range(6, 20)),
    (Arithmetic("max"), 32, [32]), (Countdown(), 64, [64]), (Form(1), 8, range(1, 6))],
    ids=["multiply", "add", "max", "countdown", "form"])
def test_an_evaluation_has_every_problem_once_or_says_how_many_there_are(task, wanted, has):
  found = prompts.evaluation(task, None, wanted, 3)
  questions = list(map(task.question, found))
  assert len(questions) == len({*questions}) and len(found) in has
  assert len({example.id for example in found}) == len(found)
  text = Facts.of(task, task.examples("train", 3), found, wanted, 8).sentences()[1]
  assert f"{len(found)} different problems" in text
  assert (f"of the {wanted} of evaluation.problems" in text) == (len(found) < wanted)


def test_a_part_without_problems_is_named():
  with pytest.raises(ValueError, match="the task: no such problem in 100000 draws"):
    drawn(lambda: 1, lambda value: value > 1, "the task")


def test_resets_of_evaluation_are_no_resets_of_training():
  gym = Gym(types.SimpleNamespace, size=100)
  seed_of = lambda example: int(example.source.split("/")[1])
  held = {seed_of(e) for e in gym.examples("eval", 0)}
  for seed in (0, 1, 12345, 2**31 // 100, 2**31 // 100 + 1, 10**9):
    trained = {seed_of(e) for e in gym.examples("train", seed)}
    assert len(trained) == 100 and held.isdisjoint(trained) and max(trained) < 2**31
  with pytest.raises(ValueError, match="size=0"):
    Gym(types.SimpleNamespace, size=0)


def test_rows_of_a_generator_are_not_those_of_the_next_seed():
  """reasoning-gym makes row i from seed + i."""
  pytest.importorskip("reasoning_gym")
  task = ReasoningGym("chain_sum", size=40)
  rows = {name: {e.prompt for e in task.examples(*args)} for name, args in {
      "held": ("eval", 0), "zero": ("train", 0), "one": ("train", 1)}.items()}
  assert rows["held"].isdisjoint(rows["zero"]) and rows["held"].isdisjoint(rows["one"])
  assert len(rows["zero"] & rows["one"]) < 4
  small = ReasoningGym("chain_sum", size=60, options=(("max_terms", 2), ("max_digits", 1)))
  train, held = small.examples("train", 0), small.examples("eval", 0)
  assert {*map(small.question, held)}.isdisjoint(map(small.question, train))
  assert train.left_out["are problems of the evaluation"] == 60 - len(train) > 0


# ---- Shuffles ----------------------------------------------------------------------------------


def epochs(seed, count, size=12):
  it = prompts.iterator(Countdown(fixed=size), seed, size)
  return [[e.id for e in next(it)] for _ in range(count)]


def test_epochs_of_neighbouring_seeds_differ():
  orders = {tuple(order) for seed in range(6) for order in epochs(seed, 6)}
  assert len(orders) == 36
  starts = sorted(prompts.order_seed(seed) for seed in range(10_000))
  assert min(b - a for a, b in zip(starts, starts[1:], strict=False)) > 300_000
  assert prompts.order_seed(0) == 0 and 0 <= prompts.order_seed(2**40) < 2**32


# ---- Files -------------------------------------------------------------------------------------


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def rows_of(*problems):
  return [{"problem": problem, "answer": str(at)} for at, problem in enumerate(problems)]


class Characters:
  name, pad_id, eos_id, stop_ids, vocab_size = "characters", 0, 1, (1,), 256

  def encode(self, text):
    return [ord(c) for c in text]


def test_rows_of_training_that_are_evaluated_are_left_out_and_counted(tmp_path):
  train = write(tmp_path / "train.jsonl", rows_of("a a", "b", "c" * 300, "A  a", "d"))
  held = write(tmp_path / "held.jsonl", rows_of("a A", "e", "e", "f" * 300, "d"))
  task = Jsonl(train, held, max_prompt=40)
  assert [e.prompt for e in task.examples("train", 0)] == ["b", "c" * 300]
  epoch = prompts.iterator(task, 0, 1, tokenizer=Characters()).source
  found = prompts.evaluation(task, Characters(), 10, 0)
  assert [e.prompt for e in found] == ["a A", "e", "d"]
  facts = Facts.of(task, epoch, found, 10, 1)
  assert facts.sentences() == [
      "training: 1 of 5 rows (3 are problems of the evaluation, 1 have prompts of over "
      "max_prompt=40 tokens)",
      "evaluation: 3 different problems of the 10 of evaluation.problems (1 have prompts of over "
      "max_prompt=40 tokens, 1 repeat a problem)"]
  assert facts.as_json()["training"]["left_out"]["are problems of the evaluation"] == 3
  assert facts.as_json()["evaluation"]["wanted"] == 10


def test_every_tenth_row_is_held_out_with_its_repetitions(tmp_path):
  path = write(tmp_path / "one.jsonl", rows_of(*(f"p{n % 15}" for n in range(30))))
  train, held = (Jsonl(path).examples(split, 0) for split in ("train", "eval"))
  assert [e.prompt for e in held] == ["p9", "p4", "p14"]
  assert {e.prompt for e in train}.isdisjoint({"p9", "p4", "p14"}) and len(train) == 24


def test_one_file_as_both_is_a_choice_that_is_said(tmp_path):
  path = write(tmp_path / "one.jsonl", rows_of(*"abcdefgh"))
  task = Jsonl(path, path)
  epoch = prompts.iterator(task, 0, 3, tokenizer=Characters()).source
  facts = Facts.of(task, epoch, prompts.evaluation(task, Characters(), 4, 0), 4, 3)
  assert facts.sentences() == [
      "training: 8 rows; a step takes 3, so that every epoch leaves out 2 of 8, others each time",
      "evaluation: 4 different problems", "evaluation: 4 of 4 problems are trained on, too"]
  other = write(tmp_path / "other.jsonl", rows_of(*"abc"))
  with pytest.raises(ValueError, match="all 3 rows of training are problems of the evaluation"):
    Jsonl(other, path).examples("train", 0)


@pytest.mark.parametrize("answer, message", [
    ("", "is empty"), (" ", "is empty"), ("\n\t", "is empty"), ("$$", "is empty"),
    (r"\boxed{}", "is empty"), (None, "must be text and is None"), (["7"], "must be text and is"),
    ([], "must be text and is"), ({"value": "7"}, "must be text and is"), (True, "must be text")])
def test_a_reference_that_cannot_be_used_is_named_when_it_is_read(tmp_path, answer, message):
  rows = rows_of(*"abcdefgh")
  rows[5]["answer"] = answer
  path = write(tmp_path / "bad.jsonl", rows)
  for split in ("train", "eval"):
    with pytest.raises(ValueError, match=rf"bad\.jsonl:6: .*{message}"):
      Jsonl(path, path).examples(split, 0)


@pytest.mark.parametrize("verifier, answer, message", [
    (exact.verify_integer, "seven", "has no integer"), (choice.verify, "F", "is not one of ABCDE"),
    (choice.verify, "yes", "is not one of"), (exact.verify_text, "  ", "is empty")])
def test_references_are_checked_by_the_verifier_that_will_read_them(tmp_path, verifier, answer,
                                                                    message):
  good = {exact.verify_integer: "7", choice.verify: "A", exact.verify_text: "$$"}[verifier]
  rows = [{"problem": f"p{n}", "answer": good} for n in range(4)]
  path = write(tmp_path / "a.jsonl", rows)
  assert len(Jsonl(path, path, verifier=verifier).examples("train", 0)) == 4
  rows[2]["answer"] = answer
  path = write(tmp_path / "b.jsonl", rows)
  with pytest.raises(ValueError, match=f"b.jsonl:3: .*{message}"):
    Jsonl(path, path, verifier=verifier).examples("eval", 0)


def hub(monkeypatch, **splits):
  """The library `datasets`, with these rows by split."""
  class Rows(list):
    @property
    def column_names(self):
      return list(self[0])

  fake = types.ModuleType("datasets")
  fake.load_dataset = lambda name, config, split: Rows(splits[split])
  monkeypatch.setitem(__import__("sys").modules, "datasets", fake)


@pytest.mark.parametrize("answer", [None, [], ["5"], {"a": 1}, "", float("nan"), True])
def test_the_hub_gives_no_word_for_a_null_or_a_list(monkeypatch, answer):
  hub(monkeypatch, test=[{"problem": "p", "answer": 5}, {"problem": "q", "answer": answer}])
  with pytest.raises(ValueError, match="a/b/test:1: 'answer' must be text or a number"):
    Hub("a/b").examples("eval", 0)


def test_the_hub_holds_out_letters_choices_and_says_what_it_read(monkeypatch):
  row = {"problem": "Which?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answer": "B"}
  hub(monkeypatch, train=[row, {**row, "problem": "Who?"}], test=[row])
  task = Hub("a/b", verifier=choice.verify)
  assert [e.prompt for e in task.examples("train", 0)] == ["Who?\nA. x\nB. y"]
  before = task.identity()
  hub(monkeypatch, train=[row, {**row, "problem": "Why?"}], test=[row])
  assert task.identity() != before


def test_identity_is_the_content_of_both_files_and_not_their_names(tmp_path):
  def identity(train, held):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    return Jsonl(write(folder / "t.jsonl", train), write(folder / "h.jsonl", held)).identity()

  one, two, three = rows_of(*"abc"), rows_of(*"def"), rows_of(*"abd")
  base = identity(one, two)
  assert base == identity(one, two) and len(base) == 64
  other_answer = [{**one[0], "answer": "9"}, *one[1:]]
  others = [identity(*pair) for pair in ((three, two), (one, three), (one[::-1], two),
                                         (other_answer, two), (one[:2], two), (two, one))]
  assert len({base, *others}) == 7
  assert Countdown().identity() == "" == Arithmetic().identity()


def test_a_file_that_is_written_anew_is_read_anew(tmp_path):
  path = write(tmp_path / "a.jsonl", rows_of(*"abc"))
  task = Jsonl(path, path)
  before = task.identity()
  write(tmp_path / "a.jsonl", rows_of(*"abcd"))
  assert len(task.examples("train", 0)) == 4 and task.identity() != before


# ---- Choices -----------------------------------------------------------------------------------

TWELVE = [f"text {n}" for n in range(12)]


@pytest.mark.parametrize("given, lines", [
    (None, []), ([], []), ({}, []), ({"text": None, "label": None}, []),
    (["yes", "no"], ["A. yes", "B. no"]), (("yes", "no"), ["A. yes", "B. no"]),
    ([1, 2.5, True], ["A. 1", "B. 2.5", "C. true"]),
    ({"A": "yes", "B": "no"}, ["A. yes", "B. no"]), ({"B": "no", "A": "yes"}, ["B. no", "A. yes"]),
    ({"A": "yes", "B": "no", "C": None}, ["A. yes", "B. no"]),
    ({"1": "yes", "2": "no"}, ["1. yes", "2. no"]),
    ({"text": ["yes", "no"], "label": ["A", "B"]}, ["A. yes", "B. no"]),
    ({"text": ["yes", "no"], "label": ["1", "2"]}, ["1. yes", "2. no"]),
    ({"text": ["yes", "no"]}, ["A. yes", "B. no"]),
    ([{"label": "A", "text": "yes"}, {"text": "no", "label": "B"}], ["A. yes", "B. no"]),
    (TWELVE, [f"{'ABCDEFGHIJKL'[n]}. text {n}" for n in range(12)]),
    (dict(zip("ABCDEFGHIJKL", TWELVE, strict=True)),
     [f"{'ABCDEFGHIJKL'[n]}. text {n}" for n in range(12)])])
def test_choices_in_every_shape(given, lines):
  assert choices.lettered("Which?", given, "f:1").split("\n")[1:] == lines


def test_no_choice_is_lost_however_many_there_are():
  lines = choices.lettered("Which?", list(range(60)), "f:1").split("\n")
  assert len(lines) == 61 and lines[26:29] == ["Z. 25", "AA. 26", "AB. 27"]


@pytest.mark.parametrize("given", [
    "A) yes B) no", 7, True, ["yes", None], ["yes", ["no"]], {"A": ["yes"]}, {"": "yes"},
    {"text": ["yes"], "label": ["A", "B"]}, {"text": ["a", "b"], "label": ["A", "A"]},
    {"text": ["a", None], "label": ["A", "B"]}, {"text": "yes", "label": "A"}, {"label": ["A"]},
    {"text": ["a"], "label": ["A"], "more": [1]}, {"choices": ["a"], "labels": [1]},
    {"text": ["a"], "label": [None]}, ["a", {"label": "B", "text": "b"}], [{"text": "a"}]])
def test_other_shapes_are_named_with_their_place(given):
  with pytest.raises(ValueError, match="^f:1: "):
    choices.lettered("Which?", given, "f:1")


def test_a_row_names_the_shape_of_its_choices(tmp_path):
  rows = [{"problem": "p", "answer": "A", "choices": {"A": "x"}},
          {"problem": "q", "answer": "A", "choices": "A) x"}]
  path = write(tmp_path / "c.jsonl", rows)
  with pytest.raises(ValueError, match="c.jsonl:2: choices 'A. x'; shapes: a list of texts"):
    Jsonl(path, path, verifier=choice.verify).examples("train", 0)


def test_a_question_with_twelve_choices_can_be_right(tmp_path):
  row = {"problem": "Which?", "choices": TWELVE, "answer": "L"}
  path = write(tmp_path / "twelve.jsonl", [row] * 2)
  task = Jsonl(path, path, verifier=Choice("ABCDEFGHIJKL"))
  example = task.examples("train", 0)[0]
  assert [v.status for v in task.verify(["The answer is (L).", "(B)"], [example] * 2)
          ] == ["right", "wrong"]
  assert "verifier=Choice(letters='ABCDEFGHIJKL')" in repr(task)
  with pytest.raises(ValueError, match="twelve.jsonl:1: answer 'L' is not one of ABCDE"):
    Jsonl(path, path, verifier=choice.verify).examples("train", 0)


def test_what_is_drawn_is_no_list_of_rows():
  facts = Facts.of(Countdown(), Countdown().examples("train", 0), Lazy(0, None, "none"), 0, 8)
  assert facts.sentences()[0] == "training: 1048576 draws" and facts.both == 0


def test_a_vote_reads_the_letters_that_the_verifier_reads():
  """Of twelve choices, F is an answer; `choice.letter` alone knows A to E."""
  task = Jsonl("unread.jsonl", verifier=Choice("ABCDEFGHIJKL"))
  assert task.key("The answer is F.") == "F"
  assert Jsonl("unread.jsonl", verifier=choice.verify).key("The answer is F.") != "F"
