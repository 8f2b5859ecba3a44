"""Constraints: every checker on known texts, its bounds, and hostile or empty responses."""

import random
import string

import pytest

from entrolab.verify import constraints

KNOWN = [  # requirement, met by, not met by, credit
    (dict(prompt_to_repeat=1), "Say hi. Hi.", "Hi. Say hi.", 0.1),
    (dict(num_highlights=2), "*a b* and _c_", "*a b* and c_ *\n*", 0.05),
    (dict(low_word_cnt=2, max_word_cnt=3), "one, two", "one two three four", 0.1),
    (dict(max_word_cnt=3), "one two three", "a b c d", 0.05),
    (dict(low_word_cnt=3), "a b c d", "it is", 0.05),
    (dict(num_placeholders=2), "[name] [a place]", "[name] place]", 0.05),
    (dict(num_bullets=2), "So:\n* a\n* b", "* a\n* b\n* c", 0.1),
    (dict(low_capital_cnt=1, max_capital_cnt=2), "A BIG cat", "a Big I", 0.1),
    (dict(max_capital_cnt=1), "I am A CAT", "NO CAT", 0.05),
    (dict(keywords=["cat"], keywords_num=[[2, 2]]), "a cat concatenates", "one Cat, a cat", 0.1),
    (dict(keywords=["cat"], keywords_num=[[-1, -1]]), "a dog", "a cat", 0.05),
    (dict(keywords=["cat"], keywords_num=[[-1, 1]]), "a cat", "cat cat", 0.05),
    (dict(num_sentences=2, sentences_style=0), "Yes. No?!", "Yes. No. Well", 0.2),
    (dict(num_sentences=2, sentences_style=-1), "Yes.", "Yes. No.", 0.05),
    (dict(num_sentences=2), "Yes.", "Yes. No.", 0.05),
    (dict(num_sentences=2, sentences_style=1), "a. b. c.", "a. b.", 0.05),
    (dict(letter="e", low_letter_num=2), "see", "set", 0.05),
    (dict(letter="e", low_letter_num=-1, max_letter_num=-1), "a cat", "the cat", 0.2),
    (dict(paragraphs="***", paragraphs_num=2), "one\n***\ntwo", "one\n\ntwo", 0.1),
    (dict(paragraphs="\n\n", paragraphs_num=2), "one\n\ntwo", "one\ntwo", 0.1),
    (dict(end_phrase="The end."), "So. The end.", "The end. So", 0.1),
    (dict(nth_paragraph=2, first_word="Then"), "First\n\nThen so", "Then\n\nso", 0.1),
]


@pytest.mark.parametrize("require, good, bad, credit", KNOWN, ids=lambda x: str(x)[:40])
def test_a_checker_tells_met_from_unmet(require, good, bad, credit):
  yes, no = (constraints.score(t, require, prompt="Say hi.") for t in (good, bad))
  assert (yes.points, yes.right, yes.total) == (credit, True, 1 + credit)
  assert (no.points, no.right, no.total) == (0, False, 0)


def test_every_key_has_a_case():
  assert {key for require, *_ in KNOWN for key in require} == constraints.KEYS


# every key, each with the value that asks for nothing
NOTHING = dict(
    prompt_to_repeat=-1, num_highlights=-1, low_word_cnt=-1, max_word_cnt=-1, num_placeholders=-1,
    num_bullets=-1, low_capital_cnt=-1, max_capital_cnt=-1, keywords=[], keywords_num=[],
    num_sentences=-1, sentences_style=-1, letter="", low_letter_num=-1, max_letter_num=-1,
    paragraphs="", paragraphs_num=-1, end_phrase="", nth_paragraph=-1, first_word="")

ASKED = [  # requirement, prompt, response, points, right
    # codes of sentences_style, of three sentences
    (dict(num_sentences=4, sentences_style=-1), "p", "One. Two! Three?", 0.05, True),
    (dict(num_sentences=4), "p", "One. Two! Three?", 0.05, True),
    (dict(num_sentences=2, sentences_style=1), "p", "One. Two! Three?", 0.05, True),
    (dict(num_sentences=4, sentences_style=1), "p", "One. Two! Three?", 0.0, False),
    (dict(num_sentences=3, sentences_style=0), "p", "One. Two! Three?", 0.2, True),
    (dict(num_sentences=3, sentences_style=-1), "p", "One. Two! Three?", 0.0, False),
    (dict(num_sentences=3, sentences_style=1), "p", "One. Two! Three?", 0.0, False),
    (dict(num_sentences=9, sentences_style=2), "p", "One. Two! Three?", 0.0, True),
    (dict(num_sentences=-1, sentences_style=0), "p", "One. Two! Three?", 0.0, True),
    # values that ask for nothing
    (NOTHING, "p", "So big.", 0.0, True),
    (NOTHING, "p", "", 0.0, True),
    (dict.fromkeys(NOTHING), "p", "So BIG.", 0.0, True),
    (dict(prompt_to_repeat=-1), "p", "Hello.", 0.0, True),
    (dict(prompt_to_repeat=0), "p", "Hello.", 0.0, True),
    (dict(low_capital_cnt=-1, max_capital_cnt=-1), "p", "So BIG.", 0.0, True),
    (dict(low_capital_cnt=-1, max_capital_cnt=-1), "p", "So big.", 0.0, True),
    (dict(letter="", low_letter_num=-1, max_letter_num=-1), "p", "So big.", 0.0, True),
    (dict(letter="", low_letter_num=3), "p", "So big.", 0.0, True),
    (dict(letter="z"), "p", "a cat", 0.2, True),
    (dict(letter="z"), "p", "a zebra", 0.0, False),
    (dict(letter="z", max_letter_num=-1), "p", "a cat", 0.2, True),
    (dict(first_word="Then"), "p", "So", 0.0, True),
    (dict(first_word="Then", nth_paragraph=-1), "p", "So", 0.0, True),
    (dict(first_word="Then", nth_paragraph=1), "p", "So", 0.0, False),
    (dict(first_word="Then", nth_paragraph=1, paragraphs=""), "p", "Then\n\nso", 0.1, True),
    (dict(first_word="", nth_paragraph=2), "p", "So", 0.0, True),
    (dict(paragraphs="", paragraphs_num=2), "p", "a", 0.0, True),
    (dict(paragraphs_num=2), "p", "a", 0.0, True),
    (dict(paragraphs="***", paragraphs_num=-1), "p", "a", 0.0, True),
    (dict(paragraphs="§", paragraphs_num=1), "p", "a", 0.0, False),
    (dict(end_phrase=" "), "p", "a", 0.0, True),
    (dict(keywords=["cat"], keywords_num=[[-1, -1]]), "p", "a dog", 0.05, True),
    (dict(keywords=["cat"], keywords_num=[[0, 0]]), "p", "a cat", 0.0, False),
    (dict(keywords=[""], keywords_num=[[1, 1]]), "p", "a cat", 0.0, True),
    # what is counted
    (dict(low_capital_cnt=2, max_capital_cnt=2), "p", "The U.S. and E-U met", 0.1, True),
    (dict(low_capital_cnt=1, max_capital_cnt=1), "p", "a TOP-TEN list", 0.1, True),
    (dict(low_capital_cnt=1), "p", "the NASA's plan", 0.0, False),
    (dict(low_capital_cnt=1), "p", "I saw NASA, twice", 0.05, True),
    (dict(low_capital_cnt=1), "p", "A 42 of 1,000", 0.0, False),
    (dict(num_bullets=1), "p", "* a\n  * b", 0.1, True),
    (dict(num_bullets=2), "p", "* a\n* b", 0.1, True),
    (dict(num_bullets=1), "p", "*a\n* b", 0.1, True),
    (dict(num_placeholders=1), "p", "[] [x]", 0.05, True),
    (dict(num_placeholders=2), "p", "[] [x]", 0.0, False),
    (dict(num_highlights=1), "p", "*a\nb*", 0.0, False),  # meant, see the header
    (dict(num_highlights=2), "p", "*a* and _b_", 0.05, True),
    # the repeated prompt is taken out before anything is counted
    (dict(prompt_to_repeat=1, max_word_cnt=3), "say a b c now", "say a b c now x", 0.15, True),
    (dict(prompt_to_repeat=1, max_word_cnt=3), "say a b c now", "x y z", 0.05, False),
    (dict(prompt_to_repeat=1, num_sentences=1, sentences_style=0), "Go. Now.", "Go. Now. Yes.",
     0.3, True),
    (dict(prompt_to_repeat=1, keywords=["b"], keywords_num=[[-1, -1]]), "a b", "a b c", 0.15, True),
    (dict(prompt_to_repeat=1, nth_paragraph=1, first_word="So"), "p q", "p q\n\nSo it", 0.2, True),
    (dict(max_word_cnt=3), "say a b c now", "say a b c now x", 0.0, False),
    (dict(prompt_to_repeat=1), "", "anything", 0.0, True),
]


@pytest.mark.parametrize("require, prompt, text, points, right", ASKED, ids=lambda x: str(x)[:40])
def test_what_is_asked_and_what_is_counted(require, prompt, text, points, right):
  got = constraints.score(text, require, prompt=prompt)
  assert got.points == pytest.approx(points, abs=1e-9) and got.right is right, got.checks


@pytest.mark.parametrize("key", sorted(NOTHING))
def test_a_missing_key_says_the_same_as_the_value_that_asks_for_nothing(key):
  """For each requirement and response: without the key, with that value, and with null."""
  for require, good, bad, _ in KNOWN:
    without = {name: value for name, value in require.items() if name != key}
    if key in ("keywords", "keywords_num"):  # which go together
      without = {n: v for n, v in without.items() if not n.startswith("keywords")}
    for text in (good, bad):
      scores = [constraints.score(text, {**without, **more}, prompt="Say hi.")
                for more in ({}, {key: NOTHING[key]}, {key: None})]
      assert scores[0] == scores[1] == scores[2], (require, text)


def test_bounds_read_as_the_five_conventions():
  kept = lambda low, high: [n for n in range(6) if constraints.within(n, low, high)]
  assert kept(2, 4) == [2, 3, 4] and kept(3, 3) == [3] and kept(3, -1) == [3, 4, 5]
  assert kept(-1, 2) == [0, 1, 2] and kept(-1, -1) == kept(0, 0) == [0]


def test_partial_credit_separates_what_all_or_nothing_does_not():
  """Claim 4: fewer groups of equal reward under the dense score, each piece there at random."""
  rng = random.Random(0)
  require = dict(max_word_cnt=4, letter="q", low_letter_num=1, num_placeholders=1,
                 end_phrase="end", num_highlights=1)
  pieces = ["q", "[x]", "*b*", "more words go here", "end"]
  flat = {"total": 0, "right": 0}
  for _ in range(200):
    group = [constraints.score(" ".join(p for p in pieces if rng.random() < 0.5), require)
             for _ in range(8)]
    for name in flat:
      flat[name] += len({getattr(s, name) for s in group}) == 1
  print("groups without a signal", flat)
  assert flat["total"] < 0.1 * flat["right"]


def test_a_response_must_end_its_reasoning():
  require = [dict(num_sentences=1, sentences_style=0)] * 3
  texts = ["<think>a. b.</think>One.", "One.", "</think>One. Two.</think> Three. Four."]
  out = constraints.verify(texts, require, ["p"] * 3)
  assert [v.status for v, _ in out] == ["right", "wrong", "wrong"]
  assert [s.total for _, s in out] == [1.2, 0.0, 0.0]
  assert out[1][0].why == "no </think>" and "num_sentences" in out[2][0].why


def test_nothing_in_a_response_raises_or_takes_long():
  rng = random.Random(1)
  everything = {}
  for require, *_ in KNOWN:
    everything |= require
  odd = ["", " ", "\x00", "[" * 200_000, "*" * 200_000, "_a" * 100_000, "." * 200_000,
         "".join(rng.choices(string.printable + "é。\u2028", k=5000))]
  for text in odd:
    assert not constraints.score(text, everything, prompt="Say hi.").right
  strange = dict(paragraphs="§", paragraphs_num=1, letter="", low_letter_num=-1, keywords=[""],
                 keywords_num=[[-1, 5]], first_word="a", nth_paragraph=-3)
  assert constraints.score("a", strange).points == 0
  with pytest.raises(ValueError, match="requirement 'num_word'"):
    constraints.score("a", dict(num_word=3))
  with pytest.raises(ValueError, match="2 texts"):
    constraints.verify(["a", "b"], [{}], ["p"])
