"""What is trained: `LoRA` (peft), `LyCORIS` (lycoris-lora) or `Full` (the denoiser itself)."""

from dreamlit.adapters.base import Adapter
from dreamlit.adapters.full import Full
from dreamlit.adapters.lora import LoRA
from dreamlit.adapters.lycoris import LyCORIS

__all__ = ["Adapter", "Full", "LoRA", "LyCORIS"]
