"""Thin adapters that plug the ExGRPO recipe into unmodified verl 0.9.1."""
