"""The models behind `dreamlit masks` do what transformers does, and models that cannot be used are refused in time."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from dreamlit.datamodules.images import Photo
from dreamlit.errors import ConfigError, ModelError
from dreamlit.masking.segmenters import choose
from mask_cases import SIZES, files, masks
from runs import write_photos
from tiny import hub_cache
from tiny_segmenters import make_clipseg, make_foreground, make_grounding_dino, make_sam


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    made = {
        "clipseg": make_clipseg(root / "clipseg"),
        "two": make_foreground(root / "two"),
        "turned": make_foreground(root / "turned", ("object", "background")),
        "one": make_foreground(root / "one", ("object",)),
        "many": make_foreground(root / "many", ("wall", "floor", "dog")),
        "dino": make_grounding_dino(root / "dino"),
        "sam": make_sam(root / "sam"),
    }
    return {name: str(folder) for name, folder in made.items()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[np.ndarray]:
    folder = write_photos(tmp_path_factory.mktemp("pictures"), SIZES)
    return [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]


def found_by(pictures, model, *prompts, sam=None, threshold=None):
    """For each picture, each prompt's region."""
    segmenter = choose(False, model, sam, bool(prompts))
    segmenter.load(prompts, threshold, "cpu")
    return segmenter.regions([Photo(picture, None) for picture in pictures])


def enlarged(values: torch.Tensor, picture: np.ndarray) -> np.ndarray:
    return functional.interpolate(values[None, None], picture.shape[:2], mode="bilinear")[0, 0].numpy()


def assert_region(region, expected: np.ndarray) -> None:
    assert region.values.dtype == np.uint8 and set(np.unique(region.values)) <= {0, 255}
    assert ((region.values == 255) == expected).mean() > 0.999  # a batch rounds otherwise than one picture alone
    assert 0 < expected.mean() < 1


def test_clipseg_finds_what_transformers_finds(models, pictures):
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPSegForImageSegmentation

    found = found_by(pictures, models["clipseg"], "dog", "a red toy on grass", threshold=0.6)
    model = CLIPSegForImageSegmentation.from_pretrained(models["clipseg"]).eval()
    processor = AutoImageProcessor.from_pretrained(models["clipseg"], backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(models["clipseg"])
    for picture, regions in zip(pictures, found, strict=True):
        values = processor(Image.fromarray(picture), return_tensors="pt")
        for prompt, region in zip(("dog", "a red toy on grass"), regions, strict=True):
            with torch.no_grad():
                logits = model(**values, **tokenizer([prompt], return_tensors="pt")).logits
            expected = enlarged(logits.reshape(logits.shape[-2:]).sigmoid(), picture)
            assert region.name == prompt and region.best == pytest.approx(expected.max(), abs=1e-4)
            assert_region(region, expected >= 0.6)


@pytest.mark.parametrize(("name", "channel"), [("two", 1), ("turned", 0), ("one", 0)])
def test_foreground_models_find_what_transformers_finds(models, pictures, name, channel):
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    model = AutoModelForSemanticSegmentation.from_pretrained(models[name]).eval()
    processor = AutoImageProcessor.from_pretrained(models[name], backend="pil")
    maps = []
    for picture in pictures:
        with torch.no_grad():
            logits = model(**processor(Image.fromarray(picture), return_tensors="pt")).logits[0]
        share = logits[0].sigmoid() if name == "one" else logits.softmax(0)[channel]
        maps.append(enlarged(share, picture))
    cut = float(np.median(np.concatenate([values.ravel() for values in maps])))  # so that each has both kinds
    for values, (region,) in zip(maps, found_by(pictures, models[name], threshold=cut), strict=True):
        assert ((region.values == 255) == (values >= cut)).mean() > 0.999
        assert region.best == pytest.approx(values.max(), abs=1e-5)


def test_grounding_dino_and_sam_find_what_transformers_finds(models, pictures):
    from transformers import (
        AutoImageProcessor,
        AutoTokenizer,
        GroundingDinoForObjectDetection,
        GroundingDinoProcessor,
        SamModel,
        SamProcessor,
    )

    dino = GroundingDinoForObjectDetection.from_pretrained(models["dino"]).eval()
    sam = SamModel.from_pretrained(models["sam"]).eval()
    parts = [AutoImageProcessor.from_pretrained(models[name], backend="pil") for name in ("dino", "sam")]
    grounding = GroundingDinoProcessor(parts[0], AutoTokenizer.from_pretrained(models["dino"]))
    cutting = SamProcessor(parts[1])
    counts = set()
    for picture in pictures:  # one by one: in a batch the detector sees borders beside smaller photos
        (((region),),) = found_by([picture], models["dino"], "Red Toy", sam=models["sam"], threshold=0.6)
        image = Image.fromarray(picture)
        inputs = grounding(images=image, text="red toy.", return_tensors="pt")
        with torch.no_grad():
            outputs = dino(**inputs)
            (told,) = grounding.post_process_grounded_object_detection(
                outputs, inputs.input_ids, threshold=0.6, text_threshold=0.1, target_sizes=[picture.shape[:2]]
            )
            counts.add(len(told["boxes"]))
            assert region.boxes == len(told["boxes"])
            if not len(told["boxes"]):
                assert not region.values.any()
                continue
            given = cutting(image, input_boxes=[told["boxes"].tolist()], return_tensors="pt")
            given["original_sizes"] = torch.tensor([picture.shape[:2]])
            low = sam(
                given["pixel_values"], input_boxes=given["input_boxes"].float(), multimask_output=False
            ).pred_masks
            (cut,) = cutting.image_processor.post_process_masks(
                low, given["original_sizes"], given["reshaped_input_sizes"].long()
            )
        assert region.best == pytest.approx(float(told["scores"].max()), abs=1e-4)
        # boxes are kept within the photo before SAM sees them; at the very edge that moves a mask a little
        assert ((region.values == 255) == cut.flatten(0, 1).any(0).numpy()).mean() > 0.97
    assert counts - {0}


def test_several_boxes_are_united_and_none_gives_an_empty_region(models, pictures):
    many = found_by(pictures, models["dino"], "dog", "night sky", sam=models["sam"], threshold=0.05)
    few = found_by(pictures, models["dino"], "dog", "night sky", sam=models["sam"], threshold=0.9)
    for more, less in zip(many, few, strict=True):
        for one, other in zip(more, less, strict=True):
            assert (one.boxes or 0) >= (other.boxes or 0) and one.best == pytest.approx(other.best, abs=1e-6)
            assert not (other.values > one.values).any() and (other.boxes or not other.values.any())
    none = found_by(pictures, models["dino"], "dog", sam=models["sam"], threshold=0.9999999)
    assert all(region.boxes == 0 and not region.values.any() for (region,) in none)


def test_the_command_runs_with_every_kind(tmp_path, models):
    photos = write_photos(tmp_path / "photos", SIZES)
    for name, options in {
        "clipseg": ("--text_input", "dog", "--model", models["clipseg"]),
        "foreground": ("--model", models["two"], "--threshold", "0.4"),
        "grounded": ("--text_input", "dog", "--subtract", "sky", "--model", models["dino"], "--sam", models["sam"]),
    }.items():
        assert masks(photos, tmp_path / name, *options) == 0
        assert len(files(tmp_path / name)) == len(SIZES) + 1


@pytest.mark.parametrize(
    ("model", "sam", "text", "error", "said"),
    [
        ("dino", None, True, ConfigError, "give --sam"),
        ("dino", "clipseg", True, ModelError, "model_type 'clipseg'"),
        ("dino", "sam", False, ConfigError, "give --text_input"),
        ("two", None, True, ConfigError, "reads no text"),
        ("two", "sam", False, ConfigError, "--sam has no use"),
        ("many", None, False, ModelError, "tells 3 classes apart"),
        ("sam", None, True, ModelError, "model_type 'sam' cannot be used"),
    ],
)
def test_models_that_do_not_fit_are_refused(models, model, sam, text, error, said):
    with pytest.raises(error, match=said):
        choose(False, models[model], models[sam] if sam else None, text)


def test_code_that_comes_with_a_model_is_never_run(tmp_path):
    """BiRefNet and RMBG are published like this."""
    config = {"architectures": ["BiRefNet"], "auto_map": {"AutoModelForImageSegmentation": "birefnet.BiRefNet"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "birefnet.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelError, match="is not run"):
        choose(False, str(tmp_path), None, False)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("config.json", "config.json"),
        ("model.safetensors", "no weights"),
        ("preprocessor_config.json", "cannot be loaded"),
        ("vocab.json", "tokenizer"),
        ("cut off", "cannot be loaded"),
        ("a weight", "1 weights are missing"),
    ],
)
def test_broken_models_are_named_and_nothing_is_made(tmp_path, models, capsys, broken, said):
    folder = pathlib.Path(shutil.copytree(models["clipseg"], tmp_path / "model"))
    weights = folder / "model.safetensors"
    if broken == "cut off":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif broken == "a weight":
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        tensors.pop("decoder.film_mul.weight")
        save_file(tensors, weights, metadata={"format": "pt"})
    else:
        (folder / broken).unlink()
    photos = write_photos(tmp_path / "photos", SIZES[:1])
    assert masks(photos, tmp_path / "out", "--text_input", "dog", "--model", str(folder)) == 2
    told = capsys.readouterr().err
    assert said in told and str(folder) in told and not list(tmp_path.glob("out/*.png"))


def test_values_that_are_not_finite_are_told(tmp_path, models, capsys):
    from safetensors.torch import load_file, save_file

    folder = pathlib.Path(shutil.copytree(models["clipseg"], tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors["decoder.film_mul.weight"].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    photos = write_photos(tmp_path / "photos", SIZES[:1])
    assert masks(photos, tmp_path / "out", "--text_input", "dog", "--model", str(folder)) == 2
    assert "not finite" in capsys.readouterr().err and not list(tmp_path.glob("out/*.png"))


def test_hub_models_come_from_the_cache_and_clipseg_is_the_default(tmp_path, models, monkeypatch, capsys):
    cached = hub_cache(tmp_path / "hub", "CIDAS/clipseg-rd64-refined", models["clipseg"], monkeypatch)
    photos = write_photos(tmp_path / "photos", SIZES[:2])
    assert masks(photos, tmp_path / "named", "--text_input", "dog", "--model", models["clipseg"]) == 0
    assert masks(photos, tmp_path / "default", "--text_input", "dog") == 0
    assert files(tmp_path / "named") == files(tmp_path / "default")
    (cached / "model.safetensors").unlink()  # only the small files are here
    assert masks(photos, tmp_path / "default", "--text_input", "dog", "--dry_run") == 0
    assert masks(photos, tmp_path / "default", "--text_input", "cat", "--dry_run") == 2  # other masks are there
    assert "text_input" in capsys.readouterr().err
    assert masks(photos, tmp_path / "later", "--text_input", "dog") == 2
    assert "no weights" in capsys.readouterr().err
