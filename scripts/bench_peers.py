"""What bench.py measures of others, on the same weights, inputs and lengths, with their own
interpreters: nothing of this project is imported here."""

import json
import os
import pathlib
import queue
import tempfile
import threading
import time
from typing import Any

import numpy as np

clock = time.perf_counter  # bench.py may count processor time


def head_inputs(shape):
  """(hidden, head, tokens, upstream gradients [2, N]), as bench_cases draws them."""
  n, d, v = shape
  rng = np.random.default_rng(0)
  normal = lambda *s: rng.standard_normal(s, np.float32)
  return (normal(n, d), normal(v, d) * np.float32(3.0 / d**0.5), rng.integers(0, v, n),
          normal(2, n) / np.float32(n))


HEAD = {"bounds": {"4 matmul": ("matmul", 4)}, "beside": ["fused", "pair"]}


def in_torch(shape, statistics):
  """Forward and backward of `statistics(hidden, head, tokens)`: log-prob and entropy."""
  import torch
  hidden, head, tokens, up = map(torch.from_numpy, head_inputs(shape))
  hidden.requires_grad_()
  head.requires_grad_()
  def run():
    logp, entropy = statistics(hidden, head, tokens)
    (logp @ up[0] + entropy @ up[1]).backward()
    hidden.grad = head.grad = None
  return run, HEAD


def torch_head(shape):
  """Log-prob and entropy from whole logits in plain torch."""
  def statistics(hidden, head, tokens):
    logp = (hidden @ head.T).log_softmax(-1)
    return logp.gather(-1, tokens[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
  return in_torch(shape, statistics)


def trl_head(shape):
  """TRL's two statistics of logits in one call."""
  from trl.trainer.utils import selective_log_softmax_and_entropy
  return in_torch(shape, lambda h, w, t: selective_log_softmax_and_entropy(h @ w.T, t))


def trl_chunked_head(shape):
  """TRL's head without whole logits, in the chunks its GRPO trainer takes."""
  from trl.kernels import ChunkedLogProbFunction
  outputs = ("log_probs", "entropy")
  return in_torch(shape, lambda h, w, t: ChunkedLogProbFunction.apply(
      h, w, None, t, 1.0, 32768, None, 1.0, outputs)[:2])


def verl_head(shape):
  """verl's two functions of the logits."""
  from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits
  def statistics(hidden, head, tokens):
    logits = hidden @ head.T
    return logprobs_from_logits(logits, tokens), entropy_from_logits(logits)
  return in_torch(shape, statistics)


def tunix_head(shape):
  """tunix's two functions of the logits, compiled with their gradient."""
  import jax
  from tunix.rl.algo_core import compute_entropy_from_logits
  from tunix.rl.common import selective_log_softmax
  def loss(hidden, head, tokens, up):
    logits = hidden @ head.T
    return selective_log_softmax(logits, tokens) @ up[0] + compute_entropy_from_logits(
        logits) @ up[1]
  args = [jax.numpy.asarray(x) for x in head_inputs(shape)]
  begin = time.perf_counter()
  made = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*args).compile()
  seconds, sizes = time.perf_counter() - begin, made.memory_analysis()
  assert sizes is not None
  def run():
    jax.block_until_ready(made(*args))
  return run, {"compile_s": seconds, "temp_mb": sizes.temp_size_in_bytes / 1e6, **HEAD}


def transformers_sample(folder, batch, prompt, new):
  """Seconds of one decode step of `generate`, its prefill taken off."""
  import torch
  from transformers import AutoModelForCausalLM
  model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  rng = np.random.default_rng(0)
  tokens = torch.from_numpy(rng.integers(3, model.config.vocab_size, (batch, prompt)))
  def timed(max_tokens):
    begin = clock()
    with torch.no_grad():
      out: Any = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=True,
                                temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max_tokens,
                                min_new_tokens=max_tokens, pad_token_id=0, eos_token_id=None)
    assert out.shape == (batch, prompt + max_tokens)
    return clock() - begin
  return decoding(timed, batch, new)


def decoding(timed, batch, new):
  """`timed(n)`: seconds of a prefill and n tokens; gives the seconds of one decode step."""
  def run():
    one, full = timed(1), timed(new)
    return {"seconds": (full - one) / (new - 1), "prefill": one}
  return run, {"per_second": {"tokens/s": float(batch)}, "beside": ["decode"]}


def texts(rows):
  """Prompts as text: token 7 is "7"."""
  return [" ".join(map(str, row)) for row in rows.tolist()]


def parity(prompts, completions, **_):
  """1 where the first token is even."""
  return [float(int(text.split(" ")[0]) % 2 == 0) for text in completions]


def paced(loop):
  """`loop(gate)` in a thread; the result lets it run from one `gate()` to the next."""
  begin, reached = queue.Queue(), queue.Queue()
  def gate():
    reached.put(None)
    begin.get()
  def body():
    try:
      loop(gate)
      reached.put(RuntimeError("the training loop ended"))
    except Exception as error:  # raised again by whoever waits for the next gate
      reached.put(error)
  def arrive():
    error = reached.get()
    if error is not None:
      raise error
  def step():
    begin.put(None)
    arrive()
  threading.Thread(target=body, daemon=True).start()
  arrive()
  return step


def training(step, owner, name, tokens):
  """A run of one `step()`, in which the method `name` of `owner` is the rollout."""
  method, spent = getattr(owner, name), []
  def timed(*args, **kwargs):
    start = clock()
    result = method(*args, **kwargs)
    spent.append(clock() - start)
    return result
  setattr(owner, name, timed)
  def run():
    spent.clear()
    start = clock()
    step()
    seconds = clock() - start
    return {"seconds": seconds, "rollout": sum(spent), "train": seconds - sum(spent)}
  return run, {"per_second": {"tokens/s": float(tokens)}, "beside": ["grpo"]}


def trl_step(folder, prompts, samples, prompt, max_tokens):
  """A step of TRL's GRPOTrainer, which generates by transformers; no reference, no logging.

  rollout: generation; train: the rest, which scores no response before the update.
  """
  import torch
  from datasets import Dataset
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
  from trl import GRPOConfig, GRPOTrainer
  model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
  size, rows = model.config.vocab_size, prompts * samples
  model.generation_config.eos_token_id = None
  words = {**{str(i): i for i in range(size)}, "<end>": size}  # the end is never drawn
  tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  random = np.random.default_rng(0).integers(3, size, (64 * prompts, prompt))
  config = GRPOConfig(
      tempfile.gettempdir(), per_device_train_batch_size=rows, num_generations=samples,
      max_completion_length=max_tokens, beta=0.0, loss_type="grpo", learning_rate=5e-5,
      lr_scheduler_type="constant", max_grad_norm=1.0, max_steps=2**20, use_cpu=True, bf16=False,
      gradient_checkpointing=False, logging_strategy="no", save_strategy="no", report_to="none",
      disable_tqdm=True)
  trainer = GRPOTrainer(
      model, parity, config, Dataset.from_dict({"prompt": texts(random)}),
      processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>",
                                               pad_token="<end>"))
  def loop(gate):
    class Gate(TrainerCallback):
      def on_step_begin(self, *args, **kwargs):
        gate()
    trainer.add_callback(Gate())
    trainer.train()
  return training(paced(loop), trainer, "_generate_single_turn", rows * max_tokens)


class Ids:
  """A tokenizer for tunix: token 7 is "7"; its end, which also pads, is never drawn."""

  def __init__(self, size):
    self.size = size

  def encode(self, text):
    """Token ids."""
    return [int(word) for word in text.split(" ")]

  def decode(self, ids):
    """The ids, separated."""
    return " ".join(map(str, ids))

  def bos_id(self):
    """None is put before a prompt."""
    return None

  def eos_id(self):
    """One more than the model knows."""
    return self.size

  pad_id = eos_id


def tunix_model(folder):
  """(tunix's Llama with the weights of a folder, its config)."""
  import jax.numpy as jnp
  from tunix.models.llama3 import model, params
  facts = json.loads((pathlib.Path(folder) / "config.json").read_text())
  config = model.ModelConfig(
      num_layers=facts["num_hidden_layers"], vocab_size=facts["vocab_size"],
      embed_dim=facts["hidden_size"], hidden_dim=facts["intermediate_size"],
      num_heads=facts["num_attention_heads"], num_kv_heads=facts["num_key_value_heads"],
      head_dim=facts["head_dim"], norm_eps=facts["rms_norm_eps"],
      rope_theta=0,  # their attention does not read it, but rotates by another base
      weight_tying=facts["tie_word_embeddings"])
  return params.create_model_from_safe_tensors(folder, config, dtype=jnp.float32), config


def tunix_sample(folder, batch, prompt, new):
  """Seconds of one decode step of tunix's Sampler, its prefill taken off."""
  from tunix.generate import sampler
  model, config = tunix_model(folder)
  cache = sampler.CacheConfig(prompt + new, config.num_layers, config.num_kv_heads,
                              config.head_dim)
  made = sampler.Sampler(model, Ids(config.vocab_size), cache)
  rng = np.random.default_rng(0)
  inputs = texts(rng.integers(3, config.vocab_size, (batch, prompt)))
  def timed(max_tokens):
    begin = clock()
    out = made(inputs, max_generation_steps=max_tokens, max_prompt_length=prompt, temperature=1.0,
               top_p=1.0)
    seconds = clock() - begin
    assert [len(row) for row in out.tokens] == [max_tokens] * batch
    return seconds
  return decoding(timed, batch, new)


def gguf_file(folder, path):
  """Writes a folder's float32 weights for llama.cpp; token 7 is "7"."""
  import gguf
  from safetensors import safe_open
  facts = json.loads((pathlib.Path(folder) / "config.json").read_text())
  size, heads = facts["vocab_size"], {"q_proj": facts["num_attention_heads"],
                                      "k_proj": facts["num_key_value_heads"]}
  out = gguf.GGUFWriter(path, "llama")
  out.add_block_count(facts["num_hidden_layers"])
  out.add_context_length(facts["max_position_embeddings"])
  out.add_embedding_length(facts["hidden_size"])
  out.add_feed_forward_length(facts["intermediate_size"])
  out.add_head_count(heads["q_proj"])
  out.add_head_count_kv(heads["k_proj"])
  out.add_key_length(facts["head_dim"])
  out.add_value_length(facts["head_dim"])
  out.add_rope_dimension_count(facts["head_dim"])
  out.add_rope_freq_base(facts["rope_theta"])
  out.add_layer_norm_rms_eps(facts["rms_norm_eps"])
  out.add_tokenizer_model("llama")
  out.add_token_list([str(i) for i in range(size)])
  out.add_token_scores([0.0] * size)
  out.add_token_types([gguf.TokenType.NORMAL] * size)
  names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, facts["num_hidden_layers"])
  with safe_open(pathlib.Path(folder) / "model.safetensors", framework="numpy") as file:
    for name in file.keys():
      array = file.get_tensor(name)
      for part in heads:
        if part in name:  # its rotation pairs neighbours, not halves
          array = array.reshape(heads[part], 2, -1, array.shape[1]).swapaxes(1, 2).reshape(
              array.shape)
      place = names.get_name(name, (".weight",))
      assert place is not None, name
      out.add_tensor(place, np.ascontiguousarray(array))
  out.write_header_to_file()
  out.write_kv_data_to_file()
  out.write_tensors_to_file()
  out.close()


def llamacpp_sample(folder, batch, prompt, new):
  """Seconds of one decode step of llama.cpp's server at batch 1, its prefill taken off.

  The weights are float32, the cache is float16 as its default; wheels are built without AVX-512.
  """
  import xllamacpp
  if batch != 1:
    raise ValueError(f"batch {batch}: llama.cpp is measured at batch 1 alone")
  params = xllamacpp.CommonParams()
  params.n_ctx, params.n_parallel = 2 * (prompt + new), 1
  params.cpuparams.n_threads = len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory() as place:
    params.model.path = f"{place}/model.gguf"
    gguf_file(folder, params.model.path)
    server = xllamacpp.Server(params)
  size = json.loads((pathlib.Path(folder) / "config.json").read_text())["vocab_size"]
  tokens = np.random.default_rng(0).integers(3, size, prompt).tolist()
  def timed(max_tokens):
    begin = clock()
    out = server.handle_completions(dict(
        prompt=tokens, max_tokens=max_tokens, temperature=1.0, samplers=["temperature"],
        ignore_eos=True, cache_prompt=False))
    seconds = clock() - begin
    assert out["usage"]["completion_tokens"] == max_tokens, out
    return seconds
  return decoding(timed, batch, new)


def tunix_step(folder, prompts, samples, prompt, max_tokens):
  """A step of tunix's GRPOLearner with tunix's sampler; no reference, no logging.

  rollout: generation; train: the rest, which scores no response before the update.
  """
  import jax
  import optax
  from tunix.rl import rl_cluster
  from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
  from tunix.rl.rollout.base_rollout import RolloutConfig
  model, config = tunix_model(folder)
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(5e-5, weight_decay=0.0))
  roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.ROLLOUT)
  cluster = rl_cluster.RLCluster(
      actor=model, tokenizer=Ids(config.vocab_size),
      cluster_config=rl_cluster.ClusterConfig(
          role_to_mesh=dict.fromkeys(roles, mesh),
          training_config=rl_cluster.RLTrainingConfig(
              actor_optimizer=optimizer, eval_every_n_steps=2**20, max_steps=2**20),
          rollout_config=RolloutConfig(
              max_tokens_to_generate=max_tokens, max_prompt_length=prompt, temperature=1.0,
              kv_cache_size=prompt + max_tokens)))
  learner = GRPOLearner(cluster, GRPOConfig(num_generations=samples, beta=0.0), parity)
  rng = np.random.default_rng(0)
  def batches(gate):
    while True:
      gate()  # the next batch is requested when the step before is done
      rows = texts(rng.integers(3, config.vocab_size, (prompts, prompt)))
      yield {"prompts": np.asarray(rows)}
  step = paced(lambda gate: learner.train(batches(gate)))
  return training(step, cluster, "generate", prompts * samples * max_tokens)


CASES = {"head.torch": torch_head, "head.trl": trl_head, "head.trl_chunked": trl_chunked_head,
         "head.verl": verl_head, "head.tunix": tunix_head,
         "sample.transformers": transformers_sample, "sample.tunix": tunix_sample,
         "sample.llamacpp": llamacpp_sample,
         "step.trl": trl_step, "step.tunix": tunix_step}


def names(what):
  """The peers of one kind of measurement."""
  return tuple(label for kind, label in (case.split(".") for case in CASES) if kind == what)
