"""How a step is run: one Prefect task a step, thin; starts processes, watches them, records results in DVC."""
