"""Through the real DataModule and module: what a mask covers is what training leaves alone, wherever the crop fell."""

import pathlib

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image

from dreamlit.adapters import LoRA
from dreamlit.datamodules.config import DatasetSpecs
from dreamlit.datamodules.dreambooth import DreamBoothData
from dreamlit.families import SDXL
from dreamlit.module import DreamBooth
from dreamlit.objective import Objective
from dreamlit.trainer import Trainer

SIZES = [(150, 97), (97, 150), (200, 64), (131, 260), (64, 64), (310, 140)]  # (width, height)


class PictureSDXL(SDXL):
    """Its latents are the picture itself, averaged over each 8 x 8 cell: red, green, blue and nothing."""

    def encode_pixels(self, pixels):
        small = torch.nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([small, torch.zeros_like(small[:, :1])], dim=1)


class Watcher(Callback):
    """Keeps each batch and the gradient of its loss with respect to the model's prediction."""

    def __init__(self) -> None:
        self.batches, self.gradients, self.predictions = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)

    def on_after_backward(self, trainer, pl_module):
        self.gradients.append(self.predictions.pop().grad)


def paint(folder: pathlib.Path) -> None:
    """Photos whose red is the mask, whose green runs from top to bottom and whose blue runs from left to right."""
    for name in ("photos", "masks"):
        (folder / name).mkdir(parents=True)
    for number, (width, height) in enumerate(SIZES):
        y, x = np.mgrid[:height, :width]
        mask = ((x / width - 0.35) / 0.25) ** 2 + ((y / height - 0.6) / 0.3) ** 2 < 1
        photo = np.stack([255 * mask, 255 * (y + 0.5) / height, 255 * (x + 0.5) / width], axis=-1)
        Image.fromarray(photo.round().astype(np.uint8)).save(folder / "photos" / f"p{number}.png")
        picture = Image.fromarray((255 * mask).astype(np.uint8))
        if number % 3 == 2:  # masks are often made at another size than their photo's
            picture = picture.resize((width * 2, height * 2), Image.Resampling.NEAREST)
        picture.save(folder / "masks" / f"p{number}.png")


def watched(tmp_path: pathlib.Path, model: pathlib.Path, objective: Objective, **crop: object) -> Watcher:
    """Three steps of four samples with masks, seen by a Watcher."""
    paint(tmp_path)
    subject = {
        "id": "subject",
        "instance_data_dir": str(tmp_path / "photos"),
        "instance_prompt": "a toy",
        "resolution": 64,
        "resolution_type": "pixel",
        "conditioning_data": "masks",
        **crop,
    }
    masks = {"id": "masks", "dataset_type": "conditioning", "instance_data_dir": str(tmp_path / "masks")}
    data = DreamBoothData(DatasetSpecs([subject, masks]), batch_size=4, cache_dir=str(tmp_path / "cache"), seed=3)
    module = DreamBooth(PictureSDXL(str(model)), LoRA(rank=2), objective, seed=3)
    watcher, predict = Watcher(), module.family.predict

    def predict_and_keep(*args, **kwargs):
        prediction = predict(*args, **kwargs)
        if prediction.requires_grad:
            prediction.retain_grad()
            watcher.predictions.append(prediction)
        return prediction

    module.family.predict = predict_and_keep  # type: ignore[method-assign]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu",
        max_steps=3,
        callbacks=[watcher],
        default_root_dir=tmp_path,
        enable_model_summary=False,
        **quiet,
    )
    trainer.fit(module, datamodule=data)
    return watcher


RANDOM_CROP = {"crop": True, "crop_style": "random"}


@pytest.mark.parametrize("normalisation", ["area", "frame"])
def test_the_gradient_is_exactly_zero_where_the_mask_is_zero_under_a_random_crop(tmp_path, tiny_model, normalisation):
    watcher = watched(tmp_path, tiny_model, Objective(mask_normalisation=normalisation), **RANDOM_CROP)
    assert len(watcher.gradients) == len(watcher.batches) == 3
    for batch, gradient in zip(watcher.batches, watcher.gradients, strict=True):
        black = (batch.mask == 0).expand_as(gradient)
        assert 0 < black.sum() < black.numel()
        assert (gradient[black] == 0).all()
        assert (gradient[~black] != 0).all()


def test_an_unmasked_weight_reaches_the_masked_out_cells(tmp_path, tiny_model):
    watcher = watched(tmp_path, tiny_model, Objective(unmasked_weight=0.1), **RANDOM_CROP)
    assert all((gradient != 0).all() for gradient in watcher.gradients)


CROPS = {
    "whole": {},
    "center": {"crop": True, "crop_style": "center"},
    "random": RANDOM_CROP,
    "corner": {"crop": True, "crop_style": "corner"},
    "random place and aspect": {**RANDOM_CROP, "crop_aspect": "random", "crop_aspect_buckets": [0.5, 2.0]},
    "from a downscaled photo": {**RANDOM_CROP, "maximum_image_size": 90, "target_downsample_size": 80},
}


@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS.keys())
def test_mask_size_conditioning_and_picture_show_the_same_window(tmp_path, tiny_model, crop):
    """Red is the mask, and blue and green tell which part of the photo each cell shows."""
    offsets = set()
    for batch in watched(tmp_path, tiny_model, Objective(), **crop).batches:
        red, green, blue = ((batch.latents + 1) / 2)[:, :3].unbind(1)
        difference = (red - batch.mask[:, 0]).abs()
        assert difference.max() < 0.2 and difference.mean() < 0.02  # the mask is averaged, the photo sharpened
        for i, (height, width, top, left, target_h, target_w) in enumerate(batch.frame.tolist()):
            number = int(batch.keys[i].split("/p")[1].split(".")[0])
            assert (width, height) == SIZES[number]
            assert batch.latents.shape[2:] == (target_h // 8, target_w // 8)
            assert_runs_along(green[i].mean(1), top, target_h)
            assert_runs_along(blue[i].mean(0), left, target_w)
            offsets.add((top, left))
    if crop.get("crop_style") == "random":
        assert len(offsets) > 2


def assert_runs_along(cells: torch.Tensor, start: int, side: int) -> None:
    """`cells` [n], the ramp's value at each cell, are those of a window from pixel `start` of the resized photo.

    The ramp is pixel / resized size, so that two cells give the size, and every cell its place.
    """
    n, per_cell = len(cells), float(cells[-1] - cells[0]) / (len(cells) - 1)
    assert n * 8 == side
    places = (cells / per_cell).double()  # in cells from the photo's edge
    expected = start / 8 + torch.arange(n) + 0.5
    torch.testing.assert_close(places, expected.double(), rtol=0.01, atol=0.08)  # photos have 8 bits
