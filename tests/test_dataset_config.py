"""Dataset entries: what loads, what is refused and how the message reads."""

import copy
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from dreamlit.datamodules.captions import CaptionStrategy
from dreamlit.datamodules.config import (
    CaptionShuffle,
    CaptionTable,
    ConditioningDataset,
    DatasetSpecs,
    ImageDataset,
    TextEmbedsDataset,
    check_folders,
    size_of,
)
from dreamlit.datamodules.config_entries import ENTRY_CLASSES
from dreamlit.datamodules.config_values import CONVERTERS, STRATEGIES, base_folder
from dreamlit.errors import ConfigError, DataError
from dreamlit.types import Role

ROOT = pathlib.Path(__file__).resolve().parent.parent

MASKED = """[
 {"id":"dreambooth-data","type":"local","dataset_type":"image","conditioning_data":"dreambooth-conditioning",
  "instance_data_dir":"datasets/dreambooth","cache_dir_vae":"cache/vae/sdxl/dreambooth-data",
  "caption_strategy":"instanceprompt","instance_prompt":"an dreambooth","metadata_backend":"discovery",
  "resolution":1024,"minimum_image_size":1024,"maximum_image_size":1024,"target_downsample_size":1024,
  "crop":true,"crop_aspect":"square","crop_style":"center","resolution_type":"pixel_area"},
 {"id":"dreambooth-conditioning","type":"local","dataset_type":"conditioning","instance_data_dir":"datasets/dreambooth_mask",
  "resolution":1024,"minimum_image_size":1024,"maximum_image_size":1024,"target_downsample_size":1024,
  "crop":true,"crop_aspect":"square","crop_style":"center","resolution_type":"pixel_area","conditioning_type":"mask"},
 {"id":"an example backend for text embeds.","dataset_type":"text_embeds","default":true,"type":"local",
  "cache_dir":"cache/text/sdxl-base/masked_loss"}
]"""

REGULARISED = """[
 {"id":"subjectname-data-512px","type":"local","instance_data_dir":"datasets/subjectname","caption_strategy":"instanceprompt",
  "instance_prompt":"subjectname","cache_dir_vae":"vae_cache/subjectname","repeats":100,"crop":false,"resolution":512,
  "resolution_type":"pixel_area","minimum_image_size":192},
 {"id":"subjectname-data-1024px","type":"local","instance_data_dir":"datasets/subjectname","caption_strategy":"instanceprompt",
  "instance_prompt":"subjectname","cache_dir_vae":"vae_cache/subjectname-1024px","repeats":100,"crop":false,"resolution":1024,
  "resolution_type":"pixel_area","minimum_image_size":768},
 {"id":"regularisation-data","type":"local","instance_data_dir":"datasets/regularisation",
  "caption_strategy":"instanceprompt",
  "instance_prompt":"a picture of a man","cache_dir_vae":"vae_cache/regularisation","repeats":0,"resolution":512,
  "resolution_type":"pixel_area","minimum_image_size":192,"is_regularisation_data":true},
 {"id":"regularisation-data-1024px","type":"local","instance_data_dir":"datasets/regularisation",
  "caption_strategy":"instanceprompt",
  "instance_prompt":"a picture of a man","cache_dir_vae":"vae_cache/regularisation-1024px",
  "repeats":0,"resolution":1024,
  "resolution_type":"pixel_area","minimum_image_size":768,"is_regularisation_data":true},
 {"id":"textembeds","type":"local","dataset_type":"text_embeds","default":true,"cache_dir":"text_cache/sdxl_base"}
]"""


def image(**keys: Any) -> dict[str, Any]:
    """The smallest entry that loads, with `keys` added; a value of `...` removes a key."""
    entry = {"id": "dog", "instance_data_dir": "photos", "instance_prompt": "sks dog"} | keys
    return {key: value for key, value in entry.items() if value is not ...}


def masks(**keys: Any) -> dict[str, Any]:
    return {"id": "masks", "dataset_type": "conditioning", "instance_data_dir": "masks"} | keys


def store(**keys: Any) -> dict[str, Any]:
    return {"id": "text", "dataset_type": "text_embeds"} | keys


def report(items: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        DatasetSpecs.parse(items)
    return str(raised.value)


# -- what loads --------------------------------------------------------------------------------------------------------


def test_published_list_with_masks_loads_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text(MASKED)
    photos, masks, text = DatasetSpecs.parse(str(tmp_path / "list.json"))
    assert isinstance(photos, ImageDataset) and isinstance(masks, ConditioningDataset)
    assert isinstance(text, TextEmbedsDataset)
    assert photos.instance_data_dir == str(tmp_path / "datasets/dreambooth")
    assert photos.cache_dir_vae == str(tmp_path / "cache/vae/sdxl/dreambooth-data")
    assert photos.conditioning_data == masks.id and photos.instance_prompt == ("an dreambooth",)
    assert photos.target == photos.minimum == photos.maximum == photos.downsample == size_of(1024, "pixel_area")
    assert photos.crop is True and photos.role is Role.INSTANCE
    assert text.cache_dir == str(tmp_path / "cache/text/sdxl-base/masked_loss")


def test_published_list_with_regularisation_loads_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text(REGULARISED)
    specs = DatasetSpecs.parse(str(tmp_path / "list.json"))
    assert [spec.role for spec in specs.images] == [0, 0, 1, 1]
    assert [spec.repeats for spec in specs.images] == [100, 100, 0, 0]
    assert [spec.resolution for spec in specs.images] == [512, 1024, 512, 1024]
    assert specs.images[0].instance_data_dir == specs.images[1].instance_data_dir
    assert specs.text_cache_dir == str(tmp_path / "text_cache/sdxl_base")


@pytest.mark.parametrize("text", [MASKED, REGULARISED])
def test_resolved_list_reloads_equal_from_another_folder(text, tmp_path, monkeypatch):
    (tmp_path / "list.json").write_text(text)
    specs = DatasetSpecs.parse(str(tmp_path / "list.json"))
    monkeypatch.chdir("/")
    assert DatasetSpecs.parse(json.loads(json.dumps(specs.to_list()))) == specs


sizes = st.integers(64, 512)
words = st.text("abc é,_", min_size=1, max_size=12).filter(str.strip)


@st.composite
def entries(draw) -> dict[str, Any]:
    """An entry with any of its keys away from the default, in combinations that are allowed."""
    minimum, resolution, downsample, maximum = sorted(draw(st.lists(sizes, min_size=4, max_size=4)))
    crop = draw(st.booleans())
    aspect = draw(st.sampled_from(["square", "preserve", "closest", "random"] if crop else ["square", "preserve"]))
    entry = image(
        instance_prompt=draw(st.one_of(words, st.lists(words, min_size=1, max_size=3))),
        resolution=resolution,
        resolution_type=draw(st.sampled_from(["pixel", "pixel_area"])),
        minimum_image_size=draw(st.sampled_from([None, minimum])),
        max_upscale=draw(st.sampled_from([None, 1, 1.5])),
        crop=crop,
        crop_aspect=aspect,
        alpha=draw(st.sampled_from(["white", "mask", "error", "red", "#00ff7f", [1, 2, 3]])),
        on_bad_file=draw(st.sampled_from(["error", "skip"])),
        empty_caption=draw(st.sampled_from(["error", "allow", "skip"])),
        caption_shuffle=draw(st.sampled_from([True, False, {"enable": True, "keep_tokens": 2, "separator": "|"}])),
        caption_dropout=draw(st.floats(0, 1)),
        repeats=draw(st.one_of(st.integers(0, 500), st.floats(0, 500))),
        probability=draw(st.floats(1e-3, 10)),
    )
    if aspect in ("closest", "random"):
        entry["crop_aspect_buckets"] = draw(st.lists(st.floats(0.2, 5), min_size=1, max_size=4, unique=True))
    if crop and draw(st.booleans()):
        entry |= {"maximum_image_size": maximum, "target_downsample_size": downsample, "crop_style": "corner"}
    if draw(st.booleans()):
        entry |= {"caption_strategy": "jsonl", "jsonl": {"path": "t.jsonl"}, "prepend_instance_prompt": True}
    return entry


@settings(deadline=None, max_examples=150)
@given(entries())
def test_any_list_survives_its_own_resolved_form(entry):
    specs = DatasetSpecs.parse([entry])
    assert DatasetSpecs.parse(specs.to_list()) == specs
    assert DatasetSpecs.parse(json.dumps(specs.to_list())) == specs
    assert copy.deepcopy(specs) == specs and DatasetSpecs(specs) == specs


def test_yaml_and_json_files_give_equal_lists(tmp_path):
    (tmp_path / "a.json").write_text(REGULARISED)
    (tmp_path / "a.yaml").write_text(REGULARISED.replace("\t", " "))
    assert DatasetSpecs.parse(str(tmp_path / "a.json")) == DatasetSpecs.parse(str(tmp_path / "a.yaml"))


def test_relative_paths_of_a_plain_list_start_at_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (spec,) = DatasetSpecs.parse([image(instance_data_dir="some/../photos")])
    assert isinstance(spec, ImageDataset) and spec.instance_data_dir == str(tmp_path / "photos")


def test_urls_of_shards_stay_as_written():
    url = "https://example.org/shards/{000..003}.tar"
    assert DatasetSpecs([image(type="webdataset", instance_data_dir=url)]).images[0].instance_data_dir == url


def test_null_is_the_same_as_leaving_an_optional_key_out():
    assert DatasetSpecs([image(minimum_image_size=None, conditioning_data=None, jsonl=None)]) == DatasetSpecs([image()])


@pytest.mark.parametrize("spelling", ["is_regularisation_data", "is_regularization_data"])
def test_both_spellings_of_regularisation_mean_the_same(spelling):
    specs = DatasetSpecs([image(), image(id="class", **{spelling: True})])
    assert [spec.role for spec in specs.images] == [Role.INSTANCE, Role.REGULARISATION]


def test_equal_spellings_of_one_key_agree():
    twice = image(id="class", is_regularisation_data=True, is_regularization_data=True)
    assert DatasetSpecs([image(), twice]).images[1].role is Role.REGULARISATION


def test_disabled_entries_and_their_masks_are_left_out():
    off = image(id="off", disable=True, conditioning_data="masks", instance_prompt=...)
    assert [spec.id for spec in DatasetSpecs([image(), off, masks(), store(disabled=True)])] == ["dog"]


def test_masks_serve_two_resolutions_of_the_same_photos():
    pair = [image(id=str(size) + "px", resolution=size, conditioning_data="masks") for size in (512, 1024)]
    specs = DatasetSpecs([*pair, masks(resolution=512)])
    assert [specs.masks_of(spec) for spec in specs.images] == [specs[2], specs[2]]
    assert specs.masks_of(DatasetSpecs([image()]).images[0]) is None


def test_eval_datasets_are_kept_apart_from_training():
    specs = DatasetSpecs([image(), image(id="held-out", dataset_type="eval")])
    assert [spec.id for spec in specs.images] == ["dog"] and [spec.id for spec in specs.evals] == ["held-out"]


@pytest.mark.parametrize("value", ["mask", "error", "white"])
def test_alpha_policies_are_kept(value):
    assert DatasetSpecs([image(alpha=value)]).images[0].alpha == value


@pytest.mark.parametrize("value", ["red", "#ff0000", "#F00", [255, 0, 0], "rgb(255,0,0)"])
def test_every_way_to_write_a_colour_gives_one_value(value):
    assert DatasetSpecs([image(alpha=value)]).images[0].alpha == "#ff0000"


@settings(deadline=None)
@given(
    st.integers(16, 4096), st.integers(16, 4096), st.floats(16, 4096), st.sampled_from(["pixel", "pixel_area", "area"])
)
def test_scaling_by_a_size_gives_that_size(height, width, value, kind):
    size = size_of(value / 1000 if kind == "area" else value, kind)
    factor = size.scale(height, width)
    assert size.measure(height * factor, width * factor) == pytest.approx(size.px, rel=1e-9)


def test_units_of_sizes():
    assert size_of(512, "pixel").measure(600, 512) == 512 == size_of(512, "pixel").px
    assert size_of(1024, "pixel_area").px == 1024 * 1024 == size_of(1.048576, "area").px


# -- jsonargparse ------------------------------------------------------------------------------------------------------


class Data:
    def __init__(self, datasets: DatasetSpecs) -> None:
        self.datasets = datasets


def parser() -> ArgumentParser:
    made = ArgumentParser(exit_on_error=False)
    made.add_argument("--config", action="config")
    made.add_class_arguments(Data, "data")
    return made


def test_paths_start_at_the_working_folder_wherever_the_configuration_lies(tmp_path, monkeypatch, request):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/list.json").write_text(json.dumps([image()]))
    (tmp_path / "lists/named.yaml").write_text("data:\n  datasets: lists/list.json\n")
    (tmp_path / "lists/inline.yaml").write_text(json.dumps({"data": {"datasets": [image()]}}))
    monkeypatch.chdir(tmp_path)
    token = base_folder.set(str(tmp_path))  # as the commands do: the parser changes the working folder
    request.addfinalizer(lambda: base_folder.reset(token))
    found = [
        parser().parse_args(["--config", str(tmp_path / "lists" / name)]) for name in ("named.yaml", "inline.yaml")
    ]
    assert found[0].data.datasets == found[1].data.datasets
    assert found[0].data.datasets.images[0].instance_data_dir == str(tmp_path / "photos")
    assert isinstance(parser().instantiate(found[0]).data.datasets, DatasetSpecs)


def test_the_printed_configuration_gives_the_same_list(tmp_path):
    config = parser().parse_args([f"--data.datasets={json.dumps([image(caption_shuffle=True, repeats=0.5)])}"])
    (tmp_path / "resolved.yaml").write_text(parser().dump(config))
    again = parser().parse_args(["--config", str(tmp_path / "resolved.yaml")])
    assert again.data.datasets == config.data.datasets


def test_a_typo_reaches_the_user_through_the_parser(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps([image(resolutoin=512)]))
    with pytest.raises(ConfigError, match=r"list.json\[0\] \(id 'dog'\).*'resolutoin'; did you mean 'resolution'\?"):
        parser().parse_args([f"--data.datasets={tmp_path / 'list.json'}"])


# -- what is refused ---------------------------------------------------------------------------------------------------

TABLE = {"path": "t.csv"}
WRONG: dict[str, tuple[list[Any], str, tuple[str, ...]]] = {
    "misspelt key": (
        [image(resolutoin=512)],
        "[0] (id 'dog')",
        ("'resolutoin'", "did you mean 'resolution'", "crop_style"),
    ),
    "key of another kind": (
        [image(conditioning_type="mask")],
        "[0] (id 'dog')",
        ("belongs to dataset_type conditioning",),
    ),
    "key of another trainer": ([image(train_batch_size=4)], "[0] (id 'dog')", ("data.batch_size",)),
    "misspelt value": ([image(crop_aspect="sqare")], "[0] (id 'dog')", ("'sqare'", "did you mean 'square'", "closest")),
    "misspelt strategy": (
        [image(caption_strategy="textfiles")],
        "[0] (id 'dog')",
        ("did you mean 'textfile'", "jsonl"),
    ),
    "misspelt kind": ([image(dataset_type="images")], "[0] (id 'dog')", ("did you mean 'image'", "text_embeds")),
    "unknown storage": ([image(type="aws")], "[0] (id 'dog')", ("webdataset", "from a folder")),
    "no id": ([image(id=...)], "[0] (no id)", ("'id' is missing",)),
    "number as id": ([image(id=7)], "[0] (id 7)", ("7 (int)", "quote")),
    "slash in id": ([image(id="a/b")], "[0] (id 'a/b')", ("without '/'",)),
    "no folder": ([image(instance_data_dir=...)], "[0] (id 'dog')", ("'instance_data_dir' is missing",)),
    "quoted truth": ([image(crop="true")], "[0] (id 'dog')", ("crop: came 'true' (str)", "without quotes")),
    "quoted number": ([image(resolution="512")], "[0] (id 'dog')", ("resolution: came '512' (str)",)),
    "null where a value is needed": ([image(repeats=None)], "[0] (id 'dog')", ("repeats", "null")),
    "negative repeats": ([image(repeats=-1)], "[0] (id 'dog')", ("repeats: came -1", "0 is once")),
    "infinite repeats": ([image(repeats=float("inf"))], "[0] (id 'dog')", ("repeats: came inf",)),
    "probability zero": ([image(probability=0)], "[0] (id 'dog')", ("above 0", "disabled: true")),
    "dropout above one": ([image(caption_dropout=10)], "[0] (id 'dog')", ("caption_dropout: came 10", "at most 1")),
    "pixels given as megapixels": (
        [image(resolution=1024, resolution_type="area")],
        "[0] (id 'dog')",
        ("1024", "megapixels", "pixel_area"),
    ),
    "megapixels given as pixels": (
        [image(resolution=1.0)],
        "[0] (id 'dog')",
        ("resolution: came 1", "8 to 16384 pixels"),
    ),
    "half a pixel": ([image(resolution=512.5, resolution_type="pixel")], "[0] (id 'dog')", ("whole pixels",)),
    "maximum without target": (
        [image(crop=True, maximum_image_size=2048)],
        "[0] (id 'dog')",
        ("needs target_downsample_size",),
    ),
    "target without maximum": ([image(target_downsample_size=2048)], "[0] (id 'dog')", ("without maximum_image_size",)),
    "minimum above maximum": (
        [image(crop=True, minimum_image_size=3000, maximum_image_size=2048, target_downsample_size=2048)],
        "[0] (id 'dog')",
        ("minimum_image_size 3000 is above maximum_image_size 2048",),
    ),
    "target below resolution": (
        [image(crop=True, maximum_image_size=2048, target_downsample_size=512)],
        "[0] (id 'dog')",
        ("target_downsample_size 512 is below resolution 1024",),
    ),
    "buckets missing": ([image(crop=True, crop_aspect="closest")], "[0] (id 'dog')", ("needs crop_aspect_buckets",)),
    "buckets unused": (
        [image(crop=True, crop_aspect_buckets=[1.0])],
        "[0] (id 'dog')",
        ("does nothing with crop_aspect",),
    ),
    "bucket written as text": (
        [image(crop=True, crop_aspect="random", crop_aspect_buckets=["16:9"])],
        "[0] (id 'dog')",
        ("crop_aspect_buckets: came '16:9'", "width / height"),
    ),
    "aspect without crop": (
        [image(crop_aspect="random", crop_aspect_buckets=[1.0])],
        "[0] (id 'dog')",
        ("without crop: true",),
    ),
    "style without crop": ([image(crop_style="random")], "[0] (id 'dog')", ("crop_style", "without crop: true")),
    "enlarging below one": ([image(max_upscale=0.5)], "[0] (id 'dog')", ("max_upscale: came 0.5", "at least 1")),
    "no such colour": ([image(alpha="wite")], "[0] (id 'dog')", ("alpha: came 'wite'", "mask, error")),
    "no prompt": ([image(instance_prompt=...)], "[0] (id 'dog')", ("needs instance_prompt", "textfile")),
    "blank prompt": ([image(instance_prompt=["a", " "])], "[0] (id 'dog')", ("may not be blank",)),
    "unused prompt": ([image(caption_strategy="textfile")], "[0] (id 'dog')", ("prepend_instance_prompt: true",)),
    "prepend and only": (
        [image(caption_strategy="textfile", prepend_instance_prompt=True, only_instance_prompt=True)],
        "[0] (id 'dog')",
        ("exclude each other",),
    ),
    "nothing to prepend to": ([image(prepend_instance_prompt=True)], "[0] (id 'dog')", ("no caption to stand before",)),
    "table missing": ([image(caption_strategy="csv", instance_prompt=...)], "[0] (id 'dog')", ("needs a block 'csv'",)),
    "table unused": ([image(jsonl=TABLE)], "[0] (id 'dog')", ("the block 'jsonl' does nothing",)),
    "misspelt key of a block": (
        [image(caption_strategy="csv", instance_prompt=..., csv=TABLE | {"caption": "x"})],
        "[0] (id 'dog')",
        ("csv: no option 'caption'", "did you mean 'caption_column'"),
    ),
    "misspelt shuffle": ([image(caption_shuffle={"keep_token": 1})], "[0] (id 'dog')", ("did you mean 'keep_tokens'",)),
    "spellings that disagree": (
        [image(), image(id="c", is_regularisation_data=True, is_regularization_data=False)],
        "[1] (id 'c')",
        ("is_regularization_data is False", "keep one"),
    ),
    "same id twice": ([image(), image(instance_data_dir="b")], "[1] (id 'dog')", ("same id",)),
    "unknown masks": ([image(conditioning_data="mask"), masks()], "[0] (id 'dog')", ("did you mean 'masks'",)),
    "masks that are photos": (
        [image(conditioning_data="b"), image(id="b")],
        "[0] (id 'dog')",
        ("dataset_type is 'image'", "allowed: conditioning"),
    ),
    "disabled masks": ([image(conditioning_data="masks"), masks(disabled=True)], "[0] (id 'dog')", ("is disabled",)),
    "two mask sets": ([image(conditioning_data=["a", "b"])], "[0] (id 'dog')", ("one conditioning dataset",)),
    "masks of nobody": ([image(), masks()], "[1] (id 'masks')", ("no image dataset has conditioning_data: masks",)),
    "masks cut otherwise": (
        [image(conditioning_data="masks"), masks(resolution=512)],
        "[1] (id 'masks')",
        ("resolution: came 512", "'dog' has 1024"),
    ),
    "other conditioning": (
        [image(conditioning_data="masks"), masks(conditioning_type="controlnet")],
        "[1] (id 'masks')",
        ("only masks",),
    ),
    "two masks an image": ([image(conditioning_data="masks", alpha="mask"), masks()], "[0] (id 'dog')", ("two masks",)),
    "missing_mask without masks": ([image(missing_mask="white")], "[0] (id 'dog')", ("without conditioning_data",)),
    "nothing to train on": ([image(dataset_type="eval")], "datasets", ("nothing to train on",)),
    "no subject": ([image(is_regularisation_data=True)], "datasets", ("no subject to learn",)),
    "eval with repeats": (
        [image(), image(id="e", dataset_type="eval", repeats=2)],
        "[1] (id 'e')",
        ("repeats", "eval"),
    ),
    "two defaults": (
        [image(), store(default=True), store(id="t2", default=True)],
        "[2] (id 't2')",
        ("more than one", "default: true"),
    ),
    "two stores": ([image(), store(default=True), store(id="t2")], "[2] (id 't2')", ("one place",)),
    "store in shards": ([image(), store(type="webdataset")], "[1] (id 'text')", ("stored in a folder",)),
    "cache among photos": ([image(cache_dir_vae="photos/cache")], "[0] (id 'dog')", ("in a dataset folder",)),
    "foreign metadata": (
        [image(metadata_backend="parquet")],
        "[0] (id 'dog')",
        ("caption_strategy: parquet", "discovery"),
    ),
    "text for an entry": ([image(), "photos"], "[1]", ("'photos' (str)", "block of keys and values")),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_entry_is_named_with_what_came_and_what_is_allowed(name):
    items, place, fragments = WRONG[name]
    message = report(items)
    lines = [line for line in message.splitlines() if place in line]
    assert lines, message
    assert all(fragment in message for fragment in fragments), message
    assert all(len(line) < 400 or "options of" in line for line in message.splitlines())


def test_all_faults_of_a_list_are_in_one_report():
    message = report([image(resolutoin=1, crop="yes"), image(id="b", repeats=-2, conditioning_data="x"), masks(nope=1)])
    for fragment in ("resolutoin", "crop: came 'yes'", "[1] (id 'b'): repeats", "'x'", "[2] (id 'masks')", "'nope'"):
        assert fragment in message


def test_a_faulty_entry_does_not_make_its_masks_look_unused():
    message = report([image(resolutoin=1, conditioning_dat="masks"), masks()])
    assert "no image dataset has" not in message


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("a.json", '{"datasets": []}', "allowed: a list"),
        ("a.json", '[{"id": 1,]', "not valid JSON"),
        ("a.yaml", "- id: [", "not valid YAML"),
        ("a.json", '[{"id": "a", "repeats": 1, "repeats": 2}]', "'repeats' stands twice"),
        ("a.yaml", "- id: a\n  repeats: 1\n  repeats: 2\n", "'repeats' stands twice"),
        ("a.yaml", "- id: a\n  ? [b]\n  : 2\n", "a key is a list"),
        ("a.yaml", b"- id: caf\xe9\n", "not UTF-8"),
    ],
)
def test_a_broken_file_is_refused_with_its_name(name, content, fragment, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    message = report(str(tmp_path / name))
    assert name in message and fragment in message


@pytest.mark.parametrize("value", [{}, 3, None, [], "nowhere/list.json"])
def test_what_is_no_list_is_refused(value):
    assert "datasets" in report(value)


def test_yaml_merges_may_be_overridden(tmp_path):
    text = "- &base {id: a, instance_data_dir: p, instance_prompt: x, repeats: 3}\n- {<<: *base, id: b, repeats: 4}\n"
    (tmp_path / "a.yaml").write_text(text)
    assert [(spec.id, spec.repeats) for spec in DatasetSpecs.parse(str(tmp_path / "a.yaml")).images] == [
        ("a", 3),
        ("b", 4),
    ]


def test_missing_folders_and_tables_are_in_one_report(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "file").write_text("")
    items = [
        image(),
        image(id="f", instance_data_dir="file"),
        image(id="t", instance_data_dir=".", caption_strategy="csv", csv=TABLE, prepend_instance_prompt=True),
        image(id="shards", type="webdataset", instance_data_dir="shards/{0..3}.tar"),
    ]
    (tmp_path / "conf/list.json").write_text(json.dumps(items))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as raised:
        check_folders(DatasetSpecs.parse("conf/list.json"))
    lines = str(raised.value).splitlines()[1:]
    assert len(lines) == 3
    assert "'dog'" in lines[0] and f"{tmp_path / 'photos'} is not there" in lines[0]
    assert "'f'" in lines[1] and "is a file" in lines[1]
    assert "'t'" in lines[2] and "t.csv is not a file" in lines[2]


def test_folders_that_are_there_pass(tmp_path):
    check_folders(DatasetSpecs([image(instance_data_dir=str(tmp_path))]))


# -- the reference stays whole -----------------------------------------------------------------------------------------


def test_every_key_has_a_converter_and_the_converter_accepts_the_default():
    for field in (field for cls in ENTRY_CLASSES for field in dataclasses.fields(cls)):
        assert field.name in CONVERTERS, field.name
        if field.default not in (None, (), dataclasses.MISSING):
            assert CONVERTERS[field.name](field.default) == field.default


def test_every_built_in_strategy_is_registered():
    assert set(STRATEGIES) <= set(CaptionStrategy.registry)


def test_reference_page_is_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "scripts/make_dataset_reference.py", "--check"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_reading_a_list_imports_no_torch():
    code = "import sys, dreamlit.datamodules.config as c; c.DatasetSpecs([%r]); print('torch' in sys.modules)" % image()  # noqa: UP031
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "False"


def test_entries_built_in_code_equal_entries_read():
    spec = ImageDataset(
        id="dog",
        instance_data_dir=os.path.abspath("photos"),
        instance_prompt=("sks dog",),
        caption_strategy="csv",
        csv=CaptionTable(path=os.path.abspath("t.csv")),
        prepend_instance_prompt=True,
        caption_shuffle=CaptionShuffle(enable=True),
    )
    read = image(caption_strategy="csv", csv=TABLE, prepend_instance_prompt=True, caption_shuffle=True)
    assert DatasetSpecs([spec]) == DatasetSpecs([read])
