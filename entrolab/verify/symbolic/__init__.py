"""math-verify in processes that can be killed: what is compared, what that costs, who runs it."""
