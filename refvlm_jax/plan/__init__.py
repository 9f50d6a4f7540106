"""Plans of runs on hardware that is only described: does it fit, and how fast can it be."""
