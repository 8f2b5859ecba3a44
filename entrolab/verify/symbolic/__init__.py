"""Symbolic comparison by math-verify in processes that can be killed.

`compare` compares two answers, `cost` refuses what would take too long, `pool` runs jobs in worker
processes, `worker` is such a process.
"""
