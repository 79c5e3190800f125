"""Runs and variants compared: tables, remarks and curves."""
