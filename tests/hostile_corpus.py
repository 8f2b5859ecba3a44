"""Responses that try to stop a verifier, generated: (name, text, reference) triples.

Most hide in a box, where the verifier has to look; the rest attack the way there.
"""

from collections.abc import Iterator


def box(content: str) -> str:
  """`content` as the boxed answer of a response."""
  return rf"So the answer is \boxed{{{content}}}."


def _tower(base: str, height: int) -> str:
  text = base
  for _ in range(height):
    text = f"{base}^{{{text}}}"
  return text


def _powers() -> Iterator[tuple[str, str]]:
  for base in ("2", "9", "10", "x", "e", "99", r"\pi", "(1+x)"):
    for height in (2, 3, 4, 8, 30, 200):
      yield f"tower {base} {height}", _tower(base, height)
  yield "flat tower", "9^9^9^9^9^9"
  yield "flat tower with parentheses", "((((9^9)^9)^9)^9)^9"
  yield "powers of powers", "(((9^{99})^{99})^{99})^{99}"
  yield "double star", "9**9**9**9"
  for digits in (5, 9, 20, 300):
    yield f"exponent of {digits} digits", "3^{" + "9" * digits + "}"
    yield f"negative exponent of {digits} digits", "3^{-" + "9" * digits + "}"
    yield f"tiny power of {digits} digits", "(1+10^{-" + "9" * digits + "})"
  yield "scientific", "1e999999999"
  yield "scientific times", r"1.5 \times 10^{999999999}"
  yield "root of a power", r"\sqrt[3]{7^{7^{7^{7}}}}"
  yield "fraction of powers", r"\frac{9^{9^{9}}}{9^{9^{8}}}"
  yield "modulus", r"7^{7^{7^{7}}} \mod 1000"


def _factorials() -> Iterator[tuple[str, str]]:
  for text in ("9!!!!!!", "99999!", "999999999!", "(10^9)!", "((9!)!)!", "(9!)!", "3!!!!!!!!",
               r"\frac{100000!}{99999!}", r"\binom{10^{9}}{5 \cdot 10^{8}}",
               r"\binom{1000000}{500000}", "!".join("9" * 100), "5" + "!" * 1000,
               r"\Gamma(10^{9})", "(99999+1)!", r"\prod_{k=1}^{10^{9}} k"):
    yield f"factorial {text[:20]}", text


def _long() -> Iterator[tuple[str, str]]:
  for count in (1_000, 10_000, 1_000_000):
    yield f"{count} digits", "7" * count
    yield f"{count} zeros and a 1", "0" * count + "1"
    yield f"{count} decimals", "0." + "3" * count
    yield f"fraction of {count} digits", rf"\frac{{{'1' * count}}}{{{'3' * count}}}"
  for count in (500, 5_000, 100_000):
    yield f"{count} commas", ",".join("1" * count)
    yield f"{count} equals signs", "=".join("1" * count)
    yield f"{count} pluses", "+".join("x" * count)
    yield f"{count} minuses", "-" * count + "1"
    yield f"{count} products", "*".join("x" * count)
    yield f"{count} slashes", "/".join("3" * count)
    yield f"{count} less than", "<".join("x" * count)
    yield f"{count} semicolons", "1;" * count
    yield f"{count} percents", "5" + r"\%" * count
  yield "1 MB of words", "answer " * 150_000
  yield "1 MB of one letter", "a" * 1_000_000
  yield "1 MB of spaces", " " * 1_000_000
  yield "1 MB of backslashes", "\\" * 1_000_000
  yield "1 MB of newlines", "\n" * 1_000_000


def _nested() -> Iterator[tuple[str, str]]:
  for opening, closing in (("(", ")"), ("[", "]"), (r"\{", r"\}"), ("{", "}"), ("|", "|"),
                           (r"\left(", r"\right)"), (r"\left[", r"\right]"), ("$", "$"),
                           (r"\sqrt{", "}"), (r"\frac{1}{", "}"), (r"\text{", "}"),
                           ("x_{", "}"), ("2^{", "}"), (r"\overline{", "}"), (r"\sin(", ")"),
                           (r"\lfloor ", r" \rfloor"), (r"\langle ", r" \rangle"),
                           (r"\boxed{", "}"), (r"\begin{pmatrix}", r"\end{pmatrix}")):
    for depth in (15, 400, 20_000):
      yield f"{depth} nested {opening}", opening * depth + "1" + closing * depth
  yield "20000 open braces", "{" * 20_000
  yield "20000 closed braces", "}" * 20_000
  yield "alternating braces", "{}" * 20_000
  yield "mixed brackets", "([{" * 5_000 + "1" + "}])" * 5_000
  yield "wrong order", "([)]" * 5_000


def _bombs() -> Iterator[tuple[str, str]]:
  yield "macro bomb", r"\def\a{\b\b}\def\b{\c\c}\def\c{\d\d}\a" * 20
  yield "input", r"\input{/etc/passwd}"
  yield "write18", r"\immediate\write18{sleep 1000}"
  yield "loop", r"\loop\iftrue\repeat"
  yield "csname", r"\csname " * 200
  yield "matrix", r"\begin{pmatrix}" + "&".join("x" * 200) + r"\end{pmatrix}"
  yield "tall matrix", r"\begin{pmatrix}" + r"\\".join("x" * 200) + r"\end{pmatrix}"
  yield "determinant", r"\det\begin{pmatrix}" + r"\\".join(
      "&".join(f"x_{{{i}{j}}}" for j in range(6)) for i in range(6)) + r"\end{pmatrix}"
  yield "integral", r"\int_0^1 \sin(x^x) \cos(e^{x}) \ln(x+\sqrt{x}) dx"
  yield "double integral", r"\int_0^1 \int_0^1 e^{xy\sin(x)} dx dy"
  yield "sum", r"\sum_{k=1}^{100000} \frac{1}{k^{k}}"
  yield "limit", r"\lim_{x \to 0} (\sin x / x)^{1/x^{x}}"
  yield "polynomial", "(a+b+c+d+e+f)^{60}"
  yield "difference", "(a+b+c+d+e)^{40}-(e+d+c+b+a)^{40}"
  yield "roots", "+".join(rf"\sqrt[{n}]{{{n + 1}}}" for n in range(2, 60))
  yield "fractions", "+".join(rf"\frac{{{n}x+1}}{{x^{{{n}}}-{n}}}" for n in range(2, 40))
  yield "trigonometric", r"\sin(" * 12 + "x" + ")" * 12
  yield "trigonometric sum", "+".join(rf"\cos^{{{n}}}({n}x)" for n in range(2, 40))
  yield "logarithms", r"\ln " * 100 + "x"
  yield "absolute", "|" * 41 + "x"
  yield "equation", "x^{17}+3x^{11}-x^{5}+7x=\\sin(x)+e^{x}"
  yield "inequalities", " < ".join(f"x^{{{n}}}" for n in range(2, 10))
  yield "set", r"\{" + ",".join(rf"\sqrt{{{n}}}" for n in range(90)) + r"\}"
  yield "intervals", r"\cup".join(f"({n},{n + 1})" for n in range(60))
  yield "python", "__import__('os').system('sleep 1000')"
  yield "subscripts", "x" + "_1" * 400
  yield "primes", "x" + "'" * 900
  yield "units", r"5\text{ cm}" * 80
  yield "format", "%s%n{0.__class__}" * 40


def _characters() -> Iterator[tuple[str, str]]:
  for name, char in (("NUL", "\0"), ("bell", "\a"), ("escape", "\x1b[2J"), ("bidi", "\u202e"),
                     ("isolate", "\u2066"), ("zero width", "\u200b"), ("joiner", "\u200d"),
                     ("BOM", "\ufeff"), ("lone high surrogate", "\ud800"),
                     ("lone low surrogate", "\udfff"), ("replacement", "\ufffd"),
                     ("combining", "\u0301"), ("private", "\ue000"), ("emoji", "\U0001f600"),
                     ("noncharacter", "\uffff"), ("line separator", "\u2028"),
                     ("arabic digit", "\u0664"), ("fullwidth", "\uff14"), ("tag", "\U000e0041")):
    yield f"{name} inside", f"4{char}3"
    yield f"{name} repeated", char * 20_000
    yield f"{name} around", f"{char}43{char}"


def _responses() -> Iterator[tuple[str, str]]:
  yield "empty", ""
  yield "blank", " \t\n"
  yield "contradictory boxes", r"\boxed{41} and then, no: it must be \boxed{43} instead."
  yield "guesses", ", ".join(rf"\boxed{{{n}}}" for n in range(100))
  yield "guesses on lines", "\n".join(rf"\boxed{{{n}}}" for n in range(10_000))
  yield "hedge", box(r"41 \text{ or } 42")
  yield "boxes that never close", r"\boxed{" * 20_000
  yield "boxes that nest", r"\boxed{" * 20_000 + "42" + "}" * 20_000
  yield "box cut", r"Then \boxed{4"
  yield "box in open reasoning", r"<think>perhaps \boxed{42}"
  yield "thoughts", "<think>" * 20_000 + r"\boxed{42}" + "</think>" * 20_000
  yield "open thoughts", "<think>" * 100_000
  yield "closed thoughts", "</think>" * 100_000
  yield "tags", "<answer>" * 50_000
  yield "answer is", "the answer is " * 50_000
  yield "answer is 41", "the answer is 41. " * 50_000
  yield "hashes", "#" * 1_000_000
  yield "dollars", "$" * 100_001
  yield "dollar pairs", "$ x $ and " * 20_000
  yield "display", r"\[" * 50_000 + "43"
  yield "escapes", "\\$" * 50_000
  yield "braces before a box", "{" * 500_000 + r"\boxed{41}"
  yield "1 MB before a tower", "so " * 350_000 + box(_tower("9", 5))
  yield "1 MB after a box", r"\boxed{41}" + " so" * 350_000
  yield "almost boxes", r"\boxe{43" * 20_000
  yield "backslash boxes", "\\" * 200_000 + r"boxed{41}"
  yield "words and numbers", "12 then " * 20_000


def corpus() -> list[tuple[str, str, str]]:
  """All hostile (name, response, reference); names are unique, no response is right."""
  rows = []
  for family in (_powers, _factorials, _long, _nested, _bombs, _characters):
    rows += [(name, box(text), "42") for name, text in family()]
  rows += [(name, text, "42") for name, text in _responses()]
  rows += [(f"{name} against x", box(text), r"\frac{x+1}{2}") for name, text in _bombs()]
  return rows
