"""What happened: every run and every checkpoint, kept in MLflow and found there again."""

import os

# Before MLflow is imported for the first time: its telemetry would send usage events to the outside.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Its bars, one for each of a handful of small files, would drown what a command says.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
