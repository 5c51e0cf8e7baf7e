"""The benchmark behind `scripts/bench`: who is measured, at what, and how it is told."""
