"""Experience as an asset: traces from elsewhere into the store, stored trajectories into files, graded again on either way."""
