"""Sub-commands of the console script `exgrpo`, one module each."""
