"""What a program needs at least: rates of chips, arithmetic of a model, costs of compiled code."""
