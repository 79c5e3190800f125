"""What a training step asks of a method: one class a method, driven by the verl trainer and the laboratory alike."""
