"""Shapes of models that benchmarks make with random weights. Source: config.json of Qwen/Qwen3-0.6B on the hub."""

QWEN3_06B = {
    "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "rope_theta": 1e6,
}  # fmt: skip
