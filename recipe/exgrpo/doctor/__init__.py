"""`exgrpo doctor`: a machine measured by short runs of the real stack, for a report that can be sent in."""
