"""Whole runs of the real command on real photos, and the promises that hold over whole runs."""

import csv
import hashlib
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import tiny
from dreamlit.cli import main
from recorder import rows
from runs import (
    assert_same_state,
    base_config,
    checkpoint,
    fit,
    merged,
    regularisation,
    run,
    write_config,
    write_photos,
)


def tree(folder: pathlib.Path) -> dict[str, tuple[int, str]]:
    """Every file below a folder, with its modification time and content."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in files
    }


def metrics(root: pathlib.Path) -> list[dict[str, str]]:
    with (root / "logs" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def command(*args: object, cwd: pathlib.Path, **environment: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "dreamlit", *map(str, args)]
    environment = {**os.environ, **environment}
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, timeout=300, check=False)


def entry(name: str, folder: pathlib.Path | str, prompt: str = "a photo of sks dog", **keys: object) -> dict:
    return {"id": name, "instance_data_dir": str(folder), "instance_prompt": prompt, **keys}


def recording(path: pathlib.Path) -> list[dict]:
    return [{"class_path": "recorder.Recorder", "init_args": {"path": str(path)}}]


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("subject"), [(64, 64)] * 3 + [(128, 64)])


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("class"), [(64, 64)] * 2, seed=1)


# -- the main job ------------------------------------------------------------------------------------------------------


def dog_run(photos: pathlib.Path, model: pathlib.Path) -> dict:
    """Subject photos with masks at two resolutions, class photos as regularisation, LoKr; paths are relative."""
    dog = {"conditioning_data": "masks", "minimum_image_size": 100}
    class_dog = entry("class", photos / "class_dog", "a photo of a dog", resolution=128, is_regularisation_data=True)
    return {
        "trainer": {"accelerator": "cpu", "max_steps": 40, "log_every_n_steps": 1, "default_root_dir": "runs/dog"},
        "model": {
            "family": {"class_path": "SDXL", "init_args": {"path": str(model)}},
            "adapter": {"class_path": "LyCORIS", "init_args": {"algo": "lokr", "rank": 16, "factor": 4}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}},
        },
        "data": {
            "batch_size": 2,
            "datasets": [
                entry("dog-128", photos / "dog6" / "images", resolution=128, repeats=4, **dog),
                entry("dog-192", photos / "dog6" / "images", resolution=192, repeats=4, **dog),
                {"id": "masks", "dataset_type": "conditioning", "instance_data_dir": str(photos / "dog6" / "masks")},
                class_dog,
            ],
        },
    }


def test_the_main_job_on_real_photos(tmp_path, tiny_model, photos):
    before = tree(photos)
    write_config(tmp_path / "dog.yaml", dog_run(photos, tiny_model))
    done = command("fit", "--config", "dog.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert tree(photos) == before
    root = tmp_path / "runs" / "dog"
    logged = metrics(root)
    assert len(logged) == 40
    for name in ("loss", "loss/instance", "loss/prior"):
        values = [float(row[name]) for row in logged]
        assert any(math.isfinite(value) and value > 0 for value in values), name
    assert all(math.isfinite(float(row["loss"])) for row in logged)
    assert yaml.safe_load((root / "config.yaml").read_text())["model"]["adapter"]["init_args"]["factor"] == 4
    assert_learned(tiny_model, root / "dog.safetensors")


def assert_learned(model: pathlib.Path, file: pathlib.Path) -> None:
    """The file loads in a fresh model and changes what that predicts."""
    from dreamlit.adapters import LyCORIS
    from dreamlit.export import load_into_adapter
    from dreamlit.families import SDXL

    family = SDXL(str(model))
    family.load("denoiser")
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    config: Any = family.denoiser.config
    width = config["cross_attention_dim"]
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    conditioning = {"prompt_embeds": torch.ones(1, 77, width), "pooled_prompt_embeds": torch.ones(1, pooled)}
    frame = torch.tensor([[128, 128, 0, 0, 128, 128]])

    def predict() -> torch.Tensor:
        with torch.no_grad():
            return family.predict(noise, torch.tensor([500]), conditioning, frame)

    base = predict()
    adapter = LyCORIS(algo="lokr", rank=16, factor=4)
    adapter.attach(family.denoiser, seed=0)
    assert torch.equal(predict(), base)
    load_into_adapter(str(file), adapter)
    assert (predict() - base).abs().max() > 1e-3


def appendix_masked(data: str) -> list[dict]:
    """A list as written for another trainer: photos with masks, cropped square, sizes in pixel_area."""
    sizes = dict.fromkeys(("resolution", "minimum_image_size", "maximum_image_size", "target_downsample_size"), 1024)
    crop = {"crop": True, "crop_aspect": "square", "crop_style": "center", "resolution_type": "pixel_area"}
    photos = {"id": "dreambooth-data", "type": "local", "dataset_type": "image"}
    photos |= {"conditioning_data": "dreambooth-conditioning", "instance_data_dir": f"{data}/robot_toy/images"}
    photos |= {"cache_dir_vae": "cache/vae/sdxl/dreambooth-data", "caption_strategy": "instanceprompt"}
    photos |= {"instance_prompt": "an dreambooth", "metadata_backend": "discovery"}
    masks = {"id": "dreambooth-conditioning", "type": "local", "dataset_type": "conditioning"}
    masks |= {"instance_data_dir": f"{data}/robot_toy/masks", "conditioning_type": "mask"}
    texts = {"id": "an example backend for text embeds.", "dataset_type": "text_embeds", "default": True}
    texts |= {"type": "local", "cache_dir": "cache/text/sdxl-base/masked_loss"}
    return [photos | sizes | crop, masks | sizes | crop, texts]


def appendix_regularised(data: str) -> list[dict]:
    """A list as written for another trainer: two resolutions, repeats, regularisation data, no crop."""

    def photos(name: str, folder: str, prompt: str, resolution: int, minimum: int, **keys: object) -> dict:
        fixed = {"type": "local", "caption_strategy": "instanceprompt", "resolution_type": "pixel_area"}
        fixed |= {"cache_dir_vae": f"vae_cache/{name}", "resolution": resolution, "minimum_image_size": minimum}
        return entry(name, f"{data}/{folder}", prompt, **fixed, **keys)

    once = {"repeats": 100, "crop": False}
    prior = {"repeats": 0, "is_regularisation_data": True}
    return [
        photos("subjectname-data-512px", "dog6/images", "subjectname", 512, 192, **once),
        photos("subjectname-data-1024px", "dog6/images", "subjectname", 1024, 768, **once),
        photos("regularisation-data", "class_dog", "a picture of a man", 512, 192, **prior),
        photos("regularisation-data-1024px", "class_dog", "a picture of a man", 1024, 768, **prior),
        {"id": "textembeds", "type": "local", "dataset_type": "text_embeds", "default": True}
        | {"cache_dir": "text_cache/sdxl_base"},
    ]


def scaled(datasets: list[dict], divisor: int) -> list[dict]:
    sizes = ("resolution", "minimum_image_size", "maximum_image_size", "target_downsample_size")
    return [{k: v // divisor if k in sizes else v for k, v in dataset.items()} for dataset in datasets]


LISTS = {"masked": appendix_masked, "regularised": appendix_regularised}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_written_for_another_trainer_plans_and_trains(tmp_path, tiny_model, photos, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    config = base_config(tmp_path / "run", tiny_model, photos)
    del config["data"]["cache_dir"]
    datasets = LISTS[name](str(photos))
    pathlib.Path("datasets.json").write_text(json.dumps(datasets))
    config["data"]["datasets"] = "datasets.json"
    assert run("plan", config) == 0
    planned = capsys.readouterr().out
    assert all(dataset["id"] in planned for dataset in datasets if dataset.get("dataset_type", "image") == "image")
    assert "1024" in planned
    pathlib.Path("datasets.json").write_text(json.dumps(scaled(datasets, 8)))
    root = fit(merged(config, {"trainer.max_steps": 3, "trainer.callbacks": recording(tmp_path / "trace")}))
    assert (root / "run.safetensors").is_file()
    caches = [d.get("cache_dir_vae") or d.get("cache_dir") for d in datasets]
    assert all(any(pathlib.Path(cache).iterdir()) for cache in caches if cache)


# -- prior preservation ------------------------------------------------------------------------------------------------

FRESH = {
    "LoRA": ("LoRA", {"rank": 4, "dropout": 0.3}),
    "LoRA rank-stabilised": ("LoRA", {"rank": 4, "use_rslora": True}),
    "LoKr": ("LyCORIS", {"algo": "lokr", "rank": 4, "factor": 4}),
    "LoHa": ("LyCORIS", {"algo": "loha", "rank": 2}),
    "LoCon": ("LyCORIS", {"algo": "locon", "rank": 2}),
    "Full": ("Full", {}),
}


def with_adapter(config: dict, adapter: tuple[str, dict], **changes: object) -> dict:
    chosen = {"class_path": adapter[0], "init_args": adapter[1]}
    return merged(config, {"model.adapter": chosen, **changes})


@pytest.mark.parametrize("adapter", FRESH.values(), ids=FRESH.keys())
def test_the_regularisation_loss_is_rounding_alone_until_the_first_step(tmp_path, tiny_model, subject, others, adapter):
    config = base_config(tmp_path / "run", tiny_model, subject)
    config["data"]["datasets"].append(regularisation(others))
    changes = {"trainer.max_steps": 2, "trainer.callbacks": recording(tmp_path / "trace"), "data.batch_size": 4}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}}
    fit(with_adapter(config, adapter, **changes, **{"model.optimizer": optimizer}))
    first, second = rows(tmp_path / "trace")

    def prior(row: dict) -> list[float]:
        return [x for key, x in zip(row["keys"], row["per_sample"], strict=True) if key.startswith("class/")]

    # in a batch of both roles the base predicts the class alone: on some processors its sums round otherwise
    assert prior(first) and all(loss < 1e-12 for loss in prior(first))
    assert prior(second) and all(loss > 1e-9 for loss in prior(second))
    assert sum(first["per_sample"]) > 0.1


# -- the same run ------------------------------------------------------------------------------------------------------


def outputs(root: pathlib.Path) -> dict[str, bytes]:
    """What a run leaves, apart from its configuration and checkpoints, which name folders."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.suffix in (".csv", ".safetensors")
    }


def test_the_same_run_twice_leaves_the_same_bytes_with_any_number_of_workers(tmp_path, tiny_model, subject, others):
    results = []
    for number, workers in enumerate([0, 0, 2]):
        config = base_config(tmp_path / str(number) / "run", tiny_model, subject)
        config["data"]["datasets"].append(regularisation(others))
        config = with_adapter(config, ("LoRA", {"rank": 4, "dropout": 0.2}), **{"data.num_workers": workers})
        results.append(outputs(fit(config)))
    assert "run.safetensors" in results[0] and "run-diffusers.safetensors" in results[0]
    assert "logs/metrics.csv" in results[0]
    assert results[0] == results[1] == results[2]


def test_validation_leaves_training_as_it_was(tmp_path, tiny_model, subject, others):
    config = base_config(tmp_path / "without", tiny_model, subject)
    config = with_adapter(config, ("LoRA", {"rank": 4, "dropout": 0.2}))
    config = merged(config, {"trainer.max_steps": 6, "trainer.callbacks": recording(tmp_path / "without.jsonl")})
    without = checkpoint(fit(config), 6)
    config["data"]["datasets"].append(entry("eval", others, dataset_type="eval", resolution=64))
    changes = {
        "trainer.default_root_dir": str(tmp_path / "with"),
        "trainer.callbacks": recording(tmp_path / "with.jsonl"),
        "trainer.val_check_interval": 1,
        "data.eval_timesteps": 2,
    }
    root = fit(merged(config, changes))
    validations = [row["loss/val"] for row in metrics(root) if row["loss/val"]]
    assert len(validations) >= 6 and len(set(validations)) > 1
    assert rows(tmp_path / "with.jsonl") == rows(tmp_path / "without.jsonl")
    assert_same_state(checkpoint(root, 6)["state_dict"], without["state_dict"])
    assert_same_state(checkpoint(root, 6)["optimizer_states"], without["optimizer_states"])


def test_accents_work_where_the_locale_knows_none(tmp_path, tiny_model):
    photos = write_photos(tmp_path / "photos", [(64, 64)] * 2)
    for number, path in enumerate(sorted(photos.iterdir())):
        path = path.rename(path.with_name(f"été {number} 犬.png"))
        path.with_suffix(".txt").write_text("un chien élégant, à côté de la forêt 犬", encoding="utf-8")
    config = base_config(tmp_path / "run", tiny_model, photos)
    config["data"]["datasets"][0] |= {"caption_strategy": "textfile", "instance_prompt": "Zoë"}
    config["data"]["datasets"][0] |= {"prepend_instance_prompt": True}
    write_config(tmp_path / "c.yaml", config)
    locale = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = command("prepare", "--config", "c.yaml", cwd=tmp_path, **locale)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert "2" in done.stdout.decode(errors="replace")


def test_a_run_never_writes_into_a_folder_of_photos(tmp_path, tiny_model, capsys):
    photos = write_photos(tmp_path / "photos", [(64, 64)] * 2)
    before = tree(photos)
    for key in ("trainer.default_root_dir", "data.cache_dir"):
        config = merged(base_config(tmp_path / "run", tiny_model, photos), {key: str(photos / "inside")})
        write_config(tmp_path / "c.yaml", config)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["dreamlit"])
            assert main(["fit", "--config", str(tmp_path / "c.yaml")]) == 2
        assert "never written to" in capsys.readouterr().err
    assert tree(photos) == before


def test_an_epoch_that_would_cut_an_optimizer_step_short_is_refused(tmp_path, tiny_model, subject, capsys):
    changes = {"trainer.accumulate_grad_batches": 3, "trainer.limit_train_batches": 2}
    assert run("fit", merged(base_config(tmp_path / "run", tiny_model, subject), changes)) == 2
    assert "limit_train_batches" in capsys.readouterr().err


def test_a_run_may_be_limited_by_time_alone_unless_its_schedule_needs_a_number_of_steps(
    tmp_path, tiny_model, subject, capsys
):
    config = base_config(tmp_path / "run", tiny_model, subject)
    del config["trainer"]["max_steps"]
    config = merged(config, {"trainer.max_time": "00:00:00:01"})
    assert run("fit", merged(config, {"model.lr_scheduler": "cosine"})) == 2
    assert "max_time" in capsys.readouterr().err
    assert (fit(config) / "run.safetensors").is_file()


def test_photos_in_buckets_of_their_own_all_train(tmp_path, tiny_model):
    """Five photos of five shapes, batch 4: the remainder of each bucket waits, nothing is dropped."""
    photos = write_photos(tmp_path / "photos", [(64, 64), (128, 64), (64, 128), (192, 64), (64, 192)])
    config = base_config(tmp_path / "run", tiny_model, photos)
    changes = {"data.batch_size": 4, "trainer.accumulate_grad_batches": 2, "trainer.max_steps": 5}
    fit(merged(config, {**changes, "trainer.callbacks": recording(tmp_path / "trace")}))
    keys = [key.split("#")[0] for row in rows(tmp_path / "trace") for key in row["keys"]]
    assert {name: keys.count(name) for name in keys} == {f"subject/p{i}.png": 8 for i in range(5)}


# -- options -----------------------------------------------------------------------------------------------------------


def losses_of(config: dict, name: str, **changes: object) -> list[float]:
    """The loss of every sample of a run of its own."""
    root = pathlib.Path(config["trainer"]["default_root_dir"]).with_name(name)
    trace = root.with_name(f"{name}.jsonl")
    fixed = {"trainer.default_root_dir": str(root), "trainer.callbacks": recording(trace)}
    fit(merged(config, {**fixed, **changes}))
    return [loss for row in rows(trace) for loss in row["per_sample"]]


def test_options_for_memory_and_speed_change_no_loss(tmp_path, tiny_model, subject):
    config = base_config(tmp_path / "run", tiny_model, subject)
    plain = losses_of(config, "plain")
    family = "model.family.init_args."
    assert losses_of(config, "checkpointing", **{family + "gradient_checkpointing": True}) == pytest.approx(
        plain, rel=1e-6
    )
    assert losses_of(config, "last", **{family + "channels_last": True}) == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("adapter", [FRESH["LoRA"], FRESH["LoKr"]], ids=["LoRA", "LoKr"])
def test_a_bfloat16_base_trains_float32_weights(tmp_path, tiny_model, subject, others, adapter):
    config = base_config(tmp_path / "run", tiny_model, subject)
    config["data"]["datasets"].append(regularisation(others))
    config = with_adapter(config, adapter)
    plain = losses_of(config, "plain")
    half = {"trainer.precision": "bf16-mixed", "model.family.init_args.dtype": "bfloat16"}
    losses = losses_of(config, "half", **half)
    assert losses == pytest.approx(plain, rel=0.05, abs=1e-3)
    state = checkpoint(tmp_path / "half", 4)
    assert {value.dtype for value in state["state_dict"].values()} == {torch.float32}
    moments = [v for s in state["optimizer_states"][0]["state"].values() for k, v in s.items() if k != "step"]
    assert {moment.dtype for moment in moments} == {torch.float32}


def test_gradients_are_clipped_to_the_norm_that_was_asked_for(tmp_path, tiny_model, subject):
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0, "weight_decay": 0.0}}
    config = base_config(tmp_path / "run", tiny_model, subject)
    config = merged(config, {"trainer.max_steps": 1, "model.optimizer": sgd, "trainer.gradient_clip_val": 1e-3})
    state = checkpoint(fit(config), 1)["state_dict"]
    moved = torch.cat([value.flatten() for name, value in state.items() if "lora_B" in name])  # from zero
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-2)


SD_KINDS = {"epsilon": {}, "v with zero-terminal SNR": {"prediction_type": "v_prediction", "zero_terminal_snr": True}}


@pytest.mark.parametrize("kind", SD_KINDS.values(), ids=SD_KINDS.keys())
def test_stable_diffusion_trains(tmp_path, subject, others, kind):
    model = tiny.tiny_sd(tmp_path / "model", **kind)
    config = base_config(tmp_path / "run", model, subject)
    config["model"]["family"]["class_path"] = "SD"
    config["data"]["datasets"].append(regularisation(others))
    noise = {"offset_noise": 0.05, "input_perturbation": 0.1, "timestep_bias": "later", "loss": "huber"}
    changes = {"model.objective": noise, "model.optimizer.class_path": "torch.optim.AdamW", "trainer.max_steps": 30}
    changes["model.optimizer.init_args"] = {"lr": 1e-2}
    root = fit(merged(config, changes))
    loss = [float(row["loss"]) for row in metrics(root)]
    assert all(math.isfinite(value) for value in loss)
    assert any(
        value.abs().max() > 1e-2 for name, value in checkpoint(root, 30)["state_dict"].items() if "lora_B" in name
    )
    assert (root / "run.safetensors").is_file()


def test_a_run_can_start_from_the_weights_of_another(tmp_path, tiny_model, subject):
    config = base_config(tmp_path / "first", tiny_model, subject)
    config = merged(
        config, {"model.optimizer.class_path": "torch.optim.AdamW", "model.optimizer.init_args": {"lr": 1e-2}}
    )
    root = fit(config)
    frozen = {"model.optimizer.init_args.lr": 0.0, "trainer.max_steps": 1}
    second = {"trainer.default_root_dir": str(tmp_path / "second"), **frozen}
    for name in ("first.safetensors", "first-diffusers.safetensors"):
        shutil.rmtree(tmp_path / "second", ignore_errors=True)
        fit(merged(config, {**second, "model.init_from": str(root / name)}))
        state = checkpoint(tmp_path / "second", 1)
        assert_same_state(state["state_dict"], checkpoint(root, 4)["state_dict"])
        assert state["global_step"] == 1


def test_tar_shards_train_as_their_folder_does(tmp_path, tiny_model, subject):
    for number, path in enumerate(sorted(subject.iterdir())):
        with tarfile.open(tmp_path / f"part-{number % 2}.tar", "a") as tar:
            tar.add(path, arcname=path.name)
    config = base_config(tmp_path / "run", tiny_model, subject)
    folder = losses_of(config, "folder")
    config["data"]["datasets"][0] |= {"type": "webdataset", "instance_data_dir": str(tmp_path / "part-{0..1}.tar")}
    assert losses_of(config, "shards") == folder


def test_masks_may_be_alpha_channels(tmp_path, tiny_model, subject):
    folder = tmp_path / "cutouts"
    folder.mkdir()
    for path in subject.iterdir():
        image = Image.open(path).convert("RGBA")
        image.putalpha(Image.linear_gradient("L").resize(image.size).point([0] * 128 + [255] * 128))
        image.save(folder / path.name)
    config = base_config(tmp_path / "run", tiny_model, folder)
    whole = losses_of(config, "whole")
    config["data"]["datasets"][0]["alpha"] = "mask"
    masked = losses_of(config, "masked")
    assert all(math.isfinite(loss) for loss in masked)
    assert all(a != b for a, b in zip(whole, masked, strict=True))
