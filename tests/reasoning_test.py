"""Answers to problems of reasoning-gym: no scorer runs in this process, none hangs, none pays."""

import os
import pathlib
import time

import pytest

from entrolab.tasks import gym
from entrolab.tasks.gym import ReasoningGym
from entrolab.tasks.task import Example
from entrolab.verify import reasoning
from entrolab.verify.reasoning import check_expression
from entrolab.verify.workers.pool import Job, Pool

SERVICE = "entrolab.verify.reasoning"


def writing(path) -> str:
  """An answer that writes a file where it is evaluated."""
  return f"__import__('pathlib').Path({str(path)!r}).write_text('x')"


def decided(name, *answers, options=()):
  """The verdicts on answers to a problem, the reference in place of None."""
  task = ReasoningGym(name, size=8, options=options)
  example = task.examples("train", 0)[3]
  texts = [f"<answer>{example.answer if a is None else a}</answer>" for a in answers]
  return task.verify(texts, [example] * len(texts))


class Generous:
  """A data set whose scorer pays for whatever is no number, as polynomial_equations does where an
  equation has no real solution."""

  def score_answer(self, answer, problem):
    del problem
    return float(not answer.isdigit())


def test_a_scorer_that_pays_meaningless_text_decides_nothing():
  decide = lambda answer: reasoning.work((Generous(), {"answer": ""}), answer, "")[0][0]
  assert [decide(text) for text in ("", "none", "7", "nan")] == ["right", "unknown", "wrong",
                                                                 "unknown"]


def statuses(name, *answers, options=()):
  return [verdict.status for verdict in decided(name, *answers, options=options)]


@pytest.fixture(autouse=True)
def library():
  pytest.importorskip("reasoning_gym", reason="needs reasoning-gym (extra [tasks])")


@pytest.mark.parametrize("name", ["string_insertion", "polynomial_multiplication", "binary_matrix",
                                  "simple_integration"])
def test_an_answer_is_not_run(name, tmp_path):
  path = tmp_path / "written"
  answers = [writing(path), f"[{writing(path)}]", f"open({str(path)!r}, 'w')",
             f"exec('open({str(path)!r}, 1)')", "().__class__.__base__.__subclasses__()"]
  assert statuses(name, *answers, None) == ["wrong"] * len(answers) + ["right"]
  assert not path.exists()


def test_an_answer_that_takes_for_ever_is_unknown_alone(monkeypatch):
  monkeypatch.setattr(gym, "SECONDS", 1.0)
  begin = time.monotonic()
  found = decided("countdown", "1", "9**9**9**9", None, "2")
  assert [v.status for v in found] == ["wrong", "unknown", "right", "wrong"]
  assert found[1].why == "over the deadline of 1 s" and time.monotonic() - begin < 20
  assert statuses("string_insertion", "[9**9**9**9]", None) == ["unknown", "right"]


@pytest.mark.parametrize("answer", [
    "nan", "nan+nani", "NaN", "1+nani", "n a n", "(nan)", "infi", "-inf+nani", "1e999",
    "1e999-1e999i", "1e308 0+1i"])
def test_a_number_that_is_not_finite_is_paid_by_no_scorer(answer):
  assert statuses("complex_arithmetic", answer, None) == ["wrong", "right"]
  assert statuses("polynomial_equations", answer)[0] == "wrong"


def test_numbers_for_scorers_are_those_of_python_while_they_are_finite(monkeypatch):
  real, both = reasoning.finite(float), reasoning.finite(complex)
  monkeypatch.setattr(reasoning._Watch, "scoring", True)
  assert type(real("1.5")) is float and type(both("1+2j")) is complex and real() == 0.0
  assert isinstance(1.0, real) and not isinstance(1, real) and real.fromhex("0x1p3") == 8.0
  assert real("inf") > 1e308, "spelt out here"
  for text in ("-inf", "nan", "1e999", "NAN"):
    with pytest.raises(ValueError, match="not finite"):
      real("".join(list(text)).upper())
  monkeypatch.setattr(reasoning._Watch, "scoring", False)
  assert real("".join(["i", "nf"])) > 1e308


class Scorer:
  """A data set whose scorer gives what it is given."""

  def score_answer(self, answer, problem):
    problem["answer"] = "changed"
    return float(answer)


@pytest.mark.parametrize("score, status", [("nan", "unknown"), ("inf", "unknown"), ("1", "right"),
                                           ("0.99", "right"), ("0.5", "wrong"), ("-1e9", "wrong"),
                                           ("x", "wrong")])
def test_scores_as_verdicts(score, status):
  problem = {"answer": "7"}
  for _ in range(2):  # a scorer that changes its problem changes nothing
    assert reasoning.work((Scorer(), problem), score, "7")[0][0] == status


@pytest.mark.parametrize("text", ["1", "[1, 'a']", "x**2 + 2*x", "Integer (2 )*Symbol ('x' )",
                                  "sqrt(2)/2", "{1: (2, 3)}", "-x if 0 else 1", "Rational('1/2')"])
def test_expressions_are_evaluated(text):
  if " if " in text:
    with pytest.raises(reasoning.Refused):
      check_expression(text)
  else:
    check_expression(text)
    check_expression(text.encode())


@pytest.mark.parametrize("text", [
    "__import__('os')", "getattr(x, 'y')", "x.y", "x[0]", "(lambda: 1)()", "[a for a in b]",
    "open('x')", "eval('1')", "exec('1')", "vars()", "type(1)", "f'{x}'", "(x := 1)", "_", "f()()",
    "globals()", "compile('1', '', 'eval')", "*a", "print(1)", "input()", "breakpoint()"])
def test_code_is_refused(text):
  with pytest.raises((reasoning.Refused, SyntaxError)):
    check_expression(text)


def test_statements_are_refused():
  for text in ("import os", "x = 1", "1; 2", "def f(): pass", ""):
    with pytest.raises((reasoning.Refused, SyntaxError)):
      check_expression(text)


def test_problems_are_the_same_in_every_process():
  """polynomial_multiplication depends on the order of a set, which differs between processes."""
  source = ReasoningGym("polynomial_multiplication", size=8).examples("train", 0)
  context = ["polynomial_multiplication", 8, 8, {"tuple": []}, None]  # training begins at size
  with Pool(SERVICE, 1, seconds=60.0, grace=60.0) as another:
    found = another.run([Job(context, (at,)) for at in range(4)])
  assert [r.value for r in found] == [[source[at].prompt, source[at].answer] for at in range(4)]


def test_options_are_checked_and_the_reference_is_the_one_that_was_asked():
  with pytest.raises(RuntimeError, match="chain_sum|min_terms|Error"):
    ReasoningGym("chain_sum", options=(("min_terms", -1),)).examples("train", 0)
  with pytest.raises(RuntimeError, match="no_such_generator"):
    ReasoningGym("no_such_generator").examples("train", 0)
  task = ReasoningGym("chain_sum", size=8)
  example = task.examples("train", 0)[3]
  assert example.answer != "x"
  other = type(example)(example.id, example.prompt, "x", example.source)
  assert task.verify([f"<answer>{example.answer}</answer>"], [other])[0].status == "unknown"


def test_a_long_answer_is_unknown_and_strange_text_is_scored():
  long = decided("chain_sum", "9" * (gym.MAX_CHARACTERS + 1))[0]
  assert long.status == "unknown" and "at most 100000 are scored" in long.why
  assert set(statuses("chain_sum", "\0", "\ud800", "４２", "", "{0.__class__}", "é" * 9000)) == {
      "wrong"}


def test_a_child_that_dies_takes_no_other_answer_with_it():
  """The service is asked as `verify` asks it; a child that another job kills is replaced."""
  with Pool("tests.dying_service", 1, seconds=20.0, memory=1 << 28) as pool:
    kinds = ["fine", "leave", "fine", "segfault", "memory", "write", "network", "fork", "signal",
             "forge", "half", "long", "deep", "fine"]
    found = pool.run([Job(None, (kind,)) for kind in kinds], seconds=3.0)
  got = dict(zip(kinds, found, strict=True))
  assert got["fine"].value == "fine" and [r.value for r in found].count("fine") == 3
  assert got["leave"].lost == "the process ended by signal 0"
  assert got["segfault"].lost == "the process ended by signal 11"
  assert got["memory"].lost == "it raised MemoryError"
  assert got["half"].lost == "over the deadline of 3 s"
  assert got["long"].lost == "it raised ValueError" and got["forge"].lost
  assert got["deep"].lost in ("it raised RecursionError", "the process ended by signal 0")
  for kind in ("write", "network", "fork", "signal"):
    assert got[kind].value == [], (kind, got[kind])


def test_problems_that_differ_in_the_order_of_their_signs_are_two():
  """Two cubes have the same signs; told apart by sorted words, evaluation would take all rows."""
  task = ReasoningGym("rubiks_cube")
  cube, turned = (Example(0, text, "", "") for text in ("W W R\nR W G", "W R W\nR G W"))
  assert task.question(cube) != task.question(turned)
  assert task.question(cube) == task.question(Example(1, "W W R R W  G", "", ""))


HOSTILE = ["", " ", "9**9**9**9", "(" * 5000, "[" * 5000, "((((9**9)**9)**9)**9)", "9" * 50_000,
           "-" * 5000 + "1", "a" * 90_000, "nan", "inf", "-inf", "nan+nanj", "nan nan", "n a n",
           "[nan, nan]", "[NaN, NaN]", "1 + nan i", "x = nan", "nan, nan", "(nan, nan)",
           "1e999", "1e999-1e999", "oo-oo", "zoo", "0/0", "{0.__class__.__init__.__globals__}",
           "%s%s%s%n", "{}{}{}", "S('__import__(\"os\")')", "sympify('os')", "[[[[1]]]]", "[[]]",
           "[None]", "{}", "[[1, 2], [3]]", "null", "true", "None", "\0", "\ud800", "\u202e４２",
           "e\u0301" * 100, "٣", "lambda: 1", "().__class__", "True", "factorial(10**9)",
           "Sum(x, (x, 17, 10**9))", "binomial(10**9, 10**8)", "x" + "**9" * 9, "1" + "!" * 100,
           "<answer>", "import os", "raise SystemExit", "exit()", "__builtins__", "globals()"]


NOT_WALKED = {"composite": "needs other data sets", "game_of_life_halting": "refused"}


def all_data_sets() -> list[str]:
  from reasoning_gym.factory import DATASETS
  return sorted(DATASETS.keys() - NOT_WALKED.keys())


@pytest.mark.slow
def test_references_are_scored_as_the_library_scores_them():
  differ = []
  for name in all_data_sets():
    task = ReasoningGym(name, size=8)
    source = task.examples("eval", 0)
    examples = [source[at] for at in range(4)]
    found = task.verify([f"<answer>{e.answer}</answer>" for e in examples], examples)
    data = reasoning.data(name, 8, 0, ())
    for at, verdict in enumerate(found):
      problem = data[at]
      score = data.score_answer(str(problem["answer"]), problem)
      if verdict.status != ("right" if score >= reasoning.PAID else "wrong"):
        differ.append((name, at, score, verdict))
  assert differ == []


@pytest.mark.slow
def test_no_data_set_writes_hangs_or_pays(tmp_path, monkeypatch):
  """Every data set of the library: no hostile answer is paid, none writes a file, and each is
  decided in its time."""
  monkeypatch.setattr(gym, "SECONDS", 2.0)
  path = tmp_path / "written"
  code = [writing(path), f"[{writing(path)}]", f'"{{}}".format({writing(path)})',
          f"S({writing(path)!r})", f"sympify({writing(path)!r})", f"open({str(path)!r}, 'w')",
          f"eval({writing(path)!r})", f"exec({writing(path)!r})", f"x = {writing(path)}",
          f"lambdify(x, {writing(path)!r})(1)", f"parse_expr({writing(path)!r})",
          f"[{writing(path)} for x in [1]]", f"print(1, file=open({str(path)!r}, 'w'))"]
  paid, slow, unknown, total = [], [], 0, 0
  for name in all_data_sets():
    task = ReasoningGym(name, size=8)
    example = task.examples("eval", 0)[2]
    answers = [a for a in [*HOSTILE, *code] if a.strip() != example.answer.strip()]
    begin = time.monotonic()
    found = task.verify([f"<answer>{a}</answer>" for a in answers], [example] * len(answers))
    seconds = time.monotonic() - begin
    hung = sum("deadline" in v.why for v in found)
    unknown += sum(v.status == "unknown" for v in found)
    total += len(found)
    paid += [(name, a[:40], v.why) for a, v in zip(answers, found, strict=True)
             if v.status == "right"]
    slow += [(name, seconds, hung)] if seconds > 20 + 2.5 * hung else []
    assert not path.exists(), name
  print(f"{total} answers, {unknown} unknown")
  assert (paid, slow) == ([], [])
  assert os.listdir(tmp_path) == [] and not pathlib.Path("written").exists()
