"""Where tokenizer, template and model meet: how sequences begin, what templates may use, sizes."""

import json

import jax
import numpy as np
import pytest

from entrolab import aggregate, presets, sharding
from entrolab.methods import grpo, ppo
from entrolab.models import gguf, huggingface, huggingface_tokenizer
from entrolab.models.parameters import Config
from entrolab.objective import Objective, term
from entrolab.rollout.branch import Cure
from entrolab.rollout.engine import Engine
from entrolab.rollout.plain import Plain
from entrolab.rollout.replay import Replay
from entrolab.rollout.switch import Switch
from entrolab.tasks import spelling
from entrolab.tasks.task import check_sizes, opened, within
from entrolab.tasks.written import Chat, FewShot, Jsonl, chat, plain
from entrolab.trainer import explain
from tests.models_test import BYTES, CHATML, SPECIAL, copy, small

HI = [{"role": "user", "content": "hi"}]


def begun(template):
  """Byte-level BPE whose sequences begin with <|im_start|>, id 1."""
  return gguf.Tokenizer(small().fast, "begun", eos_id=2, pad_id=0, template=template, bos_id=1,
                        opens=True)


def sentencepiece_like(folder, template, first="<s>"):
  """A folder of a tokenizer with ▁ for blanks, bytes for other characters, and <s> in front."""
  tokenizers = pytest.importorskip("tokenizers")
  pieces = ["<pad>", "<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyzPA:", "\n",
            *(f"<0x{byte:02X}>" for byte in range(256))]
  made = tokenizers.Tokenizer(tokenizers.models.BPE(
      {piece: at for at, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token=None))
  made.normalizer = tokenizers.normalizers.Sequence([
      tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")])
  made.decoder = tokenizers.decoders.Sequence([
      tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(" ", 1, 0)])
  made.add_special_tokens(["<pad>", "<s>", "</s>"])
  if first:
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=[first, "$A", "</s>"], special_tokens=[(first, 1), ("</s>", 2)])
  folder.mkdir(exist_ok=True)
  made.save(str(folder / "tokenizer.json"))
  facts = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>",
               pad_token="<pad>", clean_up_tokenization_spaces=False, chat_template=template)
  (folder / "tokenizer_config.json").write_text(json.dumps(facts))
  return huggingface_tokenizer.Tokenizer(folder)


FORMATS = [plain, chat, FewShot((("a", "b"), ("c", "d"))), Chat(user="{problem}", system="be")]
WITH, WITHOUT = "{{ bos_token }}" + CHATML, CHATML


def problems(folder):
  """A file of twenty problems, the evaluation's not among those of training."""
  path = folder / "data.jsonl"
  path.write_text("".join(json.dumps({"problem": "a" + "b" * (1 + n % 18), "answer": "1"}) + "\n"
                          for n in range(20)))
  return str(path)


@pytest.mark.parametrize("template", [WITH, WITHOUT], ids=["adds it", "adds none"])
@pytest.mark.parametrize("form", FORMATS, ids=["plain", "chat", "few-shot", "system"])
def test_a_prompt_begins_once_in_every_format(form, template, tmp_path):
  task = Jsonl(problems(tmp_path), format=form, max_prompt=999)
  # the first of the sign is the one in front: CHATML itself writes it before every message
  of_text = lambda tokenizer, text: tokenizer.encode(text).count(1)
  for split in ("train", "eval"):
    example = task.examples(split, 0)[0]
    for tokenizer in (begun(template), sentencepiece_like(tmp_path / "hf", template),
                      sentencepiece_like(tmp_path / "none", WITHOUT, first="")):
      ids = task.prompt(example, tokenizer)
      text = form(example.prompt, tokenizer)
      starts = bool(tokenizer.opening)
      has = text.startswith(("<s>", "<|im_start|>")) and ids[0] == 1
      assert (ids[0] == 1) == (starts or has)
      assert ids[1:2] != [1] or "<|im_start|><|im_start|>" in text
      extra = starts and not tokenizer.encode(text)[:1] == [1]
      assert ids.count(1) == of_text(tokenizer, text) + extra
      assert 2 not in ids[-1:]  # nothing that a post-processor puts behind a text


def test_the_post_processor_is_read_out_of_a_folder(tmp_path):
  tokenizer = sentencepiece_like(tmp_path / "a", WITH)
  assert tokenizer.opening == (1,)
  assert tokenizer.encode("ab") == tokenizer.inner.encode("ab", add_special_tokens=False)
  assert sentencepiece_like(tmp_path / "b", WITH, first="").opening == ()
  # what is exported begins sequences, too
  begun(WITHOUT).save(tmp_path)
  exported = huggingface_tokenizer.Tokenizer(tmp_path)
  assert exported.opening == begun(WITHOUT).opening == (1,)
  assert exported.chat(HI) == begun(WITHOUT).chat(HI)


@pytest.mark.parametrize("strings", [("\n\n",), ("é",), ("ab c",), (" b",), ("中!",)])
def test_stop_strings_of_tokens_with_blanks_and_bytes(strings, tmp_path):
  """Of a tokenizer that strips the first blank of a text and falls back to bytes."""
  tokenizer = sentencepiece_like(tmp_path, WITH)
  rng = np.random.default_rng(1)
  texts = ["".join(rng.choice(list(strings[0] + "ab \n"), 12)) for _ in range(40)]
  rows = [tokenizer.encode(text)[:14] for text in texts]
  for row in rows:
    mask = np.ones((1, len(row)), bool)
    got = spelling.ends(strings[0], tokenizer, np.asarray([row]), mask)[0]
    want = next((at for at in range(len(row)) if strings[0] in tokenizer.decode(row[:at + 1])), -1)
    assert (int(got.argmax()) if got.any() else -1) == want, tokenizer.decode(row)


# ---- templates


@pytest.mark.parametrize("template,want", [
    ("{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
     "<|im_start|>hi<|im_end|>"),
    ("{{ pad_token }}|{{ tools is none }}|{{ documents is none }}", "<|endoftext|>|True|True"),
    ("{{ {'b': '<é>', 'a': 1} | tojson }}", '{"b": "<é>", "a": 1}'),
    ("{{ [1, 2] | tojson(indent=1) }}", "[\n 1,\n 2\n]"),
    ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=True, separators=(',', ':')) }}", '{"a":2,"b":1}'),
    ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 2 %}{% break %}"
     "{% endif %}{{ i }}{% endfor %}", "02"),
    ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "hi!"),
    ("{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}"
     "{{ n.x }}", "1"),
    ("{{ dict(a=1).a }}{% if true %}\n  yes\n{% endif %}", "1  yes\n"),
    ("{{ strftime_now('%Y') | length }}", "4"), ("{{ unk_token }}{{ nothing }}", ""),
])
def test_templates_have_what_transformers_gives_them(template, want, tmp_path):
  tokenizer = begun(template)
  tokenizer.save(tmp_path)
  assert tokenizer.chat(HI) == huggingface_tokenizer.Tokenizer(tmp_path).chat(HI) == want


@pytest.mark.parametrize("template,said", [
    ("{{ raise_exception('no system role here') }}", "no system role here"),
    ("{% if messages[0].role != 'system' %}{{ raise_exception('first ' ~ 1) }}{% endif %}",
     "first 1"),
    ("{{ 1 / 0 }}", "division"), ("{{ messages[0].content + 1 }}", "concatenate"),
    ("{{ missing.deeper }}", "'missing' is undefined"), ("{% for %}", "Expected an expression"),
    ("{{ ''.__class__ }}{{ ''.__class__.__mro__ }}", "unsafe"),
])
def test_a_template_fails_in_its_own_words(template, said, tmp_path):
  tokenizer = begun(template)
  tokenizer.save(tmp_path)
  for one in (tokenizer, huggingface_tokenizer.Tokenizer(tmp_path)):
    with pytest.raises(ValueError, match=f"the chat template failed: .*{said}"):
      one.chat(HI)


# ---- sizes


def test_a_tokenizer_beyond_the_embedding_is_refused(tmp_path):
  def folder(name, *more):
    copy(tmp_path / name, "llama")
    signs = [*SPECIAL, *BYTES][:96 - 3]  # the embedding of the parity checkpoint has 96 rows
    tokens = [*signs, *more]
    fast = gguf._bpe(tokens, [], [3] * 3 + [1] * (len(tokens) - 3), "smollm")
    gguf.Tokenizer(fast, name, eos_id=2, pad_id=0, template=None).save(tmp_path / name)
    return presets.HuggingFace(str(tmp_path / name))

  # rows without tokens are padding, as many as there are tokens is right, too
  for name, more in (("fewer", ()), ("equal", ("<a>", "<b>", "<c>"))):
    assert folder(name, *more).load()[2].vocab_size == 93 + len(more)
  with pytest.raises(ValueError, match="ids up to 96, and the model's embedding has 96 rows"):
    folder("more", "<a>", "<b>", "<c>", "<d>").load()


class Tokens:
  name, pad_id, eos_id, stop_ids, vocab_size = "tokens", 0, 1, (1,), 8
  ids = [3]

  def encode(self, text):
    return self.ids

  def decode(self, ids):
    return "".join(map(str, ids))

  def chat(self, messages):
    return str(messages)


def test_ids_without_a_row_are_refused_wherever_they_come_from(tmp_path):
  size = Config(vocab_size=8, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp_width=8)
  task = Jsonl(problems(tmp_path))
  example = task.examples("train", 0)[0]
  made = lambda tokenizer: Engine(size, tokenizer, task, one_device())
  tokenizer = Tokens()
  assert made(tokenizer).prompted([example]).mask.sum() == 1
  for bad in (8, -1, 2**40):
    tokenizer.ids = [3, bad]
    with pytest.raises(ValueError, match=f"prompt of example 0: token id {bad} at place 1 has no"):
      made(tokenizer).prompted([example])
  for name, value in (("stop_ids", (1, 8)), ("pad_id", 9), ("vocab_size", 9)):
    other = Tokens()
    setattr(other, name, value)
    with pytest.raises(ValueError, match="model's embedding"):
      made(other)
  within([], 1, "nothing")
  check_sizes(Tokens(), 8)
  assert opened(Tokens(), [1]) == [1]
  with pytest.raises(ValueError, match="its tokenizer: token id 200"):
    config, params = huggingface.load("tests/parity/llama")
    huggingface.save(tmp_path / "out", config, params, tokenizer=gguf.Tokenizer(
        small().fast, "small", eos_id=200, pad_id=0, template=None))


def one_device():
  return sharding.make_mesh(1, 1, 1, jax.devices()[:1])


# ---- lengths


def test_positions_beyond_the_model_are_said():
  experiment = presets.get("tiny").experiment("x", _objective())
  config, _, _ = presets.Tiny().load()
  assert explain.lengths(experiment, config) == []
  longer = presets.get("tiny").experiment("x", _objective(), sampling=dict(max_tokens=100))
  said, = explain.lengths(longer, config)
  assert f"{longer.task.max_prompt + 100} positions" in said and "max_length=64" in said
  assert f"sampling.max_tokens={64 - longer.task.max_prompt} or less" in said
  assert f"note: {said}" in explain.plan(longer, config)

  branched = presets.get("tiny").experiment("x", _objective(), rollout=Cure(2, 3))
  prompt = branched.task.max_prompt
  assert branched.rollout.positions(prompt, 18) == prompt + 35
  assert Switch(Plain(), Plain(), 3).positions(5, 6) == Replay().positions(5, 6) == 11


def _objective():
  return Objective(reward=term(grpo.outcome), advantage=term(grpo.group_advantage, size=8),
                   surrogate=term(ppo.clipped_ratio), aggregate=term(aggregate.token_mean))
