"""Which data sets there are: their files, categories and vocabularies."""
