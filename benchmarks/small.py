"""The settings that benchmarks and tests share."""

# The embedded experiment in seconds instead of minutes; nothing is learned, everything is exercised.
SMALL = [
    "task.train=64", "task.validation=8", "task.test=8", "teaching.steps=4", "teaching.batch_size=16",
    "rollout.group_size=4", "rollout.batch_rollouts=64", "probe.examples=8", "probe.look_ahead=1", "probe.held_out=4",
    "train.steps=4",
    "train.groups_per_step=4", "train.validate_every=2", "evaluation.samples=4", "evaluation.bootstrap=50",
]  # fmt: skip
