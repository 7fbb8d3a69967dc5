"""From any picture to what an image encoder takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamlit.errors import DataError, ModelError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

DEEP_MODES = ("I", "F")
MAX_ASPECT = 100
"""A narrower strip, its shorter side brought to the encoder's size, would not fit into memory."""


def input_size(config: Any) -> tuple[int, int]:
    """(height, width) in pixels that a model's configuration asks for."""
    side = config.vision_config.image_size if config.model_type == "clip" else config.image_size
    return (side, side) if isinstance(side, int) else tuple(side)


def processed(processor: Any, pixels: list[np.ndarray]) -> Tensor:
    """Pictures uint8 [H, W, 3] of any sizes as one batch [N, 3, h, w]."""
    # the layout is said, because a picture three pixels high would be taken for one with channels first
    return processor(images=pixels, input_data_format="channels_last", return_tensors="pt")["pixel_values"]


def check_processor(processor: Any, config: Any, path: str) -> None:
    """Whether tall and wide pictures come out as the model takes them; DINOv2 takes any one size."""
    import numpy as np

    wanted, made = input_size(config), set()
    for shape in ((40, 60, 3), (60, 40, 3)):
        made.add(tuple(processed(processor, [np.zeros(shape, np.uint8)]).shape[-2:]))
    if len(made) > 1 or (made != {wanted} and not config.model_type.startswith("dinov2")):
        sizes = " and ".join(f"{height} x {width}" for height, width in sorted(made))
        raise ModelError(f"{path}: preprocessor_config.json makes pictures of {sizes}; the model takes {wanted}")


def pixels_of(image: Any, number: int) -> np.ndarray:
    """uint8 [H, W, 3] of one picture, `number` in the list that it came in.

    Raises:
        DataError: when it is no picture that can be read.
    """
    import numpy as np
    from PIL import Image

    if isinstance(image, Image.Image):
        pixels = _rgb(image, f"picture {number} {getattr(image, 'filename', '')}".rstrip())
    elif not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[-1] != 3:
        came = f"an array of shape {image.shape}" if hasattr(image, "shape") else f"{type(image).__name__}"
        raise DataError(f"picture {number}: {came}; a PIL picture or a numpy array [H, W, 3] is needed")
    elif image.dtype == np.uint8:
        pixels = image
    elif np.issubdtype(image.dtype, np.floating) and ((image >= 0) & (image <= 1)).all():  # false for NaN
        pixels = (image * 255).round().astype(np.uint8)
    else:
        raise DataError(f"picture {number}: {image.dtype} values; uint8, or floats in [0, 1] are needed")
    short, long = sorted(pixels.shape[:2])
    if long > MAX_ASPECT * short:
        raise DataError(f"picture {number}: {pixels.shape[1]} x {pixels.shape[0]} pixels is no picture")
    return pixels


def _rgb(image: Image, name: str) -> np.ndarray:
    """Upright, without transparency; as `dreamlit.datamodules.images` does for photos by default."""
    import numpy as np
    from PIL import Image as pillow
    from PIL import ImageOps

    if image.mode.startswith(DEEP_MODES):
        raise DataError(f"{name}: mode {image.mode} (deep or floating grey); convert it to 8 bits first")
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = pillow.alpha_composite(pillow.new("RGBA", upright.size, "white"), upright)
        return np.asarray(upright.convert("RGB"))
    except Exception as error:  # Pillow's readers raise errors of many kinds on damaged files
        raise DataError(f"{name}: not readable ({type(error).__name__}: {error})") from None
