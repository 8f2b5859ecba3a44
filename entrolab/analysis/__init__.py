"""What a run, or an array of its numbers, shows: no training here."""
