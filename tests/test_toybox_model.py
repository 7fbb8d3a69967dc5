"""The shipped weights: stock libraries load them, they are as small and as good as the documents say."""

import json
import pathlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dreamlit import toybox
from dreamlit.encoders import ImageEncoder
from dreamlit.errors import ModelError
from dreamlit.families import SD
from dreamlit.toybox.backgrounds import PHRASES
from dreamlit.toybox.judge import Judge
from dreamlit.toybox.making.data import NAMES, truth
from dreamlit.toybox.making.tokenizer import RARE
from dreamlit.toybox.quality import JUDGED, base_pipeline, interval, prompts, sample
from dreamlit.toybox.scenes import HELD_OUT, draw_scene


@pytest.fixture(scope="module")
def pipeline():
    return base_pipeline()


def pixels(count):
    """Drawn scenes of held-out combinations: [B, 3, 64, 64] in [-1, 1]."""
    scenes = [draw_scene(seed, held_out=True, size=(64, 64)) for seed in range(count)]
    return torch.from_numpy(np.stack([scene.picture for scene in scenes])).permute(0, 3, 1, 2) / 127.5 - 1, scenes


def test_the_weights_are_half_precision_and_at_most_24_mb():
    files = list(toybox.WEIGHTS.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) <= 24e6
    assert {t.dtype for path in files for t in load_file(path).values() if t.is_floating_point()} == {torch.float16}
    assert not [path for path in toybox.WEIGHTS.rglob("*") if path.suffix in (".bin", ".pt", ".ckpt")]


def test_it_is_an_ordinary_model_of_the_sd_family():
    family = SD(toybox.MODEL)
    family.check()
    assert family.stride == 4 and family.latent_channels == 4


def test_the_same_seed_gives_the_same_bits_and_another_other_pictures(pipeline):
    words = ["a photo of a red fish on sand", "a photo of a blue car at night"]
    one, again, other = (sample(pipeline, words, seed=seed, steps=4) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert all(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_held_out_combinations_come_out_right(pipeline):
    """A part of `python -m dreamlit.toybox.quality`, at bounds that only a broken model misses."""
    asked = prompts()[::6]
    answers = Judge()(sample(pipeline, [words for words, _ in asked]))
    for name in JUDGED:
        right = sum(answer[name] == facts[name] for answer, (_, facts) in zip(answers, asked, strict=True))
        assert right / len(asked) >= 0.8, name


def test_every_held_out_combination_is_asked_for_once():
    assert {(f["kind"], f["colour"], f["background"]) for _, f in prompts()} == HELD_OUT and len(prompts()) == 256


def test_other_aspect_ratios_work(pipeline):
    image = pipeline("a photo of a red car on grass", width=80, height=48, num_inference_steps=4).images[0]
    assert image.size == (80, 48)


def test_the_vae_gives_pictures_back(pipeline):
    seen, _ = pixels(8)
    with torch.no_grad():
        latents = pipeline.vae.encode(seen).latent_dist.mode() * pipeline.vae.config.scaling_factor
        back = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    assert (back - seen).abs().mean() < 0.08
    assert latents.std() == pytest.approx(1, abs=0.15)


def test_the_tiny_autoencoder_reads_and_writes_the_same_latents(pipeline):
    import diffusers

    tiny = diffusers.AutoencoderTiny.from_pretrained(toybox.TAESD, torch_dtype=torch.float32)  # pyright: ignore
    seen, _ = pixels(8)
    with torch.no_grad():
        latents = pipeline.vae.encode(seen).latent_dist.mode() * pipeline.vae.config.scaling_factor
        assert (tiny.decode(latents).sample - seen).abs().mean() < 0.15
        assert (tiny.encode(seen).latents - latents).square().mean() < 0.35 * latents.square().mean()


def test_the_text_encoder_is_clips_own(pipeline):
    import transformers

    clip = transformers.CLIPModel.from_pretrained(toybox.CLIP, dtype=torch.float32)
    tokens = pipeline.tokenizer(["a red fish on sand"], return_tensors="pt").input_ids
    with torch.no_grad():
        one = pipeline.text_encoder(tokens).last_hidden_state
        two = clip.text_model(tokens).last_hidden_state
    assert torch.equal(one, two)


def test_clip_tells_which_scene_a_caption_describes():
    _, scenes = pixels(48)
    encoder = ImageEncoder(str(toybox.CLIP))
    images = encoder.embed_images([Image.fromarray(scene.picture) for scene in scenes])
    facts = [truth(scene) for scene in scenes]
    words = [f"a photo of a {f['colour']} {f['kind']} {PHRASES[f['background']]}" for f in facts]
    right = (encoder.embed_texts(words) @ images.T).argmax(1)
    same = [facts[i]["kind"] == facts[j]["kind"] for i, j in enumerate(right.tolist())]
    assert np.mean(same) > 0.7


def test_rare_words_are_single_tokens_that_training_never_saw(pipeline):
    assert all(len(pipeline.tokenizer.tokenize(word)) == 1 for word in RARE.split())
    captions = {word for seed in range(300) for word in draw_scene(seed, size=(16, 16)).caption.split()}
    assert not captions & set(RARE.split())


def test_the_judge_is_right_about_drawn_scenes_and_about_any_size():
    judge = Judge()
    for size in ((64, 64), (160, 96)):
        scenes = [draw_scene(seed, held_out=True, size=size) for seed in range(150)]
        answers = judge([Image.fromarray(scene.picture) for scene in scenes], batch=40)
        for name in JUDGED:
            right = np.mean([a[name] == truth(s)[name] for a, s in zip(answers, scenes, strict=True)])
            assert right > 0.9, (size, name)
    assert judge([]) == [] and set(answers[0]) == set(NAMES)


@pytest.mark.parametrize("content", [None, b"", b"not weights"])
def test_a_broken_judge_is_an_error_that_names_the_file(tmp_path, content):
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="is not the toybox's judge"):
        Judge(tmp_path)


def test_wilsons_interval():
    """Against the closed form's known values: 0 of n, n of n, and symmetry."""
    z2 = 1.959964**2
    assert interval(0, 10)[1] == pytest.approx(z2 / (10 + z2)) and interval(0, 10)[0] == pytest.approx(0, abs=1e-12)
    low, high = interval(30, 100)
    assert (1 - high, 1 - low) == pytest.approx(interval(70, 100))


def test_the_training_logs_are_kept():
    for stage in ("clip", "vae", "judge", "taesd", "denoiser"):
        rows = [json.loads(line) for line in (toybox.WEIGHTS / "logs" / f"{stage}.jsonl").read_text().splitlines()]
        assert len(rows) > 5 and rows[-1]["loss"] < rows[0]["loss"]


def test_the_weights_hash_is_of_the_weights(tmp_path, monkeypatch):
    real = toybox.weights_hash()
    monkeypatch.setattr(toybox, "WEIGHTS", pathlib.Path(tmp_path))
    assert toybox.weights_hash() != real
