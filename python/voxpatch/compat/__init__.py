"""voxpatch under other packages' names; each module imports its package, and nothing else does."""
