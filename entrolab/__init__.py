"""entrolab: a laboratory for the entropy of policies trained with verifiable rewards."""

__version__ = "0.1.0"
