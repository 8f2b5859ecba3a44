"""Verifiers that need no symbolic algebra: extraction, exact numbers, choices, votes, countdown."""

import pathlib
import random
import subprocess
import sys
from fractions import Fraction

import pytest

import entrolab.verify
from entrolab.verify import (
  Verdict,
  choice,
  codes,
  countdown,
  exact,
  extract,
  math,
  numerals,
  unknown_reasons,
  unknown_share,
  vote,
)
from entrolab.verify.canonical import canonical
from entrolab.verify.symbolic import compare as symbolic
from entrolab.verify.symbolic.cost import costly
from entrolab.verify.symbolic.pool import Pool

MODULES = sorted(path.stem for path in pathlib.Path(entrolab.verify.__path__[0]).glob("*.py"))


class NoPool(Pool):
  """A pool that must not be asked."""

  def run(self, jobs, *, seconds=None, batch_seconds=None):
    raise AssertionError(f"asked to compare {jobs}")


def decide(text: str, answer: str, **options) -> Verdict:
  return math.verify([text], [answer], pool=NoPool(1), **options)[0]


def test_importing_the_verifiers_brings_neither_jax_nor_sympy():
  code = "".join(f"import entrolab.verify.{m}\n" for m in MODULES if m != "__init__")
  code += "import sys; print(sorted({'jax', 'jaxlib', 'sympy', 'math_verify'} & set(sys.modules)))"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"


def test_a_verdict_has_one_of_three_statuses_and_a_share_of_unknown():
  verdicts = [Verdict("right", ""), Verdict("unknown", "late"), Verdict("wrong", ""),
              Verdict("unknown", "late")]
  assert codes(verdicts) == [1, -1, 0, -1]
  assert unknown_share(verdicts) == 0.5 and unknown_share([]) == 0.0
  assert unknown_reasons(verdicts) == [("late", 2)]
  with pytest.raises(ValueError, match="verdict 'correct'; choices: right, wrong, unknown"):
    Verdict("correct", "")  # pyright: ignore


@pytest.mark.parametrize("text, answer, how", [
    (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}", "box"),
    (r"so \fbox{7}", "7", "box"),
    (r"so \boxed 7", "7", "box"),
    (r"so \\boxed{7} as doubly escaped", "7", "box"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "box"),
    (r"first \boxed{1}. Then \boxed{2}.", "2", "box"),
    (r"\boxed{1}, \boxed{2} and \boxed{3}", "1, 2, 3", "box"),
    (r"\boxed{1} papers and \boxed{2} bins", "1, 2", "box"),
    (r"\boxed{5} \quad \text{or} \quad \boxed{6}", "5, 6", "box"),
    (r"\boxed{7}, again \boxed{7}", "7", "box"),
    ("\\boxed{1}\n\n\\boxed{2}", "2", "box"),
    (r"\boxed{5} but the last one is cut \boxed{6", "5", "box"),
    (r"the answer is 3 but \boxed{4}", "4", "box"),
    (r"<think>\boxed{1}</think> so \boxed{2}", "2", "box"),
    (r"\boxed{1}</think> so \boxed{2}", "2", "box"),
    ("<think>a<think>b</think>c</think>the answer is 5", "5", "phrase"),
    ("<answer> 12 </answer>", "12", "tag"),
    (r"<answer>it is \boxed{12}</answer> not \boxed{13}", "12", "box"),
    ("2 + 2 = 4\n#### 1,234", "1,234", "mark"),
    ("The final answer is $x = 5$. I hope it is correct.", "x = 5", "phrase"),
    ("Final Answer: 12,000,023. I hope it is correct.", "12,000,023", "phrase"),
    ("**Answer:** 42", "42", "phrase"),
    ("The answer is:\n\\[\n  x^2\n\\]", "x^2", "phrase"),
    ("The answer is $1$ and $2$.", "1, 2", "phrase"),
    ("28 %", "28 %", "whole"),
    ("Even", "Even", "whole"),
    ("The sum is $x+1$", "x+1", "whole"),
    ("the number is not 10 which is 1,000.99€", "1,000.99", "whole"),
    ("We see.\n" + "So it is. " * 20 + "Hence there are 12 ways.", "12", "number"),
    ("We see.\n" + "So it is. " * 20 + r"Hence $\frac{1}{3}$ of them.", r"\frac{1}{3}", "formula"),
    (r"", "", "none"),
    (r"<think>\boxed{1}", "", "none"),
    (r"\boxed{}", "", "none"),
    (r"\boxed{4", "", "none"),
    ("nothing to say. " * 20, "", "none"),
])
def test_the_final_answer_of_a_response(text, answer, how):
  found = extract.extract(text)
  assert (found.text, found.how) == (answer, how)


def test_what_counts_as_an_answer_can_be_narrowed():
  assert extract.extract("it is 7", require="phrase").how == "none"
  assert extract.extract("the answer is 7", require="phrase").text == "7"
  assert extract.extract("the answer is 7", require="box").how == "none"
  assert extract.extract(r"<answer>\boxed{7}</answer>", require="box").text == "7"
  with pytest.raises(ValueError, match="require='boxed'; choices: any, phrase, box"):
    extract.extract("", require="boxed")  # pyright: ignore


def test_the_reason_names_boxes_that_disagree_and_answers_that_are_missing():
  assert "boxes disagree: '17' before '42'" in decide(r"\boxed{17}. No: \boxed{42}", "42").why
  assert "the last box is not closed" in decide(r"\boxed{42} so \boxed{4", "42").why
  assert decide(r"<think>\boxed{42}", "42") == Verdict("wrong", "the reasoning is not closed")
  assert decide(r"Then \boxed{42", "42") == Verdict("wrong", "the box is not closed")
  assert decide("", "42") == Verdict("wrong", "the response is empty")


@pytest.mark.parametrize("prompt, opened", [
    ("solve it<think>\n", "<think>\n"), ("assistant: <reasoning>", "<reasoning>"),
    ("so <answer> ", "<answer> "), (r"The answer is \boxed{", r"\boxed{"), ("Answer:", ""),
    ("reason in <think> tags. assistant:", ""), ("<think>\n\n</think>\n\n", ""), ("", ""),
])
def test_what_a_prompt_leaves_open_belongs_to_the_response(prompt, opened):
  assert extract.opened(prompt) == opened


def test_a_response_that_never_leaves_the_reasoning_of_its_prompt_is_no_answer():
  opened = extract.opened("What is 6 * 7?<think>\n")
  assert decide(opened + r"\boxed{42} hm", "42").why == "the reasoning is not closed"
  assert decide(opened + r"hm</think>\boxed{42}", "42").status == "right"
  assert decide(opened + r"\boxed{41}</think> so \boxed{42}", "42").status == "right"
  assert decide(extract.opened(r"It is \boxed{") + "42}.", "42").status == "right"


def test_control_characters_cannot_join_digits_and_invisible_ones_cannot_part_them():
  assert decide("\\boxed{4\u200b2}", "42").status == "right"
  assert decide("\\boxed{\u202e42\u202c}", "42").status == "right"
  assert decide("\\boxed{４２}", "42").status == "right"
  assert decide("\\boxed{−42}", "-42").status == "right"
  for char in ("\0", "\ud800", "\x1b"):
    assert "\ufffd" in extract.extract(f"\\boxed{{4{char}2}}").text


@pytest.mark.parametrize("text, gold, status", [
    ("42.", "42", "right"), (r"1\,000\,000", "1000000", "right"), ("1{,}000", "1000", "right"),
    ("1,000,000", "1000000", "right"), ("1.5e3", "1500", "right"), ("1.5E-1", "0.15", "right"),
    (r"1.5 \times 10^{3}", "1500", "right"), (r"\dfrac{2}{4}", r"\frac{1}{2}", "right"),
    (r"\frac12", "0.5", "right"), ("-3/4", "-0.75", "right"), (r"\frac{-3}{4}", "-0.75", "right"),
    (r"\text{36}", "36", "right"), (r"\$18.00", "18", "right"), ("007", "7", "right"),
    ("+5", "5", "right"), (".4", "0.4", "right"), (r"204\text{ minutes}", "204", "right"),
    ("28 percent", r"28\%", "right"), ("25", r"25\%", "right"), (r"(A)", r"\text{A}", "right"),
    (r"5\text{ cm}", "5", "right"), ("1,22", "1.22", "right"), (r"\approx 11", "11", "right"),
    (r"5\text{ cm}", r"5\text{ m}", "wrong"), ("12:00", "1:00", "wrong"), ("2040", "204", "wrong"),
    ("0.333", r"\frac{1}{3}", "wrong"), ("3.0001", "3", "wrong"), (r"\frac{1}{-2}", "1/2", "wrong"),
    ("9" * 400, "9", "wrong"), ("9" * 400, "9" * 400, "right"), ("0" * 400 + "9", "9", "right"),
    ("7" * 50_000, "7" * 50_000, "right"), ("7" * 50_000, "7", "unknown"),
    ("2^{99999}", "7", "unknown"), ("99999!", "7", "unknown"), ("(" * 50, "7", "unknown"),
])
def test_decided_without_symbolic_algebra(text, gold, status):
  assert decide(rf"\boxed{{{text}}}", gold).status == status


def test_canonical_text_is_a_fixed_point_and_keeps_pairs_apart_from_thousands():
  for text in (r"\dfrac{1}{2}", "1.5e3", "2i^3", r"\left(12,345\right)", r"\sin 30^\circ",
               r"\begin{pmatrix}1\\ 2\end{pmatrix}", r"{{x}}", r"\text{(B)}", "50 percent"):
    assert canonical(canonical(text)) == canonical(text)
  assert canonical("12,345") == "12345" and canonical("(12,345)") == "(12,345)"
  assert canonical("i^2") == "(-1)" and canonical(r"\pi^2") == r"\pi^2"


def test_numbers_have_the_exact_value_that_their_text_says():
  rng = random.Random(0)
  for _ in range(300):
    a, b, c = rng.randint(-999, 999), rng.randint(1, 999), rng.randint(0, 6)
    value = Fraction(a, b)
    for text in (f"{a}/{b}", rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{-a}}}{{{-b}}}"):
      assert numerals.read(canonical(text)).value == value
    scaled = Fraction(a) / 10 ** c
    for text in (f"{a}e-{c}", rf"{a} \cdot 10^{{-{c}}}", f"{float(scaled):.6f}"):
      assert numerals.read(canonical(text)).value == scaled
  assert [numerals.read(text) for text in ("1/0", r"\frac{1}{0}", "x")] == [None] * 3


@pytest.mark.parametrize("text", [
    r"\sqrt{2+\sqrt{2+\sqrt{2}}}", r"2^{2023}", r"1+2004!", r"2^{3}\cdot 5^{4}\cdot 7", "x^2y^2z^2",
    r"\frac{n(n+1)(2n+1)}{6}", r"(-\infty,-2)\cup(-1,1)\cup(2,3)", r"\binom{50}{25}", "2^{3^2}",
    r"\frac{2kn}{n+k-1}-2\frac{k!n!}{(k+n-1)!}", "e^{-x^2}",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
])
def test_ordinary_answers_are_not_refused_as_costly(text):
  assert costly(canonical(text)) is None


def test_an_integral_is_refused_unless_the_reference_has_one():
  assert "left to evaluate" in (costly(r"\int_0^1 x dx", "1/2") or "")
  assert costly(r"\int_0^1 x dx", r"\int_0^1 y dy") is None


def test_a_batch_without_symbols_starts_no_worker():
  with Pool(2) as pool:
    verdicts = math.verify([r"\boxed{1/2}", r"\boxed{3}", "no"], ["0.5", "4", "7"], pool=pool)
    assert codes(verdicts) == [1, 0, 0] and pool.pids() == []


def test_errors_name_the_row_and_how_to_install_what_is_missing(monkeypatch):
  with pytest.raises(ValueError, match="2 texts for 1 reference"):
    math.verify(["1", "2"], ["1"])
  with pytest.raises(ValueError, match="row 1: the reference ' ' is empty"):
    math.verify(["1", "2"], ["1", " "])
  with pytest.raises(TypeError, match="row 0: text and answer must be str, not str and NoneType"):
    math.verify(["1"], [None])  # pyright: ignore
  with pytest.raises(ValueError, match=r"Pool\(seconds=0\): must be positive"):
    Pool(1, seconds=0)
  monkeypatch.setattr(symbolic, "available", lambda: False)
  assert decide(r"\boxed{2}", "2").status == "right"
  with pytest.raises(ImportError, match=r"pip install 'entrolab\[verify\]'"):
    decide(r"\boxed{x+1}", "1+x")


# Countdown.

def random_tree(rng: random.Random, numbers: list[int]) -> tuple[str, Fraction]:
  """A fully parenthesised expression over all `numbers`, with its value by construction."""
  if len(numbers) == 1:
    return str(numbers[0]), Fraction(numbers[0])
  cut = rng.randint(1, len(numbers) - 1)
  (left, a), (right, b) = random_tree(rng, numbers[:cut]), random_tree(rng, numbers[cut:])
  sign = rng.choice("+-*/" if b else "+-*")
  value = a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a / b
  gap = rng.choice(("", " "))
  return f"({left}{gap}{sign}{gap}{right})", value


def test_every_true_expression_is_right_and_any_other_target_wrong():
  rng = random.Random(1)
  for _ in range(300):
    numbers = [rng.randint(1, 12) for _ in range(rng.randint(1, 6))]
    text, value = random_tree(rng, numbers)
    if value.denominator != 1:
      assert countdown.check_expression(text, numbers, int(value)).status == "wrong"
      continue
    target = int(value)
    shuffled = rng.sample(numbers, len(numbers))
    assert countdown.check_expression(text, shuffled, target).status == "right"
    equation = f"{text} = {target}" if target >= 0 else text
    assert countdown.check_expression(equation, numbers, target).status == "right"
    assert countdown.check_expression(text, numbers, target + 1).status == "wrong"
    assert countdown.check_expression(text, [*numbers, 1], target).status == "wrong"
    assert countdown.check_expression(text, [*numbers, 1], target, use="any").status == "right"
    assert countdown.check_expression(text, numbers[1:], target, use="any").status == "wrong"


@pytest.mark.parametrize("text, why", [
    ("2 + 3 * 4", "right"), ("2+3×4=14", "right"), ("(2+3)*4", "reaches 20"),
    ("2 + 3 * 4 = 15", "not 15"), ("2 + 12", "12 is used"), ("2 + 3 * 4 4", "after the expression"),
    ("", "no expression"), ("2 +", "ends early"), ("-2+3*4", "where a number belongs"),
    ("2 ** 3 * 4", "where a number belongs"), ("__import__('os')", "neither a number"),
    ("2 / (3 - 3) + 4", "division by zero"), ("(" * 300, "deeper"),
    ("2+3*4" + " " * 500, "at most"),
    ("9" * 50, "digits"), ("(2 + 3 * 4", "not closed"), ("2 + 3 * 4 = 14 = 14", "after"),
    ("٢ + 3 * 4", "neither a number"),
])
def test_an_expression_says_what_is_wrong_with_it(text, why):
  verdict = countdown.check_expression(text, [2, 3, 4], 14)
  assert (verdict.status == "right") if why == "right" else why in verdict.why, verdict


@pytest.mark.parametrize("text, numbers, target, why", [
    ("3 * 4 = 12 , 12 + 5 = 17", [3, 4, 5], 17, "right"),
    ("3*4=12;12+5=17", [5, 4, 3], 17, "right"),
    ("12/3=4\n4-1=3", [12, 3, 1], 3, "right"), ("1 / 2 = 1/2, 1/2 * 6 = 3", [1, 2, 6], 3, "right"),
    ("2 - 5 = -3, -3 + 9 = 6", [2, 5, 9], 6, "right"),
    ("3 * 4 = 12", [3, 4, 5], 12, "5 is not used"),
    ("3 * 4 = 13, 13 + 5 = 18", [3, 4, 5], 18, "step 1: 3 * 4 is 12, not 13"),
    ("3 * 4 = 12, 3 + 5 = 8", [3, 4, 5], 8, "step 2: 3 is not left"),
    ("3 + 3 = 6", [3, 4], 6, "step 1: 3 is not left"), ("3 * 4 = 12", [3, 4], 13, "reaches 12"),
    ("3 / 0 = 3", [3, 0], 3, "division by zero"), ("3 / 2 = 3/0", [3, 2], 3, "division by zero"),
    ("", [3], 3, "no steps"), ("3 * 4 = 12 ,, 12 + 5 = 17", [3, 4, 5], 17, "step 2 is empty"),
    ("3 * 4", [3, 4], 12, "not of the form"), ("3 ^ 4 = 81", [3, 4], 81, "not of the form"),
    ("3 * 4 = 12 , " * 100, [3, 4], 12, "at most"),
])
def test_a_chain_of_steps_spends_each_number_once(text, numbers, target, why):
  verdict = countdown.check_steps(text, numbers, target)
  assert (verdict.status == "right") if why == "right" else why in verdict.why, verdict
  if why == "5 is not used":
    assert countdown.check_steps(text, numbers, target, use="any").status == "right"


def test_the_last_expression_of_a_response():
  assert countdown.last_expression("try 1+2\nno\nanswer: (1+2)*3\n") == "(1+2)*3"
  assert countdown.last_expression("hm\n<answer> 2*3 = 6 </answer> done 1") == "2*3 = 6"
  assert countdown.last_expression("so\n4 - 2 = 2\nyes") == "4 - 2 = 2"
  assert countdown.last_expression("words") == ""
  with pytest.raises(ValueError, match="use='once'; choices: all, any"):
    countdown.check_steps("", [], 0, use="once")  # pyright: ignore


# Choices, exact completions, votes.

@pytest.mark.parametrize("text, letter", [
    ("B", "B"), ("(B)", "B"), ("B. The sea", "B"), ("**B**", "B"), ("The answer is (B).", "B"),
    ("Answer: B", "B"), ("answer: **B**) sea", "B"), (r"so \boxed{\text{(B)}}", "B"),
    (r"A or B? \boxed{B}", "B"), ("I think A at first. The correct answer is B", "B"),
    ("<think>A</think>B", "B"), ("It is (B) since", "B"), ("option B fits", "B"),
    ("A cat sat on it, so D", "D"), ("The answer is A or B", None), (r"\boxed{A, B}", None),
    ("(A) or (B)", None), ("A cat", None), ("Because it is", None), ("", None), ("F", None),
    ("B's answer", None), ("The answer is not B but C", "C"), ("The answer is C, not B", "C"),
    ("The answer is not B", None), ("not A or B, so the answer is D", "D"),
    (r"\boxed{not B}", None),
    ("It cannot be (A); option B", "B"), ("The answer is B rather than C", "B"),
])
def test_the_letter_that_a_response_commits_to(text, letter):
  assert choice.letter(text) == letter


def test_choices_verdicts_and_errors():
  verdicts = choice.verify(["B", "(C)", "hm"], ["B", "B", "B"])
  assert codes(verdicts) == [1, 0, 0]
  assert choice.verify(["M"], ["M"], letters="ABCDEFGHIJKLM")[0].status == "right"
  with pytest.raises(ValueError, match="row 0: answer 'F' is not one of ABCDE"):
    choice.verify(["B"], ["F"])
  with pytest.raises(ValueError, match="different capital letters"):
    choice.letter("a", "ab")


def test_exact_completions():
  assert codes(exact.verify_text([" 7\n", "7 8"], ["7", "7"])) == [1, 0]
  texts = [" 12\n3 + 4", "it is -7.", "1,234 of", "none", "13", "9" * 5_000]
  verdicts = exact.verify_integer(texts, ["12", "-7", "1234", "5", "12", "9"])
  assert codes(verdicts) == [1, 1, 1, 0, 0, 0]
  texts = ["\u22127", "\u20137", "\uff17", "-\u200b7", "\u22121,234"]
  verdicts = exact.verify_integer(texts, ["7", "-7", "7", "-7", "-1234"])
  assert codes(verdicts) == [0, 1, 1, 1, 1]
  assert [exact.key(text) for text in ("1,234", "\u22127", "x")] == ["1234", "-7", None]
  with pytest.raises(ValueError, match="row 0: answer 'x' has no integer"):
    exact.verify_integer(["1"], ["x"])


def test_votes_have_defined_ties_and_silence_never_wins():
  keys = [vote.key(t) for t in (r"\boxed{1/2}", "0.5", r"\boxed{\frac12}", "<think>", r"\boxed{x}")]
  assert keys == ["1/2", "1/2", "1/2", None, "x"]
  classes = vote.cluster(["b", None, "a", "b", "a", None, None, "a", "b"])
  assert classes == [0, None, 2, 0, 2, None, None, 2, 0]
  assert vote.majority(classes) == 0                      # b appears first
  assert vote.majority(classes, ties="reached") == 2      # a reaches three first
  assert vote.majority([None, None]) is None and vote.majority([]) is None
  near = vote.cluster(["0", "1", "2"], same=lambda a, b: abs(int(a) - int(b)) < 2)
  assert near == [0, 0, 2]                                # compared with first members only
  with pytest.raises(ValueError, match="ties='last'; choices: first, reached"):
    vote.majority([], ties="last")  # pyright: ignore
