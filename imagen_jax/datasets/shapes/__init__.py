"""The `shapes` data set: a grammar of scenes, its renderer, the judge that reads images back, and its text encoder."""
