"""How responses are made: strategies over one jitted sampler."""
