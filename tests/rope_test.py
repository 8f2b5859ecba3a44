"""Rotary positions of a config.json are those that transformers reads out of it, or are refused."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from entrolab.models import huggingface_rope, transformer
from entrolab.models.parameters import Config, Linear, Yarn

PARITY = pathlib.Path(__file__).parent / "parity"
READINGS = json.loads((PARITY / "rope.json").read_text())


def config_of(entries):
  theta, stretch = huggingface_rope.read(entries, 4096, "config.json")
  return Config(vocab_size=8, width=256, layers=1, heads=4, kv_heads=4, head_dim=64, mlp_width=8,
                rope_theta=theta, rope_stretch=stretch)


@pytest.mark.parametrize("reading", READINGS, ids=lambda reading: json.dumps(reading["entries"]))
def test_rates_are_those_of_transformers(reading):
  config = config_of(reading["entries"])
  rates, gain = transformer._rotation(config)
  np.testing.assert_allclose(rates, reading["rates"], rtol=2e-6)
  np.testing.assert_allclose(gain, reading["gain"], rtol=1e-6)
  # what is written is read as the same rotation
  again = config_of(huggingface_rope.describe(config.rope_theta, config.rope_stretch))
  assert again == config


def test_the_readings_differ():
  """Every kind of entry moves the rates or the gain: the comparison sees one that does not act."""
  seen = {(tuple(r["rates"]), r["gain"]) for r in READINGS}
  assert len(seen) > len(READINGS) * 0.6


YARN = dict(rope_type="yarn", factor=4.0)


@pytest.mark.parametrize("entries,match", [
    # kinds whose rates depend on the length of the batch, and kinds that are none
    (dict(rope_scaling=dict(type="dynamic", factor=2.0)), "rope_type 'dynamic'; known: default"),
    (dict(rope_parameters=dict(rope_type="longrope", factor=2.0)), "rope_type 'longrope'; known:"),
    (dict(rope_scaling=dict(rope_type="su")), "rope_type 'su'"),
    (dict(rope_scaling=dict(rope_type=None)), "rope_type None"),
    (dict(rope_scaling=dict(rope_type=["linear"])), "rope_type .'linear'."),
    (dict(rope_scaling=[4.0]), "must be an object"),
    (dict(rope_scaling=4.0), "must be an object"),
    (dict(rope_scaling=False), "must be an object"),
    # entries that would do nothing
    (dict(rope_scaling=dict(rope_type="default", factor=2.0)), "factor does nothing in default"),
    (dict(rope_scaling=dict(factor=2.0)), "factor does nothing in default"),
    (dict(rope_scaling=dict(type="linear", factor=2.0, attention_factor=0.5)),
     "attention_factor does nothing in linear"),
    (dict(rope_scaling=dict(type="linear", factor=2.0, mrope_section=[1])), "mrope_section does"),
    (dict(rope_scaling=dict(**YARN, low_freq_factor=1.0)), "low_freq_factor does nothing in yarn"),
    (dict(rope_scaling=dict(**YARN, mscale=1.0)), "mscale acts beside the other"),
    (dict(rope_scaling=dict(**YARN, mscale=1.0, mscale_all_dim=2.0, attention_factor=0.5)),
     "without attention_factor"),
    (dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
    (dict(rope_scaling=dict(type="linear", factor=2.0, partial_rotary_factor=0.5)),
     "partial_rotary_factor=0.5"),
    (dict(rope_scaling=YARN, partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
    # values out of their domain
    (dict(rope_scaling=dict(type="linear")), "factor=None must be a number"),
    (dict(rope_scaling=dict(type="linear", factor="2")), "factor='2' must be a number"),
    (dict(rope_scaling=dict(type="linear", factor=True)), "factor=True must be a number"),
    (dict(rope_scaling=dict(type="linear", factor=0.5)), "factor=0.5 must be a number of at least"),
    (dict(rope_scaling=dict(type="linear", factor=float("nan"))), "factor=nan"),
    (dict(rope_scaling=dict(type="yarn")), "no factor"),
    (dict(rope_scaling=dict(**YARN, beta_fast=1, beta_slow=2)), "beta_slow=2.0 must be over 0"),
    (dict(rope_scaling=dict(**YARN, truncate=None)), "truncate=None; choices: true, false"),
    (dict(rope_scaling=dict(**YARN, attention_factor=-1.0)), "attention_factor=-1.0"),
    (dict(rope_scaling=dict(**YARN, original_max_position_embeddings=0.5)), "original_max"),
    (dict(rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=4.0,
                            high_freq_factor=4.0)), "low_freq_factor=4.0 must be over 0 and below"),
    (dict(rope_scaling=dict(rope_type="llama3", factor=8.0)), "low_freq_factor=None"),
    (dict(rope_parameters=dict(rope_type="proportional", partial_rotary_factor=1.5)), "0 to 1"),
    (dict(rope_theta=None), "rope_theta=None must be"),
    (dict(rope_theta="1e4"), "rope_theta='1e4' must be"),
    (dict(rope_theta=1.0), "rope_theta=1.0 must be over 1"),
    (dict(rope_scaling=dict(rope_type="default", rope_theta=float("inf"))), "rope_theta=inf"),
    # places that contradict each other
    (dict(rope_theta=1e4, rope_scaling=dict(rope_theta=5e5)), "two values of rope_theta"),
    (dict(rope_theta=1e4, rope_parameters=dict(rope_theta=5e5)), "two values of rope_theta"),
    (dict(rope_scaling=dict(rope_theta=5e5), rope_parameters=dict(rope_theta=1e5)),
     "are two different rotations"),
    (dict(rope_scaling=dict(type="linear", factor=2.0), rope_parameters=dict(rope_theta=1e4)),
     "are two different rotations"),
    (dict(rope_scaling=dict(type="linear", factor=2.0), rope_parameters=dict(
        rope_type="linear", factor=4.0)), "are two different rotations"),
    (dict(rope_scaling=dict(type="default"), rope_parameters=dict(rope_theta=5e5)),
     "are two different rotations"),
    (dict(rope_scaling=dict(type="linear", rope_type="yarn", factor=2.0)),
     "rope_type 'yarn' and 'linear'"),
    (dict(rope_parameters=dict(**YARN, original_max_position_embeddings=512),
          original_max_position_embeddings=1024), "two values of original_max_position_embeddings"),
    (dict(rope_parameters=dict(rope_type="proportional", partial_rotary_factor=0.5),
          partial_rotary_factor=0.25), "two values of partial_rotary_factor"),
], ids=str)
def test_others_are_refused_with_value_place_and_choices(entries, match):
  with pytest.raises(ValueError, match=match) as caught:
    config_of(entries)
  assert str(caught.value).startswith("config.json: ")


def test_places_that_agree_are_one_reading():
  both = dict(rope_theta=5e5, rope_scaling=dict(type="linear", factor=2.0),
              rope_parameters=dict(rope_type="linear", factor=2, rope_theta=5e5))
  config = config_of(both)
  assert (config.rope_theta, config.rope_stretch) == (5e5, Linear(2.0))
  assert config_of(dict(rope_theta=5e5, rope_parameters=dict(rope_theta=5e5))).rope_theta == 5e5
  assert config_of(dict(rope_scaling=None, rope_parameters={}, partial_rotary_factor=None)) == (
      config_of({}))


def test_the_gain_is_of_what_is_rotated():
  x = jnp.ones((1, 3, 64))
  plain = transformer.rope.rotate(x, jnp.arange(3)[None], jnp.ones(32))
  np.testing.assert_allclose(
      transformer.rope.rotate(x, jnp.arange(3)[None], jnp.ones(32), 1.5), 1.5 * plain, rtol=1e-6)
  assert transformer._rotation(config_of(dict(rope_scaling=YARN)))[1] == Yarn(
      4.0, 4096, 1.0 + 0.1 * np.log(4.0)).gain
