"""The core: examples, a model world, and breakages that both must notice."""
