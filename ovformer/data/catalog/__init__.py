"""The known data sets: their files, categories and vocabularies."""
