"""Generation with a KV cache, unit decoding, and answers in original-image pixels."""
