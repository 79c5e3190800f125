"""The ground: what any recipe on verl 0.9.1 could use. Imports nothing of `recipe`."""
