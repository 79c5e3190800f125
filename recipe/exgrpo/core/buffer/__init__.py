"""The one store of experience: questions, trajectories, buckets, eviction, and their state as arrays."""
