"""`data.class_images`: a run draws pictures of its class first, once, and trains as with a folder given by hand."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import pytest
import yaml

from dreamlit import class_images
from dreamlit.datamodules.config_entries import size_of
from dreamlit.datamodules.geometry import target_size
from test_distributed import TWO_NODES, fit_on_nodes
from tests.runs import assert_same_state, base_config, checkpoint, command, fit, merged, run, write_photos

SIZES = [(64, 64), (96, 64), (64, 96)]
DRAWN = {"prompt": "a {red|blue} dog", "count": 5, "steps": 1, "batch_size": 2}


def configured(root: pathlib.Path, model: pathlib.Path, photos: pathlib.Path, **changes: Any) -> dict[str, Any]:
    made = merged(base_config(root, model, photos), {"data.aspect_bucket_alignment": 32, "checkpoint.every_n_steps": 2})
    return merged(made, {"data.class_images": dict(DRAWN), **changes})


def pictures(cache: pathlib.Path) -> dict[str, bytes]:
    """Path below the address -> content, of all that is drawn."""
    root = cache / "class-images"
    found = sorted(path for path in root.rglob("*") if path.suffix in (".png", ".txt"))
    return {path.relative_to(root).as_posix().partition("/")[2]: path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("subject"), SIZES, seed=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model, photos) -> pathlib.Path:
    """A run that drew its own pictures."""
    return fit(configured(tmp_path_factory.mktemp("drawn") / "run", tiny_model, photos))


def test_it_trains_bit_for_bit_as_with_the_folders_given_by_hand(tmp_path, tiny_model, photos, finished):
    config = configured(tmp_path / "run", tiny_model, photos)
    del config["data"]["class_images"]
    (folder,) = (path for path in (finished.parent / "cache" / "class-images").iterdir() if path.is_dir())
    for size in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        width, height = map(int, size.split("x"))
        area = {"resolution_type": "area", "resolution": width * height / 1e6}
        entry = {"id": f"class-images-{size}", "instance_data_dir": str(folder / size), "caption_strategy": "textfile"}
        config["data"]["datasets"].append({**entry, **area, "is_regularisation_data": True})
    by_hand = fit(config)
    assert_same_state(checkpoint(finished, 4)["state_dict"], checkpoint(by_hand, 4)["state_dict"])
    facts = [checkpoint(root, 4)["dreamlit"]["manifest_digest"] for root in (finished, by_hand)]
    assert facts[0] == facts[1]


def test_every_picture_has_a_size_of_the_subject_and_its_prompt_beside_it(finished):
    made = pictures(finished.parent / "cache")
    images = [name for name in made if name.endswith(".png")]
    assert len(images) == 5 and {pathlib.PurePath(name).parent.name for name in images} == {"64x64", "96x64", "64x96"}
    assert {made[name.replace(".png", ".txt")] for name in images} == {b"a red dog\n", b"a blue dog\n"}
    assert len({made[name] for name in images}) == 5


def test_the_written_configuration_runs_again_and_draws_nothing_again(finished, monkeypatch):
    monkeypatch.setattr(class_images, "draw", None)  # whoever draws now fails
    resolved = finished / "config.yaml"
    kept = yaml.safe_load(resolved.read_text())
    assert kept["data"]["class_images"]["count"] == 5 and len(kept["data"]["datasets"]) == 1
    again = finished.parent / "again"
    assert command("fit", "--config", str(resolved), "--trainer.default_root_dir", str(again)) == 0
    assert_same_state(checkpoint(finished, 4)["state_dict"], checkpoint(again, 4)["state_dict"])
    other_seed = finished.parent / "seed"
    options = ("--seed_everything", "8", "--trainer.default_root_dir", str(other_seed))
    assert command("fit", "--config", str(resolved), *options) == 0
    (again / "checkpoints" / "step-000004.ckpt").unlink()
    assert command("fit", "--config", str(again / "config.yaml"), "--ckpt_path", "last") == 0
    assert_same_state(checkpoint(finished, 4)["state_dict"], checkpoint(again, 4)["state_dict"])


@pytest.mark.parametrize("stopped_at", [1, 3])
def test_a_stopped_run_goes_on_to_the_very_same_pictures(
    tmp_path, tiny_model, photos, finished, monkeypatch, stopped_at
):
    config, calls, whole = configured(tmp_path / "run", tiny_model, photos), 0, class_images.save_image

    def stopping(image: Any, path: pathlib.Path, recipe: str = "") -> pathlib.Path:
        nonlocal calls
        calls += 1
        if calls > stopped_at:
            raise KeyboardInterrupt
        return whole(image, path, recipe)

    monkeypatch.setattr(class_images, "save_image", stopping)
    assert run("prepare", config) != 0 and len(pictures(tmp_path / "cache")) < 10
    monkeypatch.setattr(class_images, "save_image", whole)
    assert run("prepare", config) == 0
    assert pictures(tmp_path / "cache") == pictures(finished.parent / "cache")


def test_a_plan_says_what_would_be_drawn_and_draws_nothing(tmp_path, tiny_model, photos, finished, capsys):
    config = configured(tmp_path / "run", tiny_model, photos)
    assert run("plan", config) == 0
    told = capsys.readouterr().out
    assert "5 of 5 are to be drawn (2 prompts; 2 of 64x64, 1 of 64x96, 2 of 96x64)" in told and "10 forwards" in told
    assert not (tmp_path / "cache" / "class-images").exists()
    streams = [line for line in told.splitlines() if "class-images-" in line]
    assert len(streams) >= 3
    config["data"]["cache_dir"] = str(finished.parent / "cache")
    assert run("plan", config) == 0
    told = capsys.readouterr().out
    assert "to be drawn" not in told and [line for line in told.splitlines() if "class-images-" in line] == streams


def test_what_decides_the_pictures_gives_them_another_place(tmp_path, tiny_model, tiny_other_model, photos, finished):
    shutil.copytree(finished.parent / "cache", tmp_path / "cache")
    cache = {"data.cache_dir": str(tmp_path / "cache")}
    folders = set((tmp_path / "cache" / "class-images").glob("*/"))
    for number, (model, changes) in enumerate(
        (
            (tiny_other_model, {}),
            (tiny_model, {"data.class_images": {**DRAWN, "prompt": "a dog"}}),
            (tiny_model, {"data.class_images": {**DRAWN, "seed": 1}}),
            (tiny_model, {"data.class_images": {**DRAWN, "sampler": "ddim"}}),
            (tiny_model, {"trainer.precision": "bf16-mixed"}),
        )
    ):
        before = {path for path in folders if path.is_dir()}
        assert run("prepare", configured(tmp_path / str(number), model, photos, **cache, **changes)) == 0
        folders = set((tmp_path / "cache" / "class-images").glob("*/"))
        assert len({path for path in folders if path.is_dir()} - before) == 1


BAD = {
    "count": ({"data.class_images.count": 0}, "count is 0"),
    "batch": ({"data.class_images.batch_size": 0}, "batch_size is 0"),
    "prompt": ({"data.class_images.prompt": " "}, "prompt is ' '"),
    "no prompt": ({"data.class_images": {"count": 3}}, "prompt"),
    "probability": ({"data.class_images.probability": 0.0}, "probability is 0.0"),
    "repeats": ({"data.class_images.repeats": -1.0}, "repeats is -1.0"),
    "unknown key": ({"data.class_images.cuont": 3}, "data.class_images has no option 'cuont'; did you mean 'count'"),
    "sampler": ({"data.class_images.sampler": "magic"}, "class_images: sampler is 'magic'"),
    "steps": ({"data.class_images.steps": 0}, "class_images: steps is 0"),
    "weight": ({"model.objective": {"prior_loss_weight": 0.0}}, "data.class_images has no effect"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_said_before_a_model_loads(tmp_path, tiny_model, photos, capsys, monkeypatch, case):
    monkeypatch.setattr("dreamlit.families.base.Family.load", None)
    changes, said = BAD[case]
    assert run("fit", configured(tmp_path / "run", tiny_model, photos, **changes)) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "cache" / "class-images").exists()


def test_a_dataset_of_the_same_id_and_a_family_that_needs_photos_are_refused(
    tmp_path, tiny_model, photos, family_folders, capsys
):
    config = configured(tmp_path / "run", tiny_model, photos)
    config["data"]["datasets"][0]["id"] = "class-images-64x64"
    assert run("fit", config) == 2
    assert "rename the dataset 'class-images-64x64'" in capsys.readouterr().err
    config["data"]["datasets"][0]["id"] = "subject"
    refiner = {"class_path": "SDXLRefiner", "init_args": {"path": str(family_folders("refiner"))}}
    assert run("plan", merged(config, {"model.family": refiner})) == 2
    assert "data.class_images: SDXLRefiner draws from photos" in capsys.readouterr().err


def test_a_damaged_record_is_told_with_what_to_do(tmp_path, tiny_model, photos, capsys):
    config = configured(tmp_path / "run", tiny_model, photos)
    assert run("prepare", config) == 0
    (record,) = (tmp_path / "cache" / "class-images").glob("*/class-images.jsonl")
    record.write_text("{")
    assert run("prepare", config) == 2
    assert "remove that folder" in capsys.readouterr().err
    next(record.parent.glob("*/*.png")).unlink()
    record.unlink()
    assert run("fit", config) == 2
    assert "remove that folder" in capsys.readouterr().err


def test_a_picture_that_is_gone_is_drawn_again(tmp_path, tiny_model, photos, finished):
    config = configured(tmp_path / "run", tiny_model, photos)
    assert run("prepare", config) == 0
    sorted((tmp_path / "cache" / "class-images").glob("*/*/*.png"))[0].unlink()
    assert run("fit", config) == 0
    assert pictures(tmp_path / "cache") == pictures(finished.parent / "cache")


def test_an_area_of_its_own_keeps_every_size_as_it_is():
    for alignment in (8, 32, 64):
        for height in range(alignment, 34 * alignment, alignment):
            for width in range(alignment, 34 * alignment, alignment):
                size = size_of(width * height / 1e6, "area")
                assert target_size(width / height, size, alignment) == (height, width)


@pytest.mark.slow
def test_two_nodes_that_share_a_cache_draw_once(tmp_path, tiny_model, photos, finished):
    together = fit_on_nodes(configured(tmp_path / "nodes", tiny_model, photos, **TWO_NODES))
    assert pictures(tmp_path / "cache") == pictures(finished.parent / "cache")
    digests = [checkpoint(root, 4)["dreamlit"]["manifest_digest"] for root in (finished, together)]
    assert digests[0] == digests[1]
