"""ExGRPO itself: numpy and torch, nothing else of ours. Reads beside the paper."""
