"""`dreamlit new`: a run's configuration for a model, photos and memory, with its reasons."""
