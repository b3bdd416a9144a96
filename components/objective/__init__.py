"""The paper in two files: the loss continuum (tsallis.py) and its gradient estimators (estimators.py)."""
