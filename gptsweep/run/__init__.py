"""Points to outcomes: plans rows, hands them to an engine, passes samples to the store."""
