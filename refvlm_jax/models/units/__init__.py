"""Unit decoders: what a `<REF>` state becomes."""
