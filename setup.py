"""Package metadata; tools are configured in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "entrolab/__init__.py").read_text(), re.M)
assert VERSION is not None, "entrolab/__init__.py states no __version__"

setup(
    name="entrolab", version=VERSION[1],
    description="What interventions do to the entropy of policies trained by RLVR, in JAX",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0", python_requires=">=3.11",
    packages=find_packages(include=["entrolab", "entrolab.*"]),
    package_data={"entrolab.models": ["tiny_assets/*"], "entrolab.trainer": ["*.j2"]},
    install_requires=["jax>=0.7.2,<0.13", "numpy>=2.0"],
    extras_require={
        "train": ["flax>=0.11.2,<0.13", "optax>=0.2.6", "orbax-checkpoint>=0.11.30",
                  "grain>=0.2.12", "sentencepiece>=0.2", "transformers>=5.0", "safetensors>=0.5",
                  "math-verify[antlr4_13_2]>=0.8", "tensorboardX>=2.6", "absl-py>=1.4",
                  "jinja2>=3.1", "matplotlib>=3.9"],
        "verify": ["math-verify[antlr4_13_2]>=0.8"],
        "gguf": ["gguf>=0.17", "tokenizers>=0.20", "jinja2>=3.1"],
        "tasks": ["reasoning-gym>=0.1.19"],
        "tpu": ["jax[tpu]"], "cuda": ["jax[cuda12]"],
        "test": ["pytest>=8", "pytest-xdist>=3", "ruff>=0.9", "pyright>=1.1.390"],
    })
