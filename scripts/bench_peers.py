"""What bench.py measures of others, on the same weights, inputs and lengths, with their own
interpreters: nothing of this project is imported here."""

import time
from typing import Any

import numpy as np

clock = time.perf_counter  # bench.py may count processor time


def torch_head(shape):
  """Log-prob and entropy from whole logits, forward and backward, in plain torch."""
  import torch
  n, d, v = shape
  rng = np.random.default_rng(0)
  normal = lambda *s: torch.from_numpy(rng.standard_normal(s, np.float32))
  hidden, head = normal(n, d).requires_grad_(), (normal(v, d) * (3.0 / d**0.5)).requires_grad_()
  tokens = torch.from_numpy(rng.integers(0, v, n))
  up = normal(2, n) / n
  def run():
    logp = torch.log_softmax(hidden @ head.T, -1)
    picked = logp.gather(-1, tokens[:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(-1)
    (picked @ up[0] + entropy @ up[1]).backward()
    hidden.grad = head.grad = None
  return run, {"bounds": {"4 matmul": ("matmul", 4)}, "beside": ["fused", "pair"]}


def transformers_sample(folder, batch, prompt, new):
  """Seconds of one decode step of `generate`, its prefill taken off."""
  import torch
  from transformers import AutoModelForCausalLM
  model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  rng = np.random.default_rng(0)
  tokens = torch.from_numpy(rng.integers(3, model.config.vocab_size, (batch, prompt)))
  def timed(longest):
    begin = clock()
    with torch.no_grad():
      out: Any = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=True,
                                temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=longest,
                                min_new_tokens=longest, pad_token_id=0, eos_token_id=None)
    assert out.shape == (batch, prompt + longest)
    return clock() - begin
  def run():
    one, full = timed(1), timed(new)
    return {"seconds": (full - one) / (new - 1), "prefill": one}
  return run, {"per_second": {"tokens/s": float(batch)}, "beside": ["decode"]}


CASES = {"head.torch": torch_head, "sample.transformers": transformers_sample}
