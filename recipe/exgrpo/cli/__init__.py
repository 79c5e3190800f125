"""The console script `exgrpo` and its sub-commands."""
