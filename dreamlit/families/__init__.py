"""Model families: one pretrained model behind a few verbs. Importing this loads neither torch nor diffusers."""

from dreamlit.families.auraflow import AuraFlow
from dreamlit.families.base import Family
from dreamlit.families.chroma import Chroma
from dreamlit.families.deepfloyd import DeepFloydI
from dreamlit.families.deepfloyd_two import DeepFloydII
from dreamlit.families.flux import Flux
from dreamlit.families.flux2_klein import Flux2Klein
from dreamlit.families.kolors import Kolors
from dreamlit.families.lumina2 import Lumina2
from dreamlit.families.pixart import PixArtSigma
from dreamlit.families.qwen_image import QwenImage
from dreamlit.families.sana import Sana
from dreamlit.families.sd import SD
from dreamlit.families.sd3 import SD3
from dreamlit.families.sdxl import SDXL
from dreamlit.families.sdxl_refiner import SDXLRefiner
from dreamlit.families.z_image import ZImage

__all__ = [
    "SD",
    "SD3",
    "SDXL",
    "AuraFlow",
    "Chroma",
    "DeepFloydI",
    "DeepFloydII",
    "Family",
    "Flux",
    "Flux2Klein",
    "Kolors",
    "Lumina2",
    "PixArtSigma",
    "QwenImage",
    "SDXLRefiner",
    "Sana",
    "ZImage",
]
