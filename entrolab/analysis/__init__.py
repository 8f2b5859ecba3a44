"""Analyses of runs and of arrays, by papers that do not change the training."""
