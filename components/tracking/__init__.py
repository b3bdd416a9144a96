"""What happened: every run and every checkpoint, kept in MLflow and found there again."""
