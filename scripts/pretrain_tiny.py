"""Makes the embedded model: its tokenizer, and a decoder trained on random chains of countdown.

  python scripts/pretrain_tiny.py [--steps 2500] [--out entrolab/models/tiny_assets]

Every demonstration is one random valid chain of a random problem, so that a problem is met with
different solutions and the policy stays uncertain among them. It stops long before the policy is
good at the task: what is left to learn, and to lose, is the point. Minutes on two cores.
"""

import argparse
import dataclasses
import hashlib
import io
import json
import math
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import sentencepiece  # noqa: E402
from safetensors import numpy as safetensors  # noqa: E402

from entrolab import vocab  # noqa: E402
from entrolab.keys import row_keys  # noqa: E402
from entrolab.models import tiny, transformer  # noqa: E402
from entrolab.rollout import decode  # noqa: E402
from entrolab.tasks import prompts  # noqa: E402
from entrolab.tasks.countdown import Countdown  # noqa: E402

PROMPT, RESPONSE = 10, 18  # four numbers, a target; three steps and the end of sequence


def make_tokenizer() -> bytes:
  """A sentencepiece model whose user-defined symbols are the numbers 0 to 99 and the signs.

  The last seven signs are spare: with them the vocabulary of 120 divides over 2, 4 and 8 devices.
  """
  symbols = [str(n) for n in range(100)] + list("+-*/=,>:()<!%^.")
  out = io.BytesIO()
  # the trainer wants one character that is no symbol: "?"; with 4 control pieces that makes five
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(["?"]), model_writer=out, vocab_size=len(symbols) + 5,
      model_type="char", user_defined_symbols=symbols, pad_id=0, unk_id=1, bos_id=2, eos_id=3,
      add_dummy_prefix=False, normalization_rule_name="identity", minloglevel=2)
  return out.getvalue()


def batches(tokenizer, size: int, seed: int):
  """Endless (tokens [size, PROMPT + RESPONSE], mask of the response) of training problems."""
  task, rng = Countdown(), np.random.default_rng(seed)
  while True:
    tokens = np.zeros((size, PROMPT + RESPONSE), np.int32)
    mask = np.zeros((size, PROMPT + RESPONSE), bool)
    for row in range(size):
      problem, steps = task.demonstration(rng, evaluation=False)
      prompt = tokenizer.encode(problem)
      ids = prompt + tokenizer.encode(steps) + [tokenizer.eos_id]
      tokens[row, :len(ids)], mask[row, len(prompt):len(ids)] = ids, True
    yield tokens, mask


def train(config: transformer.Config, tokenizer, *, steps: int, batch: int, lr: float, seed: int):
  """Yields (step, params, loss, entropy in nats) after every step.

  AdamW, warm-up of 50 steps, cosine to a tenth; cross-entropy of the response tokens.
  """
  params = transformer.init(config, jax.random.key(seed))
  schedule = optax.warmup_cosine_decay_schedule(0.0, lr, 50, steps, 0.1 * lr)
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))
  spec = vocab.Spec(names=("logp", "entropy"))

  def loss(params, tokens, mask):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    hidden = transformer.hidden_states(config, params, tokens, positions, jnp.ones_like(tokens))
    logits = jnp.einsum("bsd,vd->bsv", hidden[:, :-1], transformer.head_matrix(params))
    live, on = vocab.from_logits(logits, tokens[:, 1:], spec), mask[:, 1:]
    mean = lambda x: jnp.where(on, x, 0.0).sum() / on.sum()
    return -mean(live["logp"]), mean(live["entropy"])

  @jax.jit
  def step(params, opt, tokens, mask):
    (value, entropy), grads = jax.value_and_grad(loss, has_aux=True)(params, tokens, mask)
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, value, entropy

  opt, stream = tx.init(params), batches(tokenizer, batch, seed)
  for n in range(1, steps + 1):
    params, opt, value, entropy = step(params, opt, *next(stream))
    yield n, params, float(value), float(entropy)


def measure(config: transformer.Config, params, tokenizer, *, problems: int = 512,
            samples: int = 32, seed: int = 0) -> dict[str, float]:
  """On held-out problems: pass@1 and unbiased pass@16, distinct right answers of 16 (expected),
  entropy in nats a token, mean length, share of responses that end."""
  task = Countdown()
  examples = [task.examples("eval", seed)[i] for i in range(problems)]
  prompt, mask = prompts.padded([task.prompt(e, tokenizer) for e in examples], task.max_prompt,
                             tokenizer.pad_id)
  keys = row_keys(jax.random.key(seed), 0, jnp.arange(problems), samples)
  out = decode.sample(config, params, prompt, mask, keys,
                      decode.Decoding.of(stop_ids=tokenizer.stop_ids), samples=samples,
                      max_tokens=RESPONSE)
  tokens, on = np.asarray(out.tokens), np.asarray(out.mask)
  texts = [tokenizer.decode(row[live].tolist()) for row, live in zip(tokens, on, strict=True)]
  right = [v.status == "right"
           for v in task.verify(texts, [e for e in examples for _ in range(samples)])]
  missed = lambda count: math.comb(samples - count, 16) / math.comb(samples, 16)
  ones, many, distinct = [], [], []
  for at in range(0, len(texts), samples):
    won = [t for t, ok in zip(texts[at:at + samples], right[at:at + samples], strict=True) if ok]
    ones.append(len(won) / samples)
    many.append(1 - missed(len(won)))
    distinct.append(sum(1 - missed(won.count(text)) for text in set(won)))
  return {"pass@1": float(np.mean(ones)), "pass@16": float(np.mean(many)),
          "distinct@16": float(np.mean(distinct)),
          "entropy": float(np.asarray(out.entropy)[on].mean()),
          "length": float(on.sum(1).mean()), "ended": float(np.asarray(out.finished).mean())}


def main(argv=None):
  """Trains, measures, and writes model.safetensors, tokenizer.model and config.json."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--steps", type=int, default=2500)
  parser.add_argument("--batch", type=int, default=64)
  parser.add_argument("--lr", type=float, default=1e-3)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", type=pathlib.Path, default=ROOT / "entrolab/models/tiny_assets")
  args = parser.parse_args(argv)
  recipe = {k: v for k, v in vars(args).items() if k != "out"}

  model = make_tokenizer()
  tokenizer = tiny.Tokenizer(model)
  config = transformer.Config(vocab_size=tokenizer.vocab_size, width=128, layers=4, heads=4,
                              kv_heads=2, head_dim=32, mlp_width=384, max_length=64)
  begin, params = time.time(), {}
  for n, current, value, entropy in train(config, tokenizer, **recipe):
    params = current
    if n % 100 == 0 or n == 1:
      print(f"step {n}/{args.steps}  loss {value:.4f}  entropy {entropy:.4f}  "
            f"{time.time() - begin:.0f} s", flush=True)
  figures = measure(config, params, tokenizer)
  print("  ".join(f"{name} {value:.3f}" for name, value in figures.items()))

  args.out.mkdir(parents=True, exist_ok=True)
  blobs = {"model.safetensors": safetensors.save(tiny.flatten(params)), "tokenizer.model": model}
  for name, blob in blobs.items():
    (args.out / name).write_bytes(blob)
  facts = {"config": dataclasses.asdict(config), "recipe": recipe,
           "figures": {name: round(value, 4) for name, value in figures.items()},
           "sha256": {name: hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()}}
  (args.out / "config.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
  main()
