"""Answer matching, p@k, maj@k, intervals, and the comparison of two models."""
