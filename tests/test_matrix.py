"""Seven switches of a run in every combination of two: the real run's losses equal a training loop written by hand.

The reference takes nothing from dreamlit but the address of a random draw (`dreamlit.seeds`): photos by Pillow and
slicing, latents and prompts by diffusers, the UNet in float64 with a LoRA added by forward hooks, the teacher is the
UNet without them, plain gradient descent.
"""

import csv
import functools
import itertools
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dreamlit.seeds import address, generator, unit
from recorder import rows
from runs import base_config, checkpoint, fit, merged, regularisation, write_photos

SEED, RANK, ALPHA, RATE, PRIOR_WEIGHT, DROPOUT, GAMMA = 7, 4, 2.0, 5.0, 0.7, 0.5, 5.0
SWITCHES = ("regularisation", "masks", "accumulate", "batch", "min_snr", "caption_dropout", "size")
SUBJECT, CLASS = "a photo of sks dog", "a photo of a dog"
# Halved and cut to 128 x 64, each of these (width, height) has another original size and another crop offset.
CROPPED = {(320, 128): (0, 16), (256, 160): (8, 0), (384, 128): (0, 32)}
SQUARE = {(64, 64): (0, 0)}


def covering_array() -> list[dict[str, bool]]:
    """8 runs in which any two switches take all four settings: an orthogonal array of 3 free columns and their sums."""
    result = []
    for a, b, c in itertools.product([0, 1], repeat=3):
        columns = (a, b, c, a ^ b, a ^ c, b ^ c, a ^ b ^ c)
        result.append({name: bool(value) for name, value in zip(SWITCHES, columns, strict=True)})
    return result


def test_any_two_switches_take_all_four_settings():
    for names in itertools.combinations(SWITCHES, 2):
        assert len({tuple(row[name] for name in names) for row in covering_array()}) == 4, names


# -- the reference -----------------------------------------------------------------------------------------------------


class Reference:
    """Training by hand, one sample at a time."""

    def __init__(self, model: pathlib.Path, data: pathlib.Path, start: pathlib.Path, on: dict[str, bool]) -> None:
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

        self.data, self.on = data, on
        self.pipeline: Any = StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False)
        self.unet = self.pipeline.unet.double().requires_grad_(False)
        self.alphas = self.pipeline.scheduler.alphas_cumprod.double()
        self.adapted = True
        self.lora = self._hook(load_file(start))
        self.photo, self.text = functools.cache(self._photo), functools.cache(self._text)

    def _hook(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Adds (alpha / rank) up(down(x)) to each layer that the file names; returns the matrices."""
        lora = {key: value.double().requires_grad_() for key, value in weights.items() if not key.endswith("alpha")}
        for name, layer in self.unet.named_modules():
            stem = "lora_unet_" + name.replace(".", "_")
            if f"{stem}.lora_up.weight" in lora:
                layer.register_forward_hook(functools.partial(self._add, lora, stem))
        return lora

    def _add(self, lora, stem, layer, inputs, output):
        if not self.adapted:
            return output
        down, up = lora[f"{stem}.lora_down.weight"], lora[f"{stem}.lora_up.weight"]
        return output + ALPHA / RANK * (inputs[0] @ down.T @ up.T)

    def _photo(self, dataset: str, name: str):
        """Latent [1, 4, h, w], mask [h, w] or None, time ids, by this photo's known size and offset."""
        image = Image.open(self.data / dataset / name)
        offsets, half, width = (CROPPED, 2, 128) if self.on["size"] else (SQUARE, 1, 64)
        (top, left), height = offsets[image.size], 64
        pixels = image.resize((image.width // half, image.height // half), Image.Resampling.LANCZOS)
        pixels = np.asarray(pixels, np.float32)[top : top + height, left : left + width]
        x = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            latent = self.pipeline.vae.encode(x).latent_dist.mode() * self.pipeline.vae.config.scaling_factor
        mask = None
        if self.on["masks"] and dataset == "subject":
            full = np.asarray(Image.open(self.data / "masks" / name), np.float64) / 255
            full = full.reshape(image.height // half, half, image.width // half, half).mean((1, 3))
            full = full[top : top + height, left : left + width]
            mask = torch.from_numpy(full.reshape(height // 8, 8, width // 8, 8).mean((1, 3)))
        return latent.double(), mask, torch.tensor([[image.height, image.width, top, left, height, width]])

    @torch.no_grad()
    def _text(self, prompt: str):
        embeds, _, pooled, _ = self.pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
        return embeds.double(), pooled.double()

    def sample_loss(self, key: str) -> torch.Tensor:
        sample_id, visit = key.rsplit("#", 1)
        dataset, name = sample_id.split("/")
        latent, mask, time_ids = self.photo(dataset, name)
        # x_t at a low-discrepancy timestep: frac(start + visit / golden ratio), in units of 2^-64
        u = (2 * address(SEED, "timestep", sample_id) + int(visit) * 0x9E3779B97F4A7C15) % 2**64 / 2**64
        t = int(u * 1000)
        noise = torch.randn(latent.shape[1:], generator=generator(SEED, "noise", sample_id, int(visit))).double()[None]
        x_t = self.alphas[t].sqrt() * latent + (1 - self.alphas[t]).sqrt() * noise
        dropped = dataset == "subject" and self.on["caption_dropout"]
        dropped = dropped and unit(SEED, "caption dropout", sample_id, int(visit)) < DROPOUT
        embeds, pooled = self.text("" if dropped else SUBJECT if dataset == "subject" else CLASS)

        def predict() -> torch.Tensor:
            added = {"text_embeds": pooled, "time_ids": time_ids}
            return self.unet(x_t, t, encoder_hidden_states=embeds, added_cond_kwargs=added).sample

        target = noise
        if dataset == "class":
            self.adapted = False
            with torch.no_grad():
                target = predict()
            self.adapted = True
        square = (predict() - target)[0].square().mean(0)
        loss = square.mean() if mask is None else (mask * square).sum() / mask.sum()
        snr = self.alphas[t] / (1 - self.alphas[t])
        return loss * (min(float(snr), GAMMA) / float(snr) if self.on["min_snr"] else 1)

    def train(self, batches: list[list[str]], accumulate: int) -> tuple[list[list[float]], list[float]]:
        """The loss of each sample, and of each batch; the LoRA moves after every `accumulate` batches."""
        per_sample, totals = [], []
        for number, keys in enumerate(batches, start=1):
            losses = [self.sample_loss(key) for key in keys]
            weights = [PRIOR_WEIGHT if self.on["regularisation"] and k.startswith("class/") else 1.0 for k in keys]
            total = torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).mean()
            (total / accumulate).backward()
            per_sample.append([loss.item() for loss in losses])
            totals.append(total.item())
            if number % accumulate == 0:
                with torch.no_grad():
                    for matrix in self.lora.values():
                        assert matrix.grad is not None
                        matrix -= RATE * matrix.grad
                        matrix.grad = None
        return per_sample, totals


# -- the run -----------------------------------------------------------------------------------------------------------


def write_start(model: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """An adapter whose effect is not zero, so that the prior loss is not zero in the first step either."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet: Any = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    tensors = {}
    for name, layer in unet.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            stem = "lora_unet_" + name.replace(".", "_")
            random = generator(0, name)
            tensors[f"{stem}.lora_down.weight"] = torch.randn(RANK, layer.in_features, generator=random) / 8
            tensors[f"{stem}.lora_up.weight"] = torch.randn(layer.out_features, RANK, generator=random) / 8
            tensors[f"{stem}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, path)
    return path


def write_data(root: pathlib.Path, on: dict[str, bool]) -> None:
    sizes = list(CROPPED) if on["size"] else [(64, 64)] * 3
    write_photos(root / "subject", sizes)
    if on["regularisation"]:
        write_photos(root / "class", sizes, seed=1)
    if on["masks"]:
        (root / "masks").mkdir()
        for number, (width, height) in enumerate(sizes):  # an ellipse off the middle, another one each, with grey in it
            y, x = np.mgrid[:height, :width]
            inside = ((x / width - 0.45) / 0.3) ** 2 + ((y / height - 0.5) / (0.3 + number / 20)) ** 2 < 1
            grey = 255 - 60 * (x > width * 0.5)
            Image.fromarray((inside * grey).astype(np.uint8)).save(root / "masks" / f"p{number}.png")


def configured(tmp_path: pathlib.Path, model: pathlib.Path, start: pathlib.Path, on: dict[str, bool]) -> dict:
    config = base_config(tmp_path / "run", model, tmp_path / "subject")
    crop = {"crop": True, "crop_aspect": "closest", "crop_aspect_buckets": [2.0]} if on["size"] else {}
    datasets = config["data"]["datasets"]
    datasets[0] |= {"caption_dropout": DROPOUT} if on["caption_dropout"] else {}
    objective: dict = {"weighting": "min_snr", "snr_gamma": GAMMA} if on["min_snr"] else {}
    if on["regularisation"]:
        datasets.append(regularisation(tmp_path / "class"))
        objective["prior_loss_weight"] = PRIOR_WEIGHT
    for entry in datasets:
        entry |= crop
    if on["masks"]:
        datasets[0]["conditioning_data"] = "masks"
        datasets.append(
            {"id": "masks", "dataset_type": "conditioning", "conditioning_type": "mask"}
            | {"instance_data_dir": str(tmp_path / "masks")}
        )
    record = {"class_path": "recorder.Recorder", "init_args": {"path": str(tmp_path / "trace")}}
    return merged(
        config,
        {
            "model.adapter.init_args": {"rank": RANK, "alpha": ALPHA},
            "model.init_from": str(start),
            "model.objective": objective,
            "model.optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": RATE, "weight_decay": 0.0}},
            "trainer.callbacks": [record],
            "trainer.accumulate_grad_batches": 3 if on["accumulate"] else 1,
            "data.batch_size": 3 if on["batch"] else 1,
        },
    )


@pytest.fixture(scope="module")
def start(tiny_model, tmp_path_factory) -> pathlib.Path:
    return write_start(tiny_model, tmp_path_factory.mktemp("start") / "start.safetensors")


def label(on: dict[str, bool]) -> str:
    return "+".join(name for name, value in on.items() if value) or "plain"


@pytest.mark.parametrize("on", covering_array(), ids=label)
def test_four_steps_are_those_of_a_loop_written_by_hand(tmp_path, tiny_model, start, on):
    write_data(tmp_path, on)
    accumulate = 3 if on["accumulate"] else 1
    root = fit(configured(tmp_path, tiny_model, start, on))
    seen = rows(tmp_path / "trace")
    assert len(seen) == 4 * accumulate
    reference = Reference(tiny_model, tmp_path, start, on)
    per_sample, totals = reference.train([row["keys"] for row in seen], accumulate)
    for row, expected in zip(seen, per_sample, strict=True):
        assert row["per_sample"] == pytest.approx(expected, rel=2e-5)
    with (root / "logs" / "metrics.csv").open() as file:
        logged = [float(row["loss"]) for row in csv.DictReader(file)]
    windows = [totals[first : first + accumulate] for first in range(0, len(totals), accumulate)]
    assert logged == pytest.approx([sum(window) / accumulate for window in windows], rel=2e-5)
    assert_trained_as(load_file(root / "run.safetensors"), reference.lora, load_file(start))
    assert checkpoint(root, 4)["global_step"] == 4


def assert_trained_as(trained, expected, before) -> None:
    """The exported weights moved away from the start as the reference's did."""
    for key, value in expected.items():
        torch.testing.assert_close(trained[key].double(), value.detach(), rtol=0, atol=2e-5)
    assert max(float((trained[key] - before[key]).abs().max()) for key in expected) > 1e-3
