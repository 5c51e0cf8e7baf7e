"""The benchmark behind `scripts/bench`: the tools, the cases and the report."""
