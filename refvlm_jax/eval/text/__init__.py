"""Text metrics in pure Python: caption tokens, CIDEr-D, BLEU, phrase similarity, VQA answers."""
