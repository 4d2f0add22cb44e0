"""Progress reporting during a run."""
