"""Training: model as data, optimiser, step, loop."""
