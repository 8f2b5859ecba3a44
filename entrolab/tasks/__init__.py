"""Tasks: where problems come from, how they are asked, who judges the answers."""
