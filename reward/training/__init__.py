"""Training judges: losses, data, and the two stages of GRAM."""
