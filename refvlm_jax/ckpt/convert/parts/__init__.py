"""One file a part of the model: name table, configuration reader and writer, forward pass."""
