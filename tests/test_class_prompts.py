"""Class prompts: the class is held without class images."""

from __future__ import annotations

import collections
import pathlib
from typing import Any

import pytest
import torch

from dreamlit.callbacks.progress import OF_CLASS, recent_losses
from dreamlit.curves import loss_figure
from dreamlit.datamodules.captions import class_prompts, draw_class_prompt
from dreamlit.datamodules.config_entries import ImageDataset
from dreamlit.datamodules.config_read import read_entries, to_mapping
from dreamlit.errors import ConfigError
from dreamlit.families import SDXL
from dreamlit.module import DreamBooth
from runs import assert_same_state, checkpoint, fit, merged, regularisation, run, write_photos
from tests.prior_runs import PROMPTS, configured, control, logged

ADAPTERS: dict[str, dict[str, Any]] = {
    "LoRA": {"class_path": "LoRA", "init_args": {"rank": 4, "dropout": 0.1}},
    "LoKr": {"class_path": "LyCORIS", "init_args": {"algo": "lokr", "rank": 4, "factor": 4}},
    "Full": {"class_path": "Full"},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("subject"), [(64, 64)] * 3)


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("class"), [(64, 64)] * 2, seed=1)


@pytest.fixture
def batches(monkeypatch):
    """Each training batch with the module's total loss and the loss of the class prompts."""
    seen = []
    real = DreamBooth.losses

    def recorded(self, batch, offsets=None):
        losses = real(self, batch, offsets)
        seen.append((self, batch, losses))
        return losses

    monkeypatch.setattr(DreamBooth, "losses", recorded)
    return seen


# the loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_loss_is_what_the_adapter_changes_under_the_class_prompt(tmp_path, tiny_model, photos, batches, adapter):
    config = configured(
        tmp_path, tiny_model, photos, "run", **{"model.adapter": ADAPTERS[adapter], "trainer.max_steps": 3}
    )
    config["model"]["objective"] = {"prior_loss_weight": 2.5}
    fit(config)
    assert batches[0][2].of_class.abs().max() < 1e-9  # at the start the adapter changes nothing
    module, batch, _ = batches[-1]
    module.eval()
    with torch.no_grad():
        losses = module.losses(batch)
        family, x_t = module.family, module.process.noise(batch.latents, batch.input_eps, batch.t)
        asked = x_t, batch.t, batch.class_conditioning, batch.frame
        with module.adapter.disabled() as base:
            before = family.predict(*asked, denoiser=base)
        change = (family.predict(*asked, denoiser=module.denoiser) - before).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses.of_class, change)
    assert change.min() > 1e-8
    torch.testing.assert_close(losses.total, losses.per_sample.mean() + 2.5 * change.mean())


def test_it_holds_the_class(tmp_path, tiny_model, photos):
    """With a heavy weight the prediction for the class moves less than without, and the subject is still learned."""
    drift = {}
    for weight in (1e-6, 1000.0):
        config = configured(tmp_path, tiny_model, photos, f"run{weight}", prompt="a dog")
        config["model"]["objective"] = {"prior_loss_weight": weight}
        drift[weight] = logged(fit(merged(config, {"trainer.max_steps": 12})), "loss/class")[-1]
    assert drift[1000.0] < 0.2 * drift[1e-6]


def test_a_batch_may_hold_samples_with_and_without(tmp_path, tiny_model, photos, others, batches):
    config = configured(tmp_path, tiny_model, photos, "run", **{"data.batch_size": 4})
    config["data"]["datasets"].append(regularisation(others))
    root = fit(config)
    counts = {len(batch.class_rows) for _, batch, _ in batches}
    assert max(counts) > 0 and min(counts) < 4
    for _, batch, losses in batches:
        assert batch.class_rows.tolist() == (batch.role == 0).nonzero().flatten().tolist()
        assert (losses.of_class is None) == (len(batch.class_rows) == 0)
    assert len(logged(root, "loss/class")) > 0


def test_an_evaluation_is_the_same_with_and_without(tmp_path, tiny_model, photos):
    """Its figure is that of the photos: a class prompt is no part of what is measured, nor of its cost."""
    figures = []
    for name, prompt in (("with", PROMPTS), ("without", None)):
        config = configured(tmp_path, tiny_model, photos, name, prompt, **{"data.hold_out": 1, "trainer.max_steps": 1})
        config["trainer"]["callbacks"] = [{"class_path": "StableEvaluation", "init_args": {"every_n_steps": 1}}]
        figures.append(logged(fit(config), "loss/val")[0])
    assert figures[0] == figures[1]


def test_the_bar_and_the_plot_tell_its_loss():
    rows = collections.deque([(torch.tensor(1.0), torch.tensor([1.0, 3.0, 0.5]), torch.tensor([0, 0, OF_CLASS]))])
    assert recent_losses(rows) == ["loss 1.0000", "instance 2.0000", "class 0.5000"]
    figure = loss_figure({"loss": {1: 1.5}, "loss/instance": {1: 1.0}, "loss/class": {1: 0.5}})
    assert len(figure.axes) == 2 and "class prompts" in figure.axes[1].get_legend_handles_labels()[1][0]


def test_each_variant_is_drawn_once_in_a_round():
    spec = ImageDataset(id="a", instance_data_dir="a", class_prompt=("x", "y", "z"))
    for sample in ("a/1", "a/2"):
        drawn = [draw_class_prompt("", spec, 3, sample, visit) for visit in range(30)]
        assert all(sorted(filter(None, drawn[at : at + 3])) == ["x", "y", "z"] for at in range(0, 30, 3))
    assert draw_class_prompt("", ImageDataset(id="a", instance_data_dir="a"), 3, "a/1", 0) is None


# made of the captions -------------------------------------------------------------------------------------------------


def worded(**words: str) -> ImageDataset:
    return ImageDataset(id="a", instance_data_dir="a", class_words=tuple(words.items()), caption_dropout=0.5)


@pytest.mark.parametrize(
    ("caption", "of_class"),
    [
        ("a photo of sks dog on sand", "a photo of a dog on sand"),
        ("sks dog, sks dog's bowl", "a dog, a dog's bowl"),
        ("sks asleep", "something asleep"),
        ("two sks dogs", "two something dogs"),
        ("risks dog", None),
        ("", None),
    ],
)
def test_class_words_replace_whole_words_the_longest_first(caption, of_class):
    spec = worded(**{"sks": "something", "sks dog": "a dog"})
    assert draw_class_prompt(caption, spec, 3, "a/1", 0) == of_class
    assert class_prompts([caption], spec) == tuple(filter(None, [of_class]))


def test_each_photo_is_held_under_its_own_caption(tmp_path, tiny_model, batches):
    """Two photos with a caption each: the class prompt of a draw is its photo's, and there is none of a dropped one."""
    photos = write_photos(tmp_path / "photos", [(64, 64)] * 2)
    for number, photo in enumerate(sorted(photos.glob("*.png"))):
        photo.with_suffix(".txt").write_text(f"a photo of sks dog, place {number}")
    config = configured(tmp_path, tiny_model, photos, "run", None, **{"trainer.max_steps": 8})
    config["data"]["datasets"][0] |= {
        "caption_strategy": "textfile", "class_words": {"sks dog": "a dog"}, "caption_dropout": 0.4,
    }  # fmt: skip
    config["data"]["datasets"][0].pop("instance_prompt", None)
    fit(config)
    family = SDXL(str(tiny_model))
    family.load("text_encoders")
    texts = ["", *(f"a photo of sks dog, place {n}" for n in (0, 1)), *(f"a photo of a dog, place {n}" for n in (0, 1))]
    known = dict(zip(texts, family.encode_prompts(texts)["prompt_embeds"], strict=True))

    def of(embeds):
        return min(known, key=lambda text: (known[text] - embeds).abs().max().item())

    pairs = set()
    for _, batch, _ in batches:
        rows = batch.class_rows.tolist()
        held = dict(zip(rows, batch.class_conditioning["prompt_embeds"] if rows else [], strict=True))
        for row, embeds in enumerate(batch.conditioning["prompt_embeds"]):
            pairs.add((of(embeds), of(held[row]) if row in held else None))
    assert pairs == {("", None), *((f"a photo of sks dog, place {n}", f"a photo of a dog, place {n}") for n in (0, 1))}


def test_a_caption_without_the_words_is_named_before_anything_loads(tmp_path, tiny_model, photos, capsys, monkeypatch):
    monkeypatch.setattr(DreamBooth, "configure_model", lambda self: pytest.fail("the model was loaded"))
    config = configured(tmp_path, tiny_model, photos, "run", None)
    config["data"]["datasets"][0]["class_words"] = {"zwx dog": "a dog"}
    assert run("fit", config) != 0
    assert "has none of class_words (zwx dog)" in " ".join(capsys.readouterr().err.split())


def test_a_resume_with_other_class_words_is_refused(tmp_path, tiny_model, photos, capsys):
    config = configured(tmp_path, tiny_model, photos, "run", None, **{"trainer.max_steps": 1})
    caption = config["data"]["datasets"][0]["instance_prompt"]
    config["data"]["datasets"][0]["class_words"] = {caption: "a dog"}
    fit(config)
    config["data"]["datasets"][0]["class_words"] = {caption: "a cat"}
    config["trainer"]["max_steps"] = 2
    assert run("fit", config, "--ckpt_path", "last") != 0
    assert "data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"class_words": {}}, "words and what replaces them"),
        ({"class_words": "dog"}, "words and what replaces them"),
        ({"class_words": {"sks dog": " "}}, "not blank"),
        ({"class_words": {"sks": 3}}, "not blank"),
        ({"class_words": {"dog": "dog"}}, "replaced by itself"),
        ({"class_words": {"sks": "a"}, "class_prompt": "a dog"}, "keep one"),
        ({"class_words": {"sks": "a"}, "is_regularisation_data": True}, "class_words does nothing"),
    ],
)
def test_wrong_class_words_are_named(given, said):
    with pytest.raises(ConfigError, match=said):
        read_entries([{"id": "a", "instance_data_dir": "a", "instance_prompt": "sks dog", "resolution": 64, **given}])


def test_class_words_are_read_again_as_they_were_written():
    entry = {"id": "a", "instance_data_dir": "/a", "instance_prompt": "sks dog", "resolution": 64}
    (spec,) = read_entries([{**entry, "class_words": {"sks dog": "a dog"}}])
    assert to_mapping(spec)["class_words"] == {"sks dog": "a dog"} and read_entries([to_mapping(spec)]) == [spec]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, tiny_model, photos, adapter):
    changes = {
        "model.adapter": ADAPTERS[adapter],
        "trainer.max_steps": 6,
        "trainer.accumulate_grad_batches": 2,
        "trainer.callbacks": control(target=1e-4, every_n_steps=2),
        "checkpoint.every_n_steps": 3,
    }
    whole = fit(configured(tmp_path, tiny_model, photos, "whole", **changes))
    root = fit(part := configured(tmp_path, tiny_model, photos, "part", **changes))
    (root / "checkpoints" / "step-000006.ckpt").unlink()
    fit(part, "--ckpt_path", "last")  # from step 3, between two changes of the weight
    one, two = checkpoint(whole, 6), checkpoint(root, 6)
    for key in ("state_dict", "optimizer_states", "callbacks"):
        if key == "callbacks":
            one[key], two[key] = ({n: v for n, v in c[key].items() if "PriorControl" in n} for c in (one, two))
        assert_same_state(one[key], two[key], key)


def test_a_resume_with_another_class_prompt_is_refused(tmp_path, tiny_model, photos, capsys):
    fit(configured(tmp_path, tiny_model, photos, "run", **{"trainer.max_steps": 1}))
    other = configured(tmp_path, tiny_model, photos, "run", "a cat", **{"trainer.max_steps": 2})
    assert run("fit", other, "--ckpt_path", "last") != 0
    assert "data" in capsys.readouterr().err


# what would do nothing ------------------------------------------------------------------------------------------------


def wrong(tmp_path, tiny, photos, others, name) -> dict[str, Any]:
    config = configured(tmp_path, tiny, photos, "run", None if "control" in name else PROMPTS)
    if name == "weight 0":
        config["model"]["objective"] = {"prior_loss_weight": 0.0}
    elif name == "of class images":
        config["data"]["datasets"].append({**regularisation(others), "class_prompt": "a dog"})
    elif name == "of an evaluation":
        config["data"]["datasets"].append({
            **config["data"]["datasets"][0], "id": "eval", "dataset_type": "eval", "instance_data_dir": str(others),
        })  # fmt: skip
    elif name == "control of nothing":
        config["trainer"]["callbacks"] = control(target=1.0)
    elif name == "control of photos":
        config["data"]["datasets"].append(regularisation(others))
        config["model"]["objective"] = {"prior_target": "data"}
        config["trainer"]["callbacks"] = control(target=1.0)
    else:
        config["data"]["datasets"].append(regularisation(others))
        config["trainer"]["callbacks"] = control(target=1.0, min_weight=2.0)
    return config


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weight 0", "class_prompt has no effect with model.objective.prior_loss_weight: 0"),
        ("of class images", "class_prompt does nothing for is_regularisation_data"),
        ("of an evaluation", "class_prompt"),
        ("control of nothing", "there are none"),
        ("control of photos", "there are none"),
        ("control from elsewhere", "prior_loss_weight is 1.0, where PriorControl starts"),
    ],
)
def test_what_would_do_nothing_is_refused_before_anything_loads(
    tmp_path, tiny_model, photos, others, capsys, monkeypatch, name, said
):
    monkeypatch.setattr(DreamBooth, "configure_model", lambda self: pytest.fail("the model was loaded"))
    assert run("fit", wrong(tmp_path, tiny_model, photos, others, name)) != 0
    assert said in " ".join(capsys.readouterr().err.split())
