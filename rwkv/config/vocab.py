"""What is known of tokenizers without a file: rows of the embedding, and the id that ends documents in all of them."""

VOCAB_SIZES = {"bytes": 257, "world": 65536, "neox": 50277}
END_OF_DOCUMENT = 0  # as in the official data
