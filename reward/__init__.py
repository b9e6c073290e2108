"""What is this response worth? Judges, aggregation, reward backends and their training. Never imports `rlhf`."""
