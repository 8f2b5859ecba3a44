"""Tasks: the source of problems, their prompts, and the verdicts on responses."""
