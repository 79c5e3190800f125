"""Experience in checkpoints: `global_step_N/experience/`, checked files that execute nothing when they are read."""
