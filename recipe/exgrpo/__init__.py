"""ExGRPO (arXiv 2510.02245): experience replay for GRPO on unmodified verl. Imports point down, to `core` and `verl_ext`."""
