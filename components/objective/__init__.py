"""The paper in two files: the loss continuum (tsallis.py) and its gradient estimators (estimators.py).

Beside it: how the commitment moves (commitment.py), the peers that learn from rewards (rewards.py), importance weights.
"""
