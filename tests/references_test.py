"""The references of real data sets: each equals itself in other spellings, and no other number.

Nothing is downloaded: the files lie in the folder that ENTROLAB_DATA names. Figures are printed
(`pytest -m slow -s`), and recorded in docs/verifier.md.
"""

import itertools
import json
import os
import pathlib
import random
import re
from fractions import Fraction

import pytest

from entrolab.verify import math, numerals
from entrolab.verify.canonical import canonical
from entrolab.verify.symbolic.pool import Pool

FILES = ("math_train", "math500", "minerva_math", "olympiadbench", "aime24", "aime_1983_2023",
         "gsm8k_train", "gsm8k_test")


def references(name: str) -> list[str]:
  """The different references of a file, in its order."""
  folder = os.environ.get("ENTROLAB_DATA")
  path = pathlib.Path(folder or "") / f"{name}.jsonl"
  if not folder or not path.exists():
    pytest.skip(f"needs {name}.jsonl in the folder that ENTROLAB_DATA names")
  rows = [json.loads(line)["answer"] for line in path.open(encoding="utf-8")]
  # of math_train one reference is empty, and two are broken LaTeX that nothing may enclose
  broken = ("", "{(E)},", r"2007+\frac{\}{p}i2")
  return [row for row in dict.fromkeys(rows) if row.strip() not in broken]


# Spellings. Each takes a number or a text and writes it in another way.

def in_base(value: int, base: int) -> str:
  """A natural number in a base up to ten."""
  digits = ""
  while value:
    digits = str(value % base) + digits
    value //= base
  return digits or "0"


def recurring(value: Fraction) -> str:
  """A fraction as a decimal with a bar over its period; a finite one as it is."""
  sign, value = "-" * (value < 0), abs(value)
  whole, rest = divmod(value.numerator, value.denominator)
  digits, seen = "", {}
  while rest and rest not in seen:
    seen[rest] = len(digits)
    digit, rest = divmod(rest * 10, value.denominator)
    digits += str(digit)
  if not rest:
    return f"{sign}{whole}.{digits or '0'}"
  at = seen[rest]
  return rf"{sign}{whole}.{digits[:at]}\overline{{{digits[at:]}}}"


def of_integer(value: int) -> list[str]:
  """An integer in other spellings."""
  sign = "-" * (value < 0)
  size = abs(value)
  grouped = f"{size:,}"
  return [f"{sign}{grouped}", sign + grouped.replace(",", r"\,"), sign + grouped.replace(",", "~"),
          sign + grouped.replace(",", "\u202f"), sign + grouped.replace(",", "{,}"), f"{value}.0",
          rf"\frac{{{3 * value}}}{{3}}", rf"{sign}{in_base(size, 7)}_7",
          rf"{sign}({in_base(size, 2)})_{{\text{{two}}}}", f"{'−' * (value < 0)}{size}",
          rf"{value} \times 10^{{0}}", rf"{100 * value}\%" if value else "0",
          rf"\boldsymbol{{{value}}}", rf"x = {value}", rf"{value} = x", rf"{value}\text{{ units}}"]


def of_fraction(value: Fraction) -> list[str]:
  """A fraction in other spellings."""
  sign, size = "-" * (value < 0), abs(value)
  a, b = size.numerator, size.denominator
  whole, rest = divmod(a, b)
  found = [f"{sign}{a}/{b}", rf"{sign}\dfrac{{{a}}}{{{b}}}", rf"\tfrac{{{sign}{2 * a}}}{{{2 * b}}}",
           rf"{{{sign}{a} \over {b}}}", rf"{sign}{a}⁄{b}", rf"x = {sign}\frac{{{a}}}{{{b}}}"]
  if whole and rest:
    found += [f"{sign}{whole} {rest}/{b}", rf"{sign}{whole}\tfrac{{{rest}}}{{{b}}}"]
  if b < 100:
    found.append(recurring(value))
  return found


def dressed(text: str) -> list[str]:
  """Any answer in other dress."""
  text = text.replace("$", "") if text.count("$") == 2 and text[0] == text[-1] == "$" else text
  if "$" in text:
    return [f" {text} ", f"{text}.", f"\u200b{text}"]
  return [rf"\boldsymbol{{{text}}}", rf"\color{{blue}}{{{text}}}", rf"{{\displaystyle {text}}}",
          rf"\underline{{{text}}}", f"${text}$", f"{{{text}}}",
          rf"\textcolor{{red}}{{{text}}}.", rf"{text}\,", f"\u200b{text}\u00a0",
          text.replace(r"\frac", r"\dfrac").replace("-", "−")]


def spellings(text: str, rng: random.Random) -> list[str]:
  """Three other spellings of a reference."""
  number = numerals.read(canonical(math.reference(text)))
  if number is None:
    return rng.sample(dressed(text), 3)
  if number.value.denominator == 1:
    return rng.sample(of_integer(int(number.value)), 3)
  return rng.sample(of_fraction(number.value), 3)


@pytest.fixture(scope="module")
def pool():
  pytest.importorskip("math_verify", reason="needs math-verify (extra [verify])")
  with Pool(2, seconds=30.0, batch_seconds=1200.0) as shared:  # no deadline decides here
    yield shared


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_each_reference_equals_itself_in_three_other_spellings(pool, name):
  rng = random.Random(name)
  rows = [(text, gold) for gold in references(name) for text in spellings(gold, rng)]
  verdicts = math.verify([rf"\boxed{{{text}}}" for text, _ in rows], [gold for _, gold in rows],
                         pool=pool)
  differ = [(text, gold, verdict) for (text, gold), verdict in zip(rows, verdicts, strict=True)
            if verdict.status != "right"]
  print(f"{name}: {len(rows) // 3} references, {len(rows) - len(differ)} of {len(rows)} spellings "
        "equal")
  assert differ == []


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_no_two_references_that_differ_as_numbers_are_equal(pool, name):
  """Every pair of rational references, and every neighbour of the others by size."""
  texts = {text: canonical(math.reference(text)) for text in references(name)}
  numbers = [number for form in texts.values() if (number := numerals.read(form)) is not None]
  assert [(a, b) for a, b in itertools.combinations(numbers, 2)
          if a.value != b.value and numerals.same(a, b, 6)] == []
  sizes = {text: size for text in texts if (size := _size(texts[text])) is not None}
  order = sorted(sizes, key=sizes.__getitem__)
  pairs = [(a, b) for gap in (1, 2) for a, b in zip(order, order[gap:], strict=False)
           if abs(sizes[a] - sizes[b]) > 1e-9 * abs(sizes[a])]
  verdicts = math.verify([rf"\boxed{{{a}}}" for a, _ in pairs], [b for _, b in pairs], pool=pool)
  equal = [(pair, v) for pair, v in zip(pairs, verdicts, strict=True) if v.status != "wrong"]
  print(f"{name}: {len(numbers)} rational references, each differs from each; {len(pairs)} pairs "
        f"of neighbours by size, {len(pairs) - len(equal)} differ")
  assert equal == []


def _size(form: str) -> float | None:
  """The value of roots, powers and multiples of pi, by Python's own arithmetic."""
  number = numerals.read(form)
  if number is not None:
    return float(number.value)
  text = re.sub(r"\\frac\s?\{([\d+\-a-z(){}\\* ]*?)\}\s?\{(\d+)\}", r"((\1)/(\2))", form)
  text = re.sub(r"(\d|\))\s?(?=\\sqrt|\\pi|\()", r"\1*", text)
  text = re.sub(r"\\sqrt\s?\{(\d+)\}", r"(\1**0.5)", text)
  text = re.sub(r"\\sqrt\s?(\d)", r"(\1**0.5)", text).replace(r"\pi", "3.141592653589793")
  text = re.sub(r"\^\{(\d{1,3})\}|\^(\d)", lambda m: f"**{m[1] or m[2]}", text)
  text = re.sub(r"(\d|\))\s?(?=\()", r"\1*", text)
  if not re.fullmatch(r"[\d.+\-*/() ]+", text) or re.search(r"\d\s+\d", text):
    return None
  try:
    return float(_arithmetic(text))
  except (SyntaxError, ArithmeticError, ValueError):
    return None


def _arithmetic(text: str) -> float:
  """The value of an expression of numbers, + - * / ** and parentheses."""
  import ast
  import operator
  operators = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
               ast.Div: operator.truediv, ast.Pow: operator.pow}

  def value(node: ast.AST) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
      return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
      return -value(node.operand)
    if isinstance(node, ast.BinOp):
      return operators[type(node.op)](value(node.left), value(node.right))
    raise ValueError(text)

  return value(ast.parse(text.strip(), mode="eval").body)
