"""Fences of CommonMark, and the program in a response."""

import time

import pytest

from entrolab.environments.tools import ToolUse
from entrolab.tasks.countdown import Countdown
from entrolab.verify.fences import answer_part, fences, program_of


@pytest.mark.parametrize("text, found", [  # most are examples of CommonMark 0.31, section 4.5
    ("```\n<\n >\n```", [("", "<\n >\n")]), ("~~~\n<\n~~~", [("", "<\n")]),
    ("``\nfoo\n``", []), ("```\naaa\n~~~\n```", [("", "aaa\n~~~\n")]),
    ("~~~\naaa\n```\n~~~", [("", "aaa\n```\n")]), ("````\naaa\n```\n``````", [("", "aaa\n```\n")]),
    ("~~~~\naaa\n~~~\n~~~~", [("", "aaa\n~~~\n")]), ("```\n\n  \n```", [("", "\n  \n")]),
    ("```\n```", [("", "")]), (" ```\n aaa\naaa\n```", [("", "aaa\naaa\n")]),
    ("  ```\naaa\n  aaa\naaa\n  ```", [("", "aaa\naaa\naaa\n")]),
    ("   ```\n   aaa\n    aaa\n  aaa\n   ```", [("", "aaa\n aaa\naaa\n")]),
    ("    ```\n    aaa\n    ```", []), ("```\naaa\n  ```", [("", "aaa\n")]),
    ("   ```\naaa\n  ```", [("", "aaa\n")]), ("``` ```\naaa", []),
    ("~~~ aa ``` ~~~\naaa\n~~~", [("aa", "aaa\n")]), ("```\naaa\n``` aaa\n```",
                                                       [("", "aaa\n``` aaa\n")]),
    ("foo\n```\nbar\n```\nbaz", [("", "bar\n")]), ("~~~~    Ruby startline=3 $%@#$\nx\n~~~~~~~",
                                                   [("ruby", "x\n")]),
    ("````;\n````", [(";", "")]), ("```python title=`x`\n1\n```", []),
    ("```\r\na\r\n```\r\n", [("", "a\n")]), ("```{.python .x}\n1\n```", [("python", "1\n")]),
    ("- text\n\n    ```py\n    x\n      y\n    ```", [("py", "x\n  y\n")]),
    ("1. ```py\n   x\n   ```", [("py", "x\n")]), ("\t```\n\tx\n\t```", []),
    ("```a\n1\n```\n~~~b\n2\n~~~", [("a", "1\n"), ("b", "2\n")]), ("x ```\ny\n```z", [])])
def test_fences(text, found):
  assert [(f.language, f.body) for f in fences(text) if f.closed] == found


@pytest.mark.parametrize("text, body", [
    ("```", ""), ("`````\n\n```\naaa", "\n```\naaa"), ("```\naaa\n    ```", "aaa\n    ```"),
    ("```\n1\n``` 2\n", "1\n``` 2\n")])
def test_a_fence_that_nothing_closes_goes_to_the_end(text, body):
  found, = fences(text)
  assert not found.closed and found.body == body


DEFINE = "def f(x):\n  return x\n"
USE = "print(f(1))\n"


def fenced(body, tag="python", run="```"):
  return f"{run}{tag}\n{body}{run}\n"


@pytest.mark.parametrize("text, program", [
    (fenced(DEFINE) + "Use it:\n" + fenced(USE), DEFINE),
    (fenced("def f(x): pass\n") + fenced(DEFINE) + fenced(USE, "") + fenced("1\n", "output"),
     DEFINE),
    (fenced(DEFINE, "") + fenced(USE), DEFINE), (fenced(USE) + fenced("f = lambda x: x\n"),
                                                 "f = lambda x: x\n"),
    (fenced("def g(x): return x\n") + fenced("def f(x): return g(x)\n") + fenced(USE),
     "def g(x): return x\n\ndef f(x): return g(x)\n"),
    (fenced("import math\n") + fenced("def f(x): return math.e\n"),
     "import math\n\ndef f(x): return math.e\n"),
    (fenced(USE), USE), (fenced(DEFINE) + fenced("def f(: pass\n"), "def f(: pass\n"),
    (fenced("x.f = 1\nif f == 2: pass\n") + fenced(USE), USE),
    (fenced("class f: pass\n", "Python") + fenced(USE, "py"), "class f: pass\n"),
    (fenced(DEFINE, "python", "~~~~") + fenced(USE, "python", "~~~"), DEFINE),
    ("- So:\n  ```python\n  def f(x):\n    return x\n  ```\n", DEFINE),
    (fenced("s = '''\n```python\n1\n```\n'''\n" + DEFINE, "python", "````"),
     "s = '''\n```python\n1\n```\n'''\n" + DEFINE),
    (fenced(DEFINE) + "```python\nprint(", DEFINE), ("```python\n" + DEFINE, DEFINE),
    (f"{DEFINE}", DEFINE)])
def test_the_program_is_what_defines_the_names(text, program):
  assert program_of(text, ("python",), ("f",)) == program


def test_two_names_in_two_fences_are_both_taken():
  text = fenced("def g(): return 1\n") + fenced(DEFINE) + fenced("f(g())\n")
  assert program_of(text, ("python",), ("f", "g")) == "def g(): return 1\n\n" + DEFINE


TAGGED = "def f(x):\n  return x.replace('</think>', '').split('<answer>')[0] + '</answer>'\n"


@pytest.mark.parametrize("text, program", [
    (fenced(TAGGED), TAGGED), (f"<think>no\n{fenced(DEFINE)}</think>\n{fenced(TAGGED)}", TAGGED),
    (f"draft\n{fenced(TAGGED)}</think>so\n{fenced(DEFINE)}", DEFINE),
    (f"<think>\n```python\nopen\n</think>\n{fenced(TAGGED)}", TAGGED),
    (f"<answer>{fenced(TAGGED)}</answer>", TAGGED), (f"<answer>\n{fenced(TAGGED)}\n</answer>",
                                                     TAGGED),
    (f"</think>{fenced(DEFINE)}The tag `</think>` is left out.", DEFINE),
    (f"<think>{fenced(DEFINE)}", ""), ("<think>\n" + DEFINE, ""), ("<think></think>x = 1", "x = 1"),
    (f"{fenced(DEFINE)}Both <think> and </think> are tags.", DEFINE)])
def test_tags_inside_of_a_program_are_its_text(text, program):
  assert program_of(text, ("python",), ("f",)).strip("\n") == program.strip("\n")


def test_the_part_that_answers():
  assert answer_part("<think>a</think>b") == "b" and answer_part("a</think>b") == "b"
  assert answer_part("<think>a") is None and answer_part("a <answer>b</answer> c") == "b"
  assert answer_part("<answer>a</answer><answer>b</answer>") == "b"
  assert answer_part("<answer>a") == "<answer>a" and answer_part("") == ""


@pytest.mark.parametrize("text, program", [
    (fenced("print('```')\n"), "print('```')\n"), (fenced("1\n", "py"), "1\n"),
    (fenced("1\n", "python3"), "1\n"), (fenced("1\n", "Python"), "1\n"),
    (fenced("1\n", "python", "~~~"), "1\n"), (fenced("s = '''\n```\n'''\n", "python", "````"),
                                             "s = '''\n```\n'''\n"),
    (fenced("1\n", "python x=1"), "1\n"), ("so\n" + fenced("1\n") + "\n \n", "1\n"),
    (fenced("1\n", "pycon"), None), (fenced("1\n", ""), None), (fenced("1\n") + "so 2", None),
    ("```python\n1", None), ("text ```python\n1\n```", None), ("7", None), ("", None),
    (fenced("1\n", "output"), None), (fenced("1\n") + fenced("2\n"), "2\n")])
def test_a_tool_reads_the_same_fences(text, program):
  assert ToolUse(Countdown()).program(text) == program


def test_a_tool_of_another_language():
  shell = ToolUse(Countdown(), fence="sh")
  assert shell.program(fenced("ls\n", "bash")) == "ls\n" and shell.program(fenced("1\n")) is None


@pytest.mark.parametrize("text", [
    "`" * 200_000, "```\n" * 9000, "~~~a\n" * 9000, " " * 200_000 + "```", "- " * 100_000,
    "<think>" * 9000, "</think>" * 9000, "<answer>```\n" * 4000, "```python\nf = 1\n" * 3000,
    "def f(\n" * 9000, "import a\n" * 9000, "```\nimport a, f\n```\n" * 3000, "\t" * 100_000,
    "export " * 9000, "const f : " * 9000])
def test_hostile_texts_are_read_in_time(text):
  begin = time.process_time()
  program_of(text, ("python",), ("f",))
  ToolUse(Countdown()).program(text)
  assert time.process_time() - begin < 2.0
