"""One server for every head: embeddings, classes, tags, answers and rankings from several models in one process."""
