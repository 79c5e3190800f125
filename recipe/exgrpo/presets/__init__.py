"""Run configurations composed without a run, and the paper's settings and results."""
