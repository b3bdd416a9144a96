"""What is done: the paper, the data, the policy, rollouts, training and evaluation, in plain Python."""
