"""The laboratory: the core of ExGRPO on models of 0.1M parameters, minutes on a CPU. Needs torch; no Ray, verl or vLLM."""
