"""Readers and writers of files: annotations, masks, image embeddings, images, videos."""
