"""SDXL's refiner: its part of the schedule, what it shares with the base, and images made of photos or by both."""

from __future__ import annotations

import json
import pathlib
import shutil

import diffusers
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image

from dreamlit.errors import ModelError
from dreamlit.families import SDXL, SDXLRefiner
from dreamlit.objective import Objective
from dreamlit.previewing import Picture, Sampling, draw
from dreamlit.rollout_options import RolloutOptions
from tests.family_cases import complaint, image, loaded, make, predicted, stock
from tests.runs import base_config, fit, merged, run, write_photos

PROMPT = "a photo of sks dog"


@pytest.fixture
def folder(family_folders):
    return family_folders("refiner")


def timesteps(family: SDXLRefiner, visits: int = 1000) -> set[int]:
    process = family.process()
    return {int(Objective().draw(process, 0, "a", visit, (4, 1, 1)).t) for visit in range(visits)}


@pytest.mark.parametrize(
    ("options", "first", "last"),
    [
        ({}, 0, 199),
        ({"refiner_training_invert": True}, 200, 999),
        ({"refiner_training_strength": 0.5}, 0, 499),
        ({"refiner_training_strength": 1.0}, 0, 999),
    ],
)
def test_exactly_its_own_part_of_the_schedule_is_trained(folder, options, first, last):
    drawn = timesteps(SDXLRefiner(str(folder), **options), 3000)
    assert drawn == set(range(first, last + 1))


def test_a_rollout_begins_no_later_than_the_refiner_is_handed_an_image(folder):
    process = SDXLRefiner(str(folder)).process()
    chosen = RolloutOptions(max_step_offset=50, probability=1.0)
    for t in range(0, 200, 7):
        assert t + chosen.stride(process) * chosen.offset(process, 0, "a", t, t, 0) <= 199


def test_latents_are_shared_with_the_base_and_texts_are_not(tmp_path):
    base, refiner = make("sdxl", tmp_path / "sdxl"), make("refiner", tmp_path / "refiner")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (refiner / "vae" / name).write_bytes((base / "vae" / name).read_bytes())
    one, two = SDXL(str(base)), SDXLRefiner(str(refiner))
    assert one.fingerprint("vae") == two.fingerprint("vae")
    assert one.fingerprint("text_encoders") != two.fingerprint("text_encoders")


def test_the_score_and_no_target_size_reach_the_denoiser(folder):
    family, told = loaded(SDXLRefiner(str(folder), data_aesthetic_score=5.5)), []
    family.denoiser.register_forward_pre_hook(
        lambda module, args, options: told.append(options["added_cond_kwargs"]["time_ids"]), with_kwargs=True
    )
    frame = torch.tensor([[100, 140, 3, 7, 64, 96], [50, 60, 0, 0, 64, 96]])
    family.predict(torch.zeros(2, 4, 8, 8), torch.tensor([3, 100]), family.encode_prompts([PROMPT] * 2), frame)
    assert told[0].tolist() == [[100, 140, 3, 7, 5.5], [50, 60, 0, 0, 5.5]]


def test_a_photo_is_refined_as_the_stock_pipeline_does(folder, tmp_path):
    write_photos(tmp_path, [(96, 64)])
    family = SDXLRefiner(str(folder))
    sampling = Sampling(10).of(family)
    picture = Picture(PROMPT, 3, photo=str(tmp_path / "p0.png"))
    ((_, ours),) = draw(family.pipeline(), [picture], sampling)
    options = {"strength": 0.2, "aesthetic_score": 7.0, "negative_aesthetic_score": 2.5, "guidance_scale": 7.5}
    photo, generator = Image.open(tmp_path / "p0.png"), torch.Generator().manual_seed(3)
    theirs = stock(folder)(PROMPT, image=photo, num_inference_steps=10, generator=generator, **options).images[0]
    assert ours.size == (96, 64)
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


def test_with_a_base_prompts_are_drawn_by_both_as_stock_pipelines_do(family_folders, folder):
    base = family_folders("sdxl")
    family = SDXLRefiner(str(folder), base=str(base))
    family.check()
    seen: list[int] = []
    sampling, picture = Sampling(10).of(family), Picture(PROMPT, 3, 64, 96)
    made = draw(family.pipeline(), [picture], sampling, watch=lambda _, number, x0: seen.append(number))
    ((_, ours),) = made
    options = {"num_inference_steps": 10, "guidance_scale": 7.5}
    generator = torch.Generator().manual_seed(3)
    latents = stock(base)(
        PROMPT, width=64, height=96, denoising_end=0.8, output_type="latent", generator=generator, **options
    ).images
    theirs = stock(folder)(
        PROMPT, image=latents, denoising_start=0.8, generator=generator, aesthetic_score=7.0, **options
    ).images[0]
    assert ours.size == (64, 96)
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1
    assert seen == [9, 10]  # the refiner's own steps, as they are numbered in the whole image
    family = SDXLRefiner(str(folder), base=str(base))
    ((_, other),) = draw(family.pipeline(), [picture], Sampling(10, sampler="dpm").of(family))
    assert np.abs(np.asarray(ours, int) - np.asarray(other, int)).max() > 1


def refining(root: pathlib.Path, model: pathlib.Path, photos: pathlib.Path, callback: str, **options):
    config = base_config(root, model, photos)
    config["model"]["family"]["class_path"] = "SDXLRefiner"
    config["trainer"]["callbacks"] = [{"class_path": callback, "init_args": options}]
    return config


def test_previews_refine_the_photos_that_are_trained_on(tmp_path, folder, capsys):
    photos = write_photos(tmp_path / "photos", [(64, 64)] * 6)
    preview = {"prompts": ["never drawn"], "steps": 5, "seeds": [1], "at_start": True}
    root = fit(refining(tmp_path / "run", folder, photos, "ValidationPreview", **preview))
    said = capsys.readouterr().out
    assert (
        said.count("previews: prompts and sizes are ignored")
        == said.count("photos of the datasets at strength 0.2")
        == 1
    )
    shown = root / "previews" / "step-000004" / "raw"
    assert {path.name for path in shown.glob("*.png")} == {f"{row:03d}-00.png" for row in range(4)}
    photo = np.asarray(Image.open(root / "previews" / "photos" / "000.png"))
    assert np.array_equal(photo, np.asarray(Image.open(photos / "p0.png")))
    recipe = json.loads(Image.open(shown / "000-00.png").info["dreamlit"])
    assert (recipe["prompt"], recipe["photo"], recipe["strength"]) == (PROMPT, "000.png", 0.2)


def test_its_whole_denoiser_can_be_trained(tmp_path, folder):
    photos = write_photos(tmp_path / "photos", [(64, 64)] * 2)
    config = base_config(tmp_path / "run", folder, photos)
    config["model"]["family"]["class_path"] = "SDXLRefiner"
    config["model"]["adapter"] = {"class_path": "Full"}
    root = fit(merged(config, {"trainer.max_steps": 2}))
    trained, base = (diffusers.UNet2DConditionModel.from_pretrained(path) for path in (root / "run", folder / "unet"))
    moved = [not torch.equal(one, two) for one, two in zip(trained.parameters(), base.parameters(), strict=True)]
    assert all(value.isfinite().all() for value in trained.parameters()) and sum(moved) > len(moved) / 2


class Unplugged(Callback):
    """The disk with the photos goes away once the training has begun."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_batch_end(self, *args: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def test_previews_need_the_photos_only_at_the_start(tmp_path, folder):
    photos = write_photos(tmp_path / "photos", [(64, 64)] * 2)
    config = refining(tmp_path / "run", folder, photos, "ValidationPreview", prompts=["none"], steps=5, every_n_steps=1)
    unplugged = {"class_path": "tests.test_refiner.Unplugged", "init_args": {"folder": str(photos)}}
    config["trainer"]["callbacks"].insert(0, unplugged)
    root = fit(merged(config, {"trainer.max_steps": 2}))
    assert not photos.exists() and (root / "previews" / "step-000002" / "grid.png").is_file()


def test_what_draws_from_prompts_alone_is_refused_before_the_model_loads(tmp_path, folder, capsys):
    photos = write_photos(tmp_path / "photos", [(64, 64)] * 2)
    config = refining(tmp_path / "run", folder, photos, "RunReport", prompts=[PROMPT])
    assert run("fit", config) == 2
    assert "set model.family.base" in capsys.readouterr().err
    config = refining(tmp_path / "run", folder, photos, "ValidationPreview", prompts=[PROMPT], steps=4)
    assert run("fit", config) == 2
    assert "at least 5 are needed" in capsys.readouterr().err
    assert run("sample", merged(config, {"trainer.callbacks": []}), "--prompt", PROMPT) == 2
    assert "set model.family.base" in capsys.readouterr().err


@pytest.mark.parametrize("strength", [0, -0.1, 1.1])
def test_a_strength_that_is_no_share_is_refused(folder, strength):
    with pytest.raises(ModelError, match="refiner_training_strength"):
        SDXLRefiner(str(folder), refiner_training_strength=strength)


def test_options_that_leave_nothing_are_refused(folder, family_folders):
    with pytest.raises(ModelError, match="nothing is left"):
        SDXLRefiner(str(folder), refiner_training_strength=1.0, refiner_training_invert=True)
    assert "base: " in complaint(SDXLRefiner(str(folder), base="/nowhere/at/all"))
    assert "set family to SDXLRefiner" in complaint(SDXL(str(folder)))
    assert "set family to SDXL" in complaint(SDXLRefiner(str(family_folders("sdxl"))))


def test_the_autoencoder_stays_in_float32_whatever_the_precision(folder):
    family = SDXLRefiner(str(folder), dtype="bfloat16")
    pipeline = family.pipeline()
    assert isinstance(pipeline, diffusers.StableDiffusionXLImg2ImgPipeline)
    assert image(pipeline).isfinite().all()
    assert {value.dtype for value in family.part("vae").parameters()} == {torch.float32}


def test_a_single_file_in_the_original_layout_is_the_same_model(tmp_path, folder):
    layout = make("refiner", tmp_path / "refiner", single_file=True)
    file = SDXLRefiner(str(tmp_path / "refiner.safetensors"), single_file_config=str(layout))
    file.check()
    with torch.no_grad():
        torch.testing.assert_close(predicted(loaded(file)), predicted(loaded(SDXLRefiner(str(layout)))))
    assert "set family to SDXLRefiner" in complaint(SDXL(str(tmp_path / "refiner.safetensors")))
