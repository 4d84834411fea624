"""From points to outcomes: plan rows, run them through an executor, and pass samples to the store."""
