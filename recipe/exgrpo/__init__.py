"""ExGRPO: experience replay for GRPO (arXiv 2510.02245). The algorithm; torch, numpy and the standard library only."""
