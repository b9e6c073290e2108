"""How good is a judge on labelled pairs: records, metrics, benchmarks, report."""
