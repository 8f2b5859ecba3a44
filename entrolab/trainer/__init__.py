"""A run: its loop and steps, and what they keep, measure, write and watch."""
