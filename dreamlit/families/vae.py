"""Pixels to latents and back through a diffusers autoencoder, in float32."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from dreamlit.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def encode(vae: Any, pixels: Tensor, stride: int) -> Tensor:
    """Pixels [B, 3, H, W] in [-1, 1] -> scaled latents [B, C, H / stride, W / stride], float32 on the CPU.

    The mode of the posterior, so that the same photo gives the same latent; some autoencoders have no posterior.
    """
    import torch

    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % stride or pixels.shape[3] % stride:
        raise ValueError(f"pixels {list(pixels.shape)}: [B, 3, H, W] is expected with sides that {stride} divides")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(f"pixels lie in [{low:g}, {high:g}]; [-1, 1] is expected")
    with torch.no_grad(), torch.autocast(vae.device.type, enabled=False):
        encoded = vae.encode(frames(vae, pixels.to(vae.device, torch.float32)))
    mode = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    mode = one_frame(mode)
    shift, scale = statistics(vae, mode)
    latents = ((mode - shift) * scale).cpu()
    finite = latents.isfinite().flatten(1).all(1)
    if not finite.all():
        raise ModelError(
            f"the autoencoder gave infinite or undefined latents for {int((~finite).sum())} of {len(latents)} images; "
            "its weights are damaged or overflow: use another one (option vae)"
        )
    return latents


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Scaled latents [B, C, h, w] -> pixels [B, 3, H, W] near [-1, 1], float32 on the CPU."""
    import torch

    latents = latents.to(vae.device, torch.float32)
    shift, scale = statistics(vae, latents)
    with torch.no_grad(), torch.autocast(vae.device.type, enabled=False):
        return one_frame(vae.decode(frames(vae, latents / scale + shift)).sample).cpu()


def frames(vae: Any, images: Tensor) -> Tensor:
    """Images [B, C, H, W] as the autoencoder takes them: one of videos (3-D kernels) takes [B, C, 1, H, W]."""
    return images.unsqueeze(2) if any(value.ndim == 5 for value in vae.parameters()) else images


def one_frame(images: Tensor) -> Tensor:
    """The inverse of `frames`."""
    return images[:, :, 0] if images.ndim == 5 else images


def statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and scale [1, C, 1, 1] (or scalar) of an autoencoder: latents are (mode - shift) * scale."""
    import torch

    config = vae.config
    if hasattr(vae, "bn"):  # Flux.2: one mean and variance for each of a channel's 2 x 2 cells, laid over the latents
        cells = [value.view(1, -1, 2, 2) for value in (vae.bn.running_mean, vae.bn.running_var)]
        mean, variance = (value.repeat(1, 1, like.shape[2] // 2, like.shape[3] // 2) for value in cells)
        return mean, (variance + config.batch_norm_eps).rsqrt()
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        mean, std = (torch.tensor(value, device=like.device).view(1, -1, 1, 1) for value in (mean, std))
        return mean, getattr(config, "scaling_factor", 1.0) / std
    shift = getattr(config, "shift_factor", None) or 0.0
    return torch.tensor(shift, device=like.device), torch.tensor(config.scaling_factor, device=like.device)


def working_in_float32(vae: Any) -> Any:
    """The autoencoder, working in float32 on any precision, also where autocast is on: SDXL's overflows."""
    for name in ("decode", "encode"):
        if name not in vars(vae):
            setattr(vae, name, functools.partial(widened, getattr(vae, name)))
    return vae


def widened(work: Any, tensor: Tensor, *args: Any, **options: Any) -> Any:
    """`work` on a float32 tensor without autocast."""
    import torch

    with torch.autocast(tensor.device.type, enabled=False):
        return work(tensor.float(), *args, **options)
