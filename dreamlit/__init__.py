"""dreamlit: subject-driven fine-tuning (DreamBooth) of diffusion models on PyTorch Lightning."""

__version__ = "0.1.0"
