"""CLIP: its encoder, the text classifier made with it, and embeddings of names."""
