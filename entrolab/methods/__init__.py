"""One file per paper: pure functions of named arrays, jax only."""
