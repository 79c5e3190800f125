"""One self-contained HTML page on a run: curves, buckets, questions, trajectories, and what was replayed and why."""
