"""Rows of the embedding, for the tokenizers where they are known without a file."""

VOCAB_SIZES = {"bytes": 257, "world": 65536, "neox": 50277}
