"""Training runs read back from their folders, compared and reported: `exgrpo report`."""
