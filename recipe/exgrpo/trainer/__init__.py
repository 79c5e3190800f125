"""ExGRPO on the hooks of verl's synchronous V1 trainer."""
