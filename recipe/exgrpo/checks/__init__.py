"""What would stop a run, found before anything expensive starts."""
