"""The entropy ledger: what changed the entropy of a policy in one optimiser step, to the last term.
"""
