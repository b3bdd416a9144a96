"""The on-policy loop on DeepSpeed, and its checkpoints."""
