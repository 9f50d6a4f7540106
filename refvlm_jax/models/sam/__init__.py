"""Segment Anything (arXiv 2304.02643): image encoder, prompt embeddings, mask decoder."""
