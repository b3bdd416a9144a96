"""The model: loading and saving, its tokens, and the log-probabilities of rationale and answer."""
