"""Training of vision-language models that answer with text, boxes and masks, on any JAX mesh."""
