"""Scores of generated pictures: formulas against loops, encoders against transformers, and input that is broken."""

import itertools
import json
import math
import pathlib
import shutil
import types
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from dreamlit import metrics
from dreamlit.encoders import ImageEncoder
from dreamlit.errors import ConfigError, DataError, ModelError
from dreamlit.metrics import SubjectMetric, score_subject
from tiny_encoders import SIDE, VISION, make_clip, make_dino, saved

PROMPTS = ["a dog on the beach", "a dog on the beach", "a red cat", "a dog on the beach", "the city at night"]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> pathlib.Path:
    return make_clip(tmp_path_factory.mktemp("encoders") / "clip")


@pytest.fixture(scope="session")
def clip(clip_folder) -> ImageEncoder:
    return ImageEncoder(clip_folder)


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory) -> pathlib.Path:
    return make_dino("ViT", tmp_path_factory.mktemp("encoders") / "dino")


@pytest.fixture
def copy(clip_folder, tmp_path) -> pathlib.Path:
    return shutil.copytree(clip_folder, tmp_path / "copy")


def pictures(count: int, seed: int = 0, size: tuple[int, int] = (48, 40)) -> list[Image.Image]:
    draw = np.random.default_rng(seed)
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


def embeddings(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) + 0.5


def cosine(a, b) -> float:
    a, b = a.double().tolist(), b.double().tolist()
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a)) / math.sqrt(math.fsum(y * y for y in b))


def mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


# The formulas.


def test_subject_fidelity_is_the_mean_over_all_pairs():
    a, b = embeddings(5), embeddings(3, 1)
    expected = mean(cosine(x, y) for x in a for y in b)
    assert metrics.subject_fidelity(a, b) == pytest.approx(expected, abs=1e-12)
    assert metrics.preservation(a, b) == pytest.approx(expected, abs=1e-12)


def test_mutual_similarity_is_the_mean_over_distinct_pairs():
    a = embeddings(5)
    expected = mean(cosine(x, y) for x, y in itertools.combinations(a, 2))
    assert metrics.mutual_similarity(a) == pytest.approx(expected, abs=1e-12)


def test_prompt_fidelity_compares_each_picture_with_its_own_prompt():
    a, b = embeddings(5), embeddings(5, 1)
    assert metrics.prompt_fidelity(a, b) == pytest.approx(mean(map(cosine, a, b)), abs=1e-12)
    basis = torch.eye(2)
    assert metrics.prompt_fidelity(basis, basis) == 1
    assert metrics.prompt_fidelity(basis, basis.flip(0)) == 0


def test_a_prompt_that_is_contradicted_scores_below_zero():
    assert metrics.prompt_fidelity(torch.tensor([[1.0, 0]]), torch.tensor([[-1.0, 0]])) == -1


def test_diversity_compares_only_pictures_of_the_same_prompt():
    a = embeddings(5)
    expected = mean(1 - cosine(a[i], a[j]) for i, j in ((0, 1), (0, 3), (1, 3)))
    assert metrics.diversity(a, PROMPTS) == pytest.approx(expected, abs=1e-12)


def test_diversity_counts_pairs_not_prompts():
    same, opposite = [[1.0, 0]] * 3, [[0, 1.0], [0, -1.0]]
    assert metrics.diversity(torch.tensor(same + opposite), "aaabb") == pytest.approx((3 * 0 + 1 * 2) / 4)


def test_photos_are_at_least_as_near_to_themselves_as_to_each_other():
    for seed in range(5):
        a = embeddings(4, seed)
        assert metrics.subject_fidelity(a, a) >= metrics.mutual_similarity(a)


def test_neither_order_nor_length_of_embeddings_matters():
    a, b, order = embeddings(5), embeddings(3, 1), [3, 0, 4, 2, 1]
    scaled = a * 2.0 ** torch.arange(5)[:, None]  # powers of two: exact
    for other in (a[order], scaled):
        assert metrics.subject_fidelity(other, b.flip(0)) == pytest.approx(metrics.subject_fidelity(a, b), abs=1e-12)
        assert metrics.mutual_similarity(other) == pytest.approx(metrics.mutual_similarity(a), abs=1e-12)
    shuffled = metrics.diversity(a[order], [PROMPTS[i] for i in order])
    assert shuffled == pytest.approx(metrics.diversity(a, PROMPTS), abs=1e-12)


@pytest.mark.parametrize("bad", [torch.zeros(0, 6), torch.ones(6), torch.zeros(2, 6), torch.full((2, 6), math.nan)])
def test_embeddings_without_direction_are_refused(bad):
    with pytest.raises(ValueError, match="embedding"):
        metrics.subject_fidelity(bad, embeddings(2))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        metrics.mutual_similarity(embeddings(1))
    with pytest.raises(ValueError, match="one text for each"):
        metrics.prompt_fidelity(embeddings(3), embeddings(2))
    with pytest.raises(ValueError, match="no prompt has two"):
        metrics.diversity(embeddings(2), ["a", "b"])
    with pytest.raises(ValueError, match="one for each"):
        metrics.diversity(embeddings(2), ["a"])


# The same from sums.


def scored(metric: SubjectMetric) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def test_batches_and_ranks_give_the_scores_of_the_whole():
    photos, made, texts, others = embeddings(4), embeddings(5, 1), embeddings(3, 2), embeddings(3, 3)
    numbers = torch.tensor([0, 0, 1, 0, 2])
    first, second, idle = (SubjectMetric(photos, 3, texts) for _ in range(3))
    first.update(made[:1], numbers[:1], others[:2])
    first.update(made[1:4], numbers[1:4])
    second.update(made[4:], numbers[4:], others[2:])
    second.update(made[:0], numbers[:0])  # a rank may have nothing in a batch
    first.merge_state(second)
    idle.update(made[:0], numbers[:0])
    first.merge_state(idle)
    expected = {
        "subject_fidelity": metrics.subject_fidelity(made, photos),
        "mutual_similarity": metrics.mutual_similarity(photos),
        "prompt_fidelity": metrics.prompt_fidelity(made, texts[numbers]),
        "diversity": metrics.diversity(made, numbers.tolist()),
        "preservation": metrics.preservation(others, photos),
    }
    assert scored(first) == pytest.approx(expected, abs=1e-12)


def test_the_metric_has_only_the_scores_that_it_can_have():
    metric = SubjectMetric(embeddings(1), 2)
    metric.update(embeddings(2, 1), torch.tensor([0, 1]))
    assert set(scored(metric)) == {"subject_fidelity"}


def test_the_metric_forgets_and_leaves_nothing_in_a_checkpoint():
    metric = SubjectMetric(embeddings(2), 1)
    metric.update(embeddings(2, 1), torch.tensor([0, 0]))
    metric.reset()
    metric.update(embeddings(3, 2), torch.tensor([0, 0, 0]))
    expected = metrics.subject_fidelity(embeddings(3, 2), embeddings(2))
    assert scored(metric)["subject_fidelity"] == pytest.approx(expected, abs=1e-12)
    assert not metric.state_dict()


def test_the_metric_refuses_counts_that_differ():
    with pytest.raises(ValueError, match="prompt numbers"):
        SubjectMetric(embeddings(2), 2).update(embeddings(2), torch.tensor([0]))
    with pytest.raises(ValueError, match="2 texts for 3 prompts"):
        SubjectMetric(embeddings(2), 3, embeddings(2))


# Encoders.


def test_clip_embeds_as_transformers_does(clip, clip_folder):
    import transformers

    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokens = transformers.CLIPTokenizer.from_pretrained(clip_folder)(PROMPTS, padding=True, return_tensors="pt")
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    pixels = transformers.CLIPImageProcessorPil(**size)(images=pictures(3), return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens, **pixels)  # both normalised
    torch.testing.assert_close(clip.embed_images(pictures(3)), expected.image_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(clip.embed_texts(PROMPTS), expected.text_embeds, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["ViT", "Dinov2", "Dinov2WithRegisters"])
def test_dino_embeds_as_its_normalised_class_token(name, tmp_path):
    import transformers

    folder = make_dino(name, tmp_path / "dino")
    picture = pictures(1, size=(SIDE, SIDE))[0]  # of the encoder's size: nothing is resized
    mean_, std = (torch.tensor(values)[:, None, None] for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    pixels = (torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - mean_) / std
    with torch.no_grad():
        states = getattr(transformers, f"{name}Model").from_pretrained(folder).eval()(pixels[None]).last_hidden_state
    expected = states[0, 0] / states[0, 0].norm()
    torch.testing.assert_close(ImageEncoder(folder).embed_images([picture])[0], expected, atol=1e-5, rtol=0)


def test_prompt_fidelity_is_the_clipscore_of_torchmetrics(clip, clip_folder):
    import transformers
    from torchmetrics.functional.multimodal import clip_score

    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    features = {  # torchmetrics expects tensors where transformers 5 gives outputs
        "get_image_features": lambda *a, **k: model.get_image_features(*a, **k).pooler_output,
        "get_text_features": lambda *a, **k: model.get_text_features(*a, **k).pooler_output,
    }
    wrapped = types.SimpleNamespace(**features, config=model.config, device=model.device, to=lambda _: wrapped)
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip_folder)
    processor = transformers.CLIPProcessor(transformers.CLIPImageProcessorPil(**size), tokenizer)
    images = pictures(5)
    tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]
    with torch.no_grad():
        reference = clip_score(tensors, PROMPTS, model_name_or_path=lambda: (wrapped, processor))
    ours = metrics.prompt_fidelity(clip.embed_images(images), clip.embed_texts(PROMPTS))
    assert 100 * max(0, ours) == pytest.approx(float(reference), abs=1e-4)
    assert ours > 0, "the reference is clamped: choose another seed"


def test_embeddings_are_unit_vectors_that_tell_pictures_apart(clip):
    found = clip.embed_images(pictures(3))
    assert found.shape == (3, 24) and found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3), atol=1e-6, rtol=0)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_neither_batch_size_nor_order_changes_embeddings(clip, clip_folder):
    images, order = pictures(5), [4, 2, 0, 1, 3]
    one = ImageEncoder(clip_folder, batch_size=1)
    whole = clip.embed_images(images)
    torch.testing.assert_close(one.embed_images(images), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(clip.embed_images([images[i] for i in order]), whole[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(one.embed_texts(PROMPTS), clip.embed_texts(PROMPTS), atol=1e-6, rtol=0)


def test_the_same_input_gives_the_same_bits_and_draws_nothing(clip_folder):
    encoder, images = ImageEncoder(clip_folder), pictures(3)
    state = torch.random.get_rng_state()
    first = encoder.embed_images(images), encoder.embed_texts(PROMPTS)
    assert torch.equal(torch.random.get_rng_state(), state)
    again = ImageEncoder(clip_folder)
    assert torch.equal(again.embed_images(images), first[0]) and torch.equal(again.embed_texts(PROMPTS), first[1])


def test_loading_a_dino_that_was_saved_with_a_head_draws_nothing(tmp_path):
    import transformers

    folder = saved(transformers.ViTForImageClassification, transformers.ViTConfig(**VISION), tmp_path / "head")
    state = torch.random.get_rng_state()
    ImageEncoder(folder).load()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_precision_of_a_run_does_not_reach_the_scores(clip):
    plain = clip.embed_images(pictures(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(clip.embed_images(pictures(2)), plain)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_near_and_comes_back_as_float32(clip, clip_folder, dtype):
    half = ImageEncoder(clip_folder, dtype=dtype)
    for found, exact in (
        (half.embed_images(pictures(2)), clip.embed_images(pictures(2))),
        (half.embed_texts(PROMPTS), clip.embed_texts(PROMPTS)),
    ):
        assert found.dtype == torch.float32 and not torch.equal(found, exact)
        torch.testing.assert_close(found, exact, atol=0.03, rtol=0)


def test_the_model_is_read_once_and_again_after_it_was_freed(clip_folder, monkeypatch):
    import transformers

    read, calls = transformers.CLIPModel.from_pretrained, []
    monkeypatch.setattr(transformers.CLIPModel, "from_pretrained", lambda *a, **k: calls.append(1) or read(*a, **k))
    encoder = ImageEncoder(clip_folder)
    assert not calls
    first = encoder.embed_images(pictures(1))
    encoder.embed_texts(PROMPTS)
    assert len(calls) == 1
    encoder.unload()
    assert torch.equal(encoder.embed_images(pictures(1)), first) and len(calls) == 2


def test_a_hub_model_of_the_local_cache_serves(clip, clip_folder, tmp_path, monkeypatch):
    tiny.hub_cache(tmp_path, "someone/clip", clip_folder, monkeypatch)
    found = ImageEncoder("someone/clip", local_files_only=True).embed_images(pictures(1))
    assert torch.equal(found, clip.embed_images(pictures(1)))


def test_loading_leaves_the_settings_of_the_library_alone(clip_folder):
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity_warning()
        logging.enable_progress_bar()
        ImageEncoder(clip_folder).load()
        assert logging.get_verbosity() == logging.WARNING and logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        ImageEncoder(clip_folder).load()
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
    "image_mean": [0.0, 0.0, 0.0],
    "image_std": [1.0, 1.0, 1.0],
}


@pytest.mark.parametrize(
    "old", [{}, {"feature_extractor_type": "CLIPFeatureExtractor", "size": SIDE, "crop_size": SIDE}]
)
def test_the_folders_own_preprocessing_is_used(clip, copy, old):
    import transformers

    content = {**PREPROCESSOR, **old}
    if old:
        del content["image_processor_type"]
    (copy / "preprocessor_config.json").write_text(json.dumps(content))
    picture = pictures(1, size=(SIDE, SIDE))[0]
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        raw = transformers.CLIPModel.from_pretrained(copy).eval().get_image_features(pixels).pooler_output[0]
    found = ImageEncoder(copy).embed_images([picture])[0]
    torch.testing.assert_close(found, raw / raw.norm(), atol=1e-5, rtol=0)
    assert (found - clip.embed_images([picture])[0]).abs().max() > 1e-3


# Pictures.


def test_arrays_and_pil_pictures_are_the_same(clip):
    array = np.array(pictures(1)[0])
    forms = [Image.fromarray(array), array, array / 255, (array / 255).astype(np.float32)]
    found = clip.embed_images(forms)
    torch.testing.assert_close(found, found[:1].expand(4, -1), atol=1e-6, rtol=0)
    torch.testing.assert_close(clip.embed_images(np.stack([array] * 2)), found[:2], atol=1e-6, rtol=0)


@pytest.mark.parametrize("height", [1, 3])
def test_a_low_picture_is_not_taken_for_one_with_channels_first(clip, height):
    low = pictures(1, size=(height, 3))[0]
    large = low.resize((3 * SIDE // height, SIDE), Image.Resampling.BICUBIC)  # what the encoder is documented to do
    assert torch.equal(clip.embed_images([low]), clip.embed_images([large]))


def test_orientation_transparency_and_grey_are_understood(clip):
    upright = pictures(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif().update(exif)
    hidden = np.dstack([np.array(upright), np.zeros(upright.size[::-1], np.uint8)])
    white, grey = Image.new("RGB", upright.size, "white"), upright.convert("L")
    for odd, plain in (
        (turned, upright),
        (Image.fromarray(hidden, "RGBA"), white),
        (grey, grey.convert("RGB")),
        (upright.convert("RGBA"), upright),
    ):
        assert torch.equal(clip.embed_images([odd]), clip.embed_images([plain]))


def truncated(tmp_path: pathlib.Path) -> Image.Image:
    path = tmp_path / "half.png"
    pictures(1)[0].save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return Image.open(path)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (truncated, "picture 1 .*half.png: not readable"),
        (lambda _: "dog.png", "picture 1: str; a PIL picture"),
        (lambda _: None, "picture 1: NoneType"),
        (lambda _: np.zeros((8, 8), np.uint8), r"shape \(8, 8\)"),
        (lambda _: np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\)"),
        (lambda _: torch.zeros(8, 8, 3), "shape"),
        (lambda _: np.full((8, 8, 3), 255.0), r"floats in \[0, 1\]"),
        (lambda _: np.full((8, 8, 3), -1.0), r"floats in \[0, 1\]"),
        (lambda _: np.full((8, 8, 3), math.nan), r"floats in \[0, 1\]"),
        (lambda _: np.zeros((8, 8, 3), np.int64), "int64 values"),
        (lambda _: np.zeros((0, 8, 3), np.uint8), "8 x 0 pixels"),
        (lambda _: np.zeros((1, 2000, 3), np.uint8), "2000 x 1 pixels"),
        (lambda _: Image.new("I;16", (8, 8)), "mode I;16"),
        (lambda _: Image.new("F", (8, 8)), "mode F"),
    ],
)
def test_a_picture_that_cannot_be_read_is_named(clip, tmp_path, bad, said):
    with pytest.raises(DataError, match=said):
        clip.embed_images([pictures(1)[0], bad(tmp_path)])


def test_nothing_to_embed_is_an_error(clip):
    with pytest.raises(DataError, match="no pictures"):
        clip.embed_images([])
    for texts in ([], "a dog", ["a dog", None]):
        with pytest.raises(DataError, match="at least one text"):
            clip.embed_texts(texts)


def test_a_text_that_is_cut_is_told(clip):
    with pytest.warns(UserWarning, match="77 tokens; longer and cut: 1 texts, first 'dog dog"):
        long = clip.embed_texts(["a cat", "dog " * 100])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(clip.embed_texts(["dog " * 75])[0], long[1], atol=1e-6, rtol=0)


# Folders.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "float8"}, "float8.*Allowed: float32"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"device": "gpu"}, "device 'gpu'"),
        ({"revision": "main"}, "does nothing for a folder"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_loads(clip_folder, options, said):
    with pytest.raises(ConfigError, match=said):
        ImageEncoder(clip_folder, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_said(clip_folder):
    with pytest.raises(ConfigError, match="device cuda cannot be used"):
        ImageEncoder(clip_folder, device="cuda").load()


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def write(name, content):
    return lambda folder: (folder / name).write_text(content)


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def lose_a_tensor(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove("config.json"), "config.json: no such file"),
        (write("config.json", "{"), "not readable as JSON"),
        (write("config.json", "[]"), "model_type None; allowed for an encoder: clip"),
        (write("config.json", '{"model_type": "bert"}'), "model_type 'bert'"),
        (remove("model.safetensors"), "no weights .*; there is config.json"),
        (cut, "cannot be loaded .*Safetensor"),
        (lose_a_tensor, "1 weights are missing, first visual_projection.weight"),
        (write("preprocessor_config.json", "{"), "cannot be loaded"),
        (
            write("preprocessor_config.json", json.dumps({**PREPROCESSOR, "do_center_crop": False})),
            "32 x 48 and 48 x 32",
        ),
        (
            write("preprocessor_config.json", json.dumps({**PREPROCESSOR, "crop_size": {"height": 24, "width": 24}})),
            "24 x 24",
        ),
    ],
)
def test_a_damaged_folder_is_a_model_error(copy, damage, said):
    damage(copy)
    state = torch.random.get_rng_state()
    with pytest.raises(ModelError, match=said):
        ImageEncoder(copy).embed_images(pictures(1))
    assert torch.equal(torch.random.get_rng_state(), state), "a run that goes on without scores would be another one"


@pytest.mark.parametrize("names", [["vocab.json"], ["vocab.json", "merges.txt"]])
def test_pictures_need_no_tokenizer_and_texts_do(copy, names):
    remove(*names)(copy)
    encoder = ImageEncoder(copy)
    encoder.embed_images(pictures(1))
    with pytest.raises(ModelError, match="vocab"):
        encoder.embed_texts(["a dog"])


@pytest.mark.parametrize(
    ("path", "said"),
    [("/no/such/folder", "no such folder"), ("no-such/clip", "without network"), (__file__, "a file; give the folder")],
)
def test_a_path_that_leads_nowhere_is_a_model_error(path, said):
    with pytest.raises(ModelError, match=said):
        ImageEncoder(path, local_files_only=True).load()


def test_check_loads_nothing(copy, monkeypatch):
    encoder = ImageEncoder(copy)
    monkeypatch.setattr(encoder, "_read_model", lambda _: pytest.fail("a model was loaded"))
    encoder.check()
    remove("model.safetensors")(copy)
    with pytest.raises(ModelError, match="no weights"):
        encoder.check()


# All together.


def test_all_scores_of_a_subject(clip):
    photos, made, others = pictures(3), pictures(5, 1), pictures(2, 2)
    real, found = clip.embed_images(photos), clip.embed_images(made)
    scores = score_subject(clip, photos, made, PROMPTS, others, ["a dog", "a dog"])
    assert scores.class_diversity == metrics.diversity(clip.embed_images(others), ["a dog", "a dog"])
    assert scores.subject_fidelity == metrics.subject_fidelity(found, real)
    assert scores.mutual_similarity == metrics.mutual_similarity(real)
    assert scores.prompt_fidelity == metrics.prompt_fidelity(found, clip.embed_texts(PROMPTS))
    assert scores.diversity == metrics.diversity(found, PROMPTS)
    assert scores.preservation == metrics.preservation(clip.embed_images(others), real)


def test_what_is_not_given_is_not_scored(clip, dino_folder):
    alone = score_subject(clip, pictures(1), pictures(1))
    assert alone.subject_fidelity == pytest.approx(1, abs=1e-6)
    assert (alone.mutual_similarity, alone.prompt_fidelity, alone.diversity, alone.preservation) == (None,) * 4
    assert score_subject(clip, pictures(1), pictures(2), ["a dog", "a cat"]).diversity is None
    apart = score_subject(clip, pictures(1), pictures(2), None, pictures(2), ["a dog", "a cat"])
    assert apart.class_diversity is None and score_subject(clip, pictures(1), pictures(1)).class_diversity is None
    dino = score_subject(ImageEncoder(dino_folder), pictures(2), pictures(5), PROMPTS)
    assert dino.prompt_fidelity is None and dino.diversity is not None


@pytest.mark.parametrize("prompts", [[], ["a dog"], "ab"])
def test_prompts_and_pictures_must_match(clip, prompts):
    with pytest.raises(DataError, match="2 generated pictures need one prompt each"):
        score_subject(clip, pictures(1), pictures(2), prompts)


def test_dino_embeds_no_text(dino_folder):
    with pytest.raises(ModelError, match="ViTModel embeds no text; give a CLIP folder"):
        ImageEncoder(dino_folder).embed_texts(["a dog"])
