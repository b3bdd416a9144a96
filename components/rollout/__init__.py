"""Sampling rationales: one protocol, and the Transformers and vLLM engines behind it."""
