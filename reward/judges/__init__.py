"""Judges: anything that answers `compare(pairs)` with probabilities, and the wrappers around them."""
