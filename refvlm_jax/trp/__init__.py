"""The answer grammar: spans to text, text to spans, streaming parser, commands and prompts."""
