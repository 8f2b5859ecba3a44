"""Confinement of programs: `outside` starts processes, `inside` runs in them, `seccomp` filters."""
