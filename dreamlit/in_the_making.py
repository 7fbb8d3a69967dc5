"""Images in the making: what a sampler takes for the finished ones after each of its steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from dreamlit.previewing import Picture, Watch


def watched(scheduler: Any, steps: int, tell: Callable[[int, Tensor], None]) -> None:
    """Lets a scheduler tell, after each of `steps` sampler steps, its number and the predicted x0 [B, C, h, w].

    A few samplers need more calls than steps (PNDM one more); the last of them always ends step `steps`.
    """
    own, calls, said = scheduler.step, 0, 0

    @functools.wraps(own)  # the pipeline reads its parameters
    def step(output: Tensor, t: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        nonlocal calls, said
        x_t = sample.clone()
        if not calls:  # some pipelines begin in the middle of the schedule
            calls = (scheduler.timesteps == t).nonzero()[0].item()
        result = own(output, t, sample, *args, **options)
        calls += 1
        number = calls * steps // len(scheduler.timesteps)
        if number > said:
            said = number
            tell(number, predicted_x0(scheduler, output, t, x_t))
        return result

    scheduler.step = step


def unwatched(scheduler: Any) -> None:
    vars(scheduler).pop("step", None)


def predicted_x0(scheduler: Any, output: Tensor, t: Any, sample: Tensor) -> Tensor:
    """What the denoiser's output [B, C, h, w] at `t` takes for the clean latents behind `sample`; after `step`.

    With x_t = alpha x0 + sigma eps: x0 = (x_t - sigma eps) / alpha, or alpha x_t - sigma v. Samplers of Euler's kind
    hold x_t / alpha and a sigma / alpha, which is what they call sigma (Karras et al. 2022, arXiv 2206.00364). Of a
    flow: x0 = x_t - sigma v.
    """
    output, sample = output[:, : sample.shape[1]].float(), sample.float()  # some also predict a variance
    kind = scheduler.config.get("prediction_type", "flow_prediction")  # Euler's for flows has no entry
    if kind == "flow_prediction":
        return sample - float(scheduler.sigmas[scheduler.step_index - 1]) * output
    if float(scheduler.init_noise_sigma) != 1.0:
        ratio = float(scheduler.sigmas[scheduler.step_index - 1])
        alpha = 1 / math.sqrt(1 + ratio**2)
        sigma, x_t = ratio * alpha, sample * alpha
    else:
        squared = float(scheduler.alphas_cumprod[int(t)])
        alpha, sigma, x_t = math.sqrt(squared), math.sqrt(1 - squared), sample
    if scheduler.config.prediction_type == "v_prediction":
        return alpha * x_t - sigma * output
    return (x_t - sigma * output) / alpha


def tell_unpacked(watch: Watch, pipeline: Any, pictures: list[Picture], number: int, x0: Tensor) -> None:
    """Tells the watcher latents [B, C, h, w]; some pipelines hold tokens [B, n, 4 C] of 2 x 2 cells."""
    if x0.ndim == 3:
        sides = (pictures[0].height, pictures[0].width)
        height, width = (side // pipeline.vae_scale_factor if side else pipeline.default_sample_size for side in sides)
        cells = x0.reshape(len(x0), height // 2, width // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
        x0 = cells.reshape(len(x0), -1, height, width)
    watch(pictures, number, x0)


def as_image(pixels: Tensor) -> Image:
    """Pixels [3, H, W] near [-1, 1] as a picture; what is not finite is black."""
    from PIL import Image as pillow

    values = pixels.nan_to_num(-1.0, 1.0, -1.0).clamp(-1, 1).add(1).mul(127.5).round().byte()
    return pillow.fromarray(values.movedim(0, -1).contiguous().numpy())
