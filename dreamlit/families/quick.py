"""From latents to a rough picture at once, for looking at images in the making."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from dreamlit.errors import ModelError
from dreamlit.families import loading
from dreamlit.families.checks import vae_stride
from dreamlit.families.files import ModelFiles, hub_folder, read_json, weight_faults
from dreamlit.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

    from dreamlit.families.base import Family

SAMPLES, CELLS, TEXTURE = 32, 8, 0.3
"""Pictures that the linear map is fitted to, their width and height in latent cells, and how rough they are."""


def decoder(family: Family, device: Any) -> Callable[[Tensor], Tensor]:
    """See `Family.quick_decoder`."""
    if family.tiny_vae_files is not None:
        return tiny_decoder(family.tiny_vae_files, device)
    return linear_decoder(fitted_map(family), family.stride)


def tiny_faults(family: Family, files: ModelFiles) -> Iterator[str]:
    """Yield the faults of a local folder with a tiny autoencoder."""
    if files.is_file:
        yield f"tiny_vae {files.path}: is a file; give the folder of an AutoencoderTiny or a hub id"
        return
    try:
        config = read_json(files.local / "config.json")
    except ModelError as error:
        yield f"tiny_vae: {error}"
        return
    if (kind := config.get("_class_name")) != "AutoencoderTiny":
        yield f"tiny_vae {files.path}: holds {kind or 'no class'}, not an AutoencoderTiny such as TAESD; see vae for it"
        return
    channels = config.get("latent_channels", 4)
    stride = vae_stride({"block_out_channels": config.get("decoder_block_out_channels", (64,) * 4)})
    if channels != family.latent_channels:
        yield f"tiny_vae {files.path}: has {channels} latent channels, not {family.latent_channels}"
    elif stride != family.stride:
        yield f"tiny_vae {files.path}: has {stride} pixels a cell; this model's latents have {family.stride}"
    for fault in weight_faults(files.local, "diffusers", None):
        yield f"tiny_vae: {fault}"


def tiny_decoder(files: ModelFiles, device: Any) -> Callable[[Tensor], Tensor]:
    """Decodes by an `AutoencoderTiny`, whose latents are the scaled ones. Errors: `ModelError`."""
    import torch
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    folder = hub_folder(files, ["config.json", "*.safetensors"]) if files.is_hub else files.local
    with loading.quiet("diffusers.configuration_utils"):  # warns of entries that diffusers itself has written
        model: Any = loading.load_from_folder(folder, AutoencoderTiny, None, torch.float32)
    model = loading.complete(model, "tiny_vae", files.path).to(device).eval()

    def decode(latents: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            return model.decode(latents.to(device, torch.float32)).sample.float().cpu()

    return decode


def fitted_map(family: Family) -> Tensor:
    """The affine map [C + 1, 3] from a latent cell to its mean colour that fits the loaded autoencoder best.

    Least squares over random pictures, smooth ones with some texture, which the autoencoder encodes; the last row is
    the constant. They have an address of their own: the same in every run, none of the training's random numbers.
    """
    import torch
    from torch.nn import functional

    size, draws = CELLS * family.stride, generator("latents to colours")
    pixels = torch.zeros(SAMPLES, 3, size, size)
    for cells, strength in ((3, 1.0), (2 * CELLS, TEXTURE)):
        coarse = strength * (torch.rand(SAMPLES, 3, cells, cells, generator=draws) * 2 - 1)
        pixels += functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    pixels = pixels.clamp(-1, 1)
    latents = family.encode_pixels(pixels).double()
    colours = functional.avg_pool2d(pixels, family.stride).double()
    cells = latents.movedim(1, -1).flatten(0, -2)
    cells = torch.cat([cells, torch.ones_like(cells[:, :1])], dim=1)
    return torch.linalg.lstsq(cells, colours.movedim(1, -1).flatten(0, -2)).solution.float()


def linear_decoder(weights: Tensor, stride: int) -> Callable[[Tensor], Tensor]:
    """One colour for each cell, by `weights` [C + 1, 3]."""

    def decode(latents: Tensor) -> Tensor:
        colours = latents.float().cpu().movedim(1, -1) @ weights[:-1] + weights[-1]
        return colours.movedim(-1, 1).repeat_interleave(stride, 2).repeat_interleave(stride, 3)

    return decode
