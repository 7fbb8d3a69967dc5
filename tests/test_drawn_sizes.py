"""Sizes that a model draws: those allowed are those that diffusers' pipeline takes, and others are told at once."""

import contextlib
import shutil

import pytest
import yaml

from dreamlit.callbacks.preview import ValidationPreview
from dreamlit.callbacks.report import RunReport
from dreamlit.errors import CombinationError
from dreamlit.families import SD
from dreamlit.toybox import MODEL
from dreamlit.training_cli import parts_of
from tests.runs import base_config, command, merged, write_photos


def test_what_the_family_allows_is_what_the_pipeline_takes():
    """The toybox's autoencoder halves twice, and diffusers' pipeline asks for a multiple of 8 all the same."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    family, pipeline = SD(str(MODEL)), StableDiffusionPipeline.from_pretrained(MODEL)
    assert (family.side_multiple, family.drawn_multiple) == (4, 8)
    for side in range(60, 90, family.side_multiple):
        taken = side % family.drawn_multiple == 0
        with contextlib.nullcontext() if taken else pytest.raises(ValueError, match="divisible by 8"):
            pipeline.check_inputs("a robot", 64, side, 1)


@pytest.mark.parametrize(("alignment", "drawn", "refused"), [(4, True, True), (8, True, False), (4, False, False)])
def test_buckets_that_cannot_be_drawn_are_refused_where_class_images_are_to_be(tmp_path, alignment, drawn, refused):
    config = base_config(tmp_path / "run", MODEL, write_photos(tmp_path / "photos", [(64, 64)]))
    config = merged(config, {"model.family.class_path": "SD", "data.aspect_bucket_alignment": alignment})
    if drawn:
        config["data"]["class_images"] = {"prompt": "a photo of a robot", "count": 2}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    told = pytest.raises(CombinationError, match=r"to draw data\.class_images this model needs a multiple of 8 pixels")
    with told if refused else contextlib.nullcontext():
        parts_of(str(path))


@pytest.mark.parametrize(
    ("callback", "options"),
    [(ValidationPreview, {"sizes": ["60x64"]}), (RunReport, {"width": 60, "height": 64})],
)
def test_a_size_that_cannot_be_drawn_ends_a_run_before_it_begins(tmp_path, capsys, callback, options):
    config = base_config(tmp_path / "run", MODEL, write_photos(tmp_path / "photos", [(64, 64)]))
    config["model"]["family"]["class_path"] = "SD"
    config["data"]["aspect_bucket_alignment"] = 4
    made = {"class_path": callback.__name__, "init_args": {"prompts": ["a photo of sks robot"], **options}}
    config["trainer"]["callbacks"] = [made]
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    assert command("fit", "--config", str(path)) == 2
    assert "width is 60; this model needs a multiple of 8" in capsys.readouterr().err


def test_a_new_run_has_buckets_that_can_be_drawn(tmp_path):
    photos = write_photos(tmp_path / "photos", [(64, 112), (64, 64)])
    words = ("--photos", str(photos), "--class", "robot", "--memory", "8", "--output", str(tmp_path / "run.yaml"))
    assert command("new", "--model", str(shutil.copytree(MODEL, tmp_path / "model")), *words) == 0
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["data"]["aspect_bucket_alignment"] == 8
