"""The policy: a decoder, and the ways its weights come in and go out."""
