"""Equality of mathematical answers, rule by rule: what is equal, and what differs.

The rows stand in mathematics_cases.txt: `answer | reference | =` or `!`. They are decided in this
process, without deadlines.
"""

import pathlib

import pytest

from entrolab.verify import Verdict, math, vote
from entrolab.verify.symbolic import compare
from entrolab.verify.symbolic.pool import Pool

SIGNS = {"NBSP": "\u00a0", "THIN": "\u2009", "NARROW": "\u202f"}
_, *_PARTS = (pathlib.Path(__file__).parent / "mathematics_cases.txt").read_text().split("\n# ")
RULES = {name: rows.strip() for name, _, rows in (part.partition("\n") for part in _PARTS)}


class Here(Pool):
  """A pool that compares in this process: no deadline decides a test."""

  def run(self, jobs, *, seconds=None, batch_seconds=None):
    return [Verdict(*compare.compare(*job)) for job in jobs]  # pyright: ignore


def decide(text: str, gold: str) -> str:
  return math.verify([text], [gold], pool=Here(1))[0].status


@pytest.mark.parametrize("rule", RULES)
def test_answers_are_equal_or_differ_by_the_rule(rule):
  pytest.importorskip("math_verify", reason="needs math-verify (extra [verify])")
  table = RULES[rule]
  for name, sign in SIGNS.items():
    table = table.replace(f"<{name}>", sign)
  rows = [line.split(" | ") for line in table.split("\n")]
  assert {wanted for _, _, wanted in rows} == {"=", "!"}  # each rule has its counter-cases
  wrong = []
  for answer, gold, wanted in rows:
    got = decide(rf"\boxed{{{answer}}}", gold)
    if got != ("right" if wanted == "=" else "wrong"):
      wrong.append((answer, gold, wanted, got))
  assert wrong == []


def test_a_vote_reads_what_is_verified():
  same = [[r"\boxed{2 2/3}", r"\boxed{\frac{8}{3}}", "The answer is 2.(6)."],
          [r"\boxed{1,2}", r"\boxed{2,1}", r"\boxed{1\text{ and }2}"],
          [r"\boxed{5\text{ million}}", r"\boxed{5000000}", "The answer is $5$ million."],
          [r"\boxed{1 234 567}", r"\boxed{1{,}234{,}567}"], [r"\boxed{1011_2}", r"\boxed{11}"],
          [r"\boxed{\{1,1,2\}}", r"\boxed{\{2,1\}}"]]
  for texts in same:
    assert len({vote.key(text) for text in texts}) == 1, texts
  other = [r"\boxed{1,1,2}", r"\boxed{1,2,2}", r"\boxed{(1,2)}", r"\boxed{(2,1)}",
           r"\boxed{1011_3}"]
  assert len({vote.key(text) for text in other}) == len(other)


RESPONSES = [
    ('The value of $x$ is 7.', '7', '='),
    ('Final Answer: the number of valid triples $(a,b,c)$ is 15.', '15', '='),
    ('The answer is $x = 5$.', '5', '='),
    ('The answer is $1$ and $2$.', '1,2', '='),
    ('The answer is 6, not 5.', '6', '='),
    ('The answer is 12 (which is 3 times 4).', '12', '='),
    ('The answer is 6, not 5.', '5', '!'),
    ('The answer is $7$, since $7 = 3 + 4$.', '7', '='),
    ('The answer is 7 because 3+4=7', '7', '='),
    ('So the sum of $a$ and $b$ equals 12.', '12', '='),
    ('Hence the area of triangle $ABC$ is $\\frac{3}{4}$.', '\\frac34', '='),
    ('The answer is $f(3) = 10$.', '10', '='),
    ('The final answer is that $n$ equals $8$.', '8', '='),
    ('The answer is 42, where $n$ is the number of sides.', '42', '='),
    ('**Final Answer:** The probability that $X > 3$ is $\\frac{1}{3}$.', '\\frac13', '='),
    ('The answer is not 5 but 6.', '6', '='),
    ('The answer is not 5 but 6.', '5', '!'),
    ('The answer is 6 instead of 5.', '6', '='),
    ('The answer is 6 rather than 5.', '6', '='),
    ('Therefore, the number of ordered pairs $(m,n)$ is $\\boxed{12}$.', '12', '='),
    ('We get \\boxed{5}. Wait, I made an error. The final answer is 7.', '7', '='),
    ('We get \\boxed{5}. Wait, I made an error. The final answer is 7.', '5', '!'),
    ('\\boxed{5}. The answer is correct because 3+4=7.', '5', '='),
    ('\\boxed{42}\n\nThe answer is in simplest form.', '42', '='),
    ('\\boxed{42}\n\nFinal Answer: The final answer is $42$. I hope it is correct.', '42', '='),
    ('$x=\\boxed{3}$ and $y=\\boxed{4}$', '3,4', '='),
    ('\\boxed{3} or \\boxed{4}', '3', '!'),
    ('\\boxed{x=1} or \\boxed{x=2}', '1,2', '='),
    ('the answer is 3 but \\boxed{4}', '4', '='),
    ('The answer is 5 apples.', '5', '='),
    ('The answer is: 5', '5', '='),
    ('Answer: $(3, 4)$', '(3,4)', '='),
    ('The answer is (3, 4).', '(3,4)', '='),
    ('The answer is $5$ cm.', '5\\text{ m}', '!'),
    ('The answer is 5 cm.', '5\\text{ m}', '!'),
    ('The answer is 5 million.', '5000000', '='),
    ('The answer is $5$ million.', '5000000', '='),
    ('The answer is $\\$5$ million.', '5', '!'),
    ('#### 5 million', '5', '!'),
    ('The answer is approximately 3.14.', '3.14', '='),
    ('The answer is about $2.5$', '2.5', '='),
    ('It follows that $k$ is equal to 9.', '9', '='),
    ('the value of f(2) is 11', '11', '='),
    ('The answer is x = 5 or x = 6', '5,6', '='),
    ('So $\\gcd(a,b)$ = 4.', '4', '='),
    ('The answer is 1/2', '0.5', '='),
    ('The answer is between 3 and 4, namely 3.5', '3.5', '='),
    ('the maximum of $x+y$ subject to $x<3$ is 5', '5', '='),
    ('The answer is $\\frac{1}{2}$, which is $0.6$ rounded.', '\\frac12', '='),
    ('The answer is 10 - 3 = 7.', '7', '='),
    ('So the answer is $10-3=7$', '7', '='),
    ('The possible values are 2 and 3.', '2,3', '='),
    ('The solutions are $x=2$ and $x=3$.', '2,3', '='),
    ('The answer is 5.5', '5.5', '='),
    ('The answer is 5. It is 6 for others.', '5', '='),
    ('The answer is 2 2/3', '8/3', '='),
    ('The answer is 12 500', '12500', '='),
    ('It is 7:15 p.m.', '7:15\\text{ p.m.}', '='),
    ('The answer is 7:15 a.m.', '7:15\\text{ p.m.}', '!'),
    ('The number of solutions to $x^2=4$ is 2.', '2', '='),
    ('Thus the perimeter of $ABCD$ equals $24$.', '24', '='),
    ('The answer is the ordered pair $(3,5)$.', '(3,5)', '='),
    ('The answer is $-3$ (since $x$ must be negative).', '-3', '='),
    ('The answer is 8 (not 9).', '8', '='),
    ('The answer is 8, which equals 2^3.', '8', '='),
    ('The answer is 8, as 2 times 4 is 8.', '8', '='),
    ('The answer is 15 because there are 3 groups of 5.', '15', '='),
    ('The answer is 7, i.e. 3+4.', '7', '='),
    ('Final Answer: $n$ is 12.', '12', '='),
    ('Final answer: The value of $f(2)$ is $9$', '9', '='),
    ('Therefore $a+b+c$ is equal to $10$.', '10', '='),
    ('The least possible value of $n$ is thus 17.', '17', '='),
    ('The greatest common divisor of 12 and 18 is 6.', '6', '='),
    ('The probability of rolling a 6 twice is 1/36.', '1/36', '='),
    ('The 10th term is 55.', '55', '='),
    ('There are 12 ways to do this.', '12', '='),
    ('x = 7', '7', '='),
    ('The answer is 5 or 6.', '5', '!'),
    ('The answer is either 5 or 6.', '5', '!'),
    ('The answer is 5 and 6.', '5,6', '='),
    ('\\boxed{3}\n\nSo the final answer is $\\boxed{4}$.', '4', '='),
    ('\\boxed{3} is wrong. Answer: 4', '4', '='),
    ('\\boxed{8}\n\nThe answer is an integer.', '8', '='),
    ('\\boxed{8}. Here the answer is 8 because 2^3=8.', '8', '='),
    ('\\boxed{2}\n\n**Final Answer**: 2', '2', '='),
    ('**Answer:** $\\boxed{2}$ (where $n=5$)', '2', '='),
    ('The answer is 3.5%.', '3.5\\%', '='),
    ('The answer is $5\\%$.', '5', '='),
    ('The answer is 12,500.', '12500', '='),
    ('The answer is $(2, 3)$, where $x = 2$ and $y = 3$.', '(2,3)', '='),
    ('<think>it is 5</think>The answer is 6', '6', '='),
    ('The answer is 10 cm^2', '10', '='),
    ('The answer is -7.', '-7', '='),
    ('The answer is −7.', '-7', '='),
    ('The answer is ½.', '0.5', '='),
    ('The answer is √2.', '\\sqrt2', '='),
    ('So the answer is: **12**', '12', '='),
    ('The answer is $\\boxed{12}$, not 13.', '12', '='),
    ('The sum is 5+6=11.', '11', '='),
    ('I think the answer is 4. Actually, the answer is 5.', '5', '='),
    ('The answer is not 3.', '3', '!'),
    ("The answer isn't 3 but 4.", '4', '='),
    ('$\\boxed{1}$ and $\\boxed{2}$', '1,2', '='),
    ('$a = \\boxed{1}$, $b = \\boxed{2}$', '1,2', '='),
    ('The answer is 4 \\text{ km}.', '4\\text{ m}', '!'),
    ('The answer is 4 kilometers per hour.', '4\\text{ km/h}', '='),
    ('The answer is 3 hours and 20 minutes', '3', '!'),
    ('The smallest $n$ is $n=5$.', '5', '='),
    ('Its length is $2\\sqrt{3}$, as desired.', '2\\sqrt3', '='),
    ('The answer is 42 = 6*7', '42', '='),
    ('the value is between 2 and 3', '2', '!'),
    ('The answer is 1:2.', '\\frac12', '='),
    ('The answer is 10^{-20}', '10^{-21}', '!'),
]


def test_the_answer_of_a_response_is_what_its_last_statement_says():
  pytest.importorskip("math_verify", reason="needs math-verify (extra [verify])")
  wrong = [(text, gold, wanted, got) for text, gold, wanted in RESPONSES
           if (got := decide(text, gold)) != ("right" if wanted == "=" else "wrong")]
  assert wrong == []
