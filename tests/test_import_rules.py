"""The rules of `dreamlit import`: what they map to exists, nothing that they take is lost, and bad input is told."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from dreamlit.errors import ConfigError
from dreamlit.importing import (
    diffusers_scripts,
    kohya,
    kohya_data,
    models,
    simpletuner_data,
    simpletuner_lycoris,
    simpletuner_more,
)
from dreamlit.importing import simpletuner_run as simpletuner
from dreamlit.importing.command import imported
from dreamlit.importing.draft import SHORT, Draft, shown
from dreamlit.importing.rules import Rule, Rules, rule_of
from dreamlit.importing.text import text_of
from tests.import_cases import CASES, FILES
from tests.runs import command
from tests.tiny import script

TABLES: dict[str, Rules] = {
    "simpletuner": simpletuner.RULES,
    "lycoris": simpletuner_lycoris.LYCORIS,
    "webhook": simpletuner_more.WEBHOOK,
    "kohya": kohya.RULES,
    "network_args": kohya.NETWORK,
    "diffusers": diffusers_scripts.RULES,
}
ENTRIES: dict[str, Rules] = {
    "simpletuner's datasets": simpletuner_data.IMAGES,
    "simpletuner's masks": simpletuner_data.MASKS,
    "kohya's datasets": kohya_data.DATASETS,
    "kohya's subsets": kohya_data.SUBSETS,
}


# what is mapped exists ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Prefix of a key -> the options of dreamlit's own classes there."""
    from torch.optim import AdamW

    from dreamlit.adapters import Adapter
    from dreamlit.callbacks import shipped_callbacks
    from dreamlit.callbacks.checkpoint import RunCheckpoint
    from dreamlit.datamodules.config_entries import ConditioningDataset, ImageDataset
    from dreamlit.datamodules.dreambooth import DreamBoothData
    from dreamlit.families import Family
    from dreamlit.module import DreamBooth
    from dreamlit.objective import Objective
    from dreamlit.suggestions import options_of, subclasses
    from dreamlit.trainer import Trainer

    shipped_callbacks()
    from lightning.pytorch import Callback

    found = {kind.__name__: options_of(kind) for kind in subclasses(Callback)}
    found |= {kind.__name__: options_of(kind) for kind in (*subclasses(Adapter), *subclasses(Family))}
    found["model.family.init_args"] = set().union(*(options_of(kind) for kind in subclasses(Family)))
    found["model.adapter.init_args"] = set().union(*(options_of(kind) for kind in subclasses(Adapter)))
    found["model.optimizer.init_args"] = set(inspect.signature(AdamW).parameters)
    found["model.objective"] = {field.name for field in dataclasses.fields(Objective)}
    kinds = {"model": DreamBooth, "data": DreamBoothData, "checkpoint": RunCheckpoint}
    found |= {name: options_of(kind) for name, kind in kinds.items()}
    found["trainer"] = set(inspect.signature(Trainer.__init__).parameters) | options_of(Trainer)
    entries = (ImageDataset, ConditioningDataset)
    found["dataset"] = {field.name for kind in entries for field in dataclasses.fields(kind)}
    return found


@pytest.mark.parametrize("name", [*TABLES, *ENTRIES])
def test_every_key_that_an_option_is_mapped_to_exists(name, options):
    rules = {**TABLES, **ENTRIES}[name]
    wrong = []
    for option, rule in rules.items():
        if rule.kind == "to" and not rule.key.startswith("_") and rule.key != "seed_everything":
            head, _, rest = rule.key.partition(".")
            key = f"dataset.{rule.key}" if name in ENTRIES else rule.key
            key = rest if head == "callbacks" else f"{SHORT[head]}.{rest}" if head in SHORT else key
            place, _, last = key.rpartition(".")
            wrong += [] if last in options[place] else [f"{option} -> {key}"]
    assert not wrong


@pytest.mark.parametrize("name", [*TABLES, *ENTRIES])
def test_every_key_that_a_reason_names_exists(name, options):
    wrong = []
    places = "|".join(re.escape(place) for place in sorted(options, key=len, reverse=True))
    for option, rule in {**TABLES, **ENTRIES}[name].items():
        for place, key in re.findall(rf"(?<![\w.])({places})\.(\w+)(?![\w./])", f"{rule.here} {rule.why}"):
            inner = place in ("model", "model.family", "model.adapter") and key in ("family", "adapter", "objective")
            if key not in options[place] and key != "init_args" and not inner:
                wrong.append(f"{option}: {place}.{key}")
    assert not wrong


def test_every_rule_is_in_the_docs_and_the_docs_are_up_to_date():
    tables = script("make_import_table")
    listed = {
        id(rule) for sections in tables.SECTIONS.values() for rules in sections.values() for rule in rules.values()
    }
    missing = [
        f"{name}: {option}"
        for name, rules in TABLES.items()
        for option, rule in rules.items()
        if id(rule) not in listed
    ]
    assert not missing
    assert tables.page() == tables.PAGE.read_text(encoding="utf-8"), "run python scripts/make_import_table.py"


def test_the_families_of_flow_matching_are_those_that_the_rules_take_them_for():
    from dreamlit.families.checks import concrete_families

    ours = [kind for kind in concrete_families() if kind.__module__.startswith("dreamlit.")]
    assert {kind.__name__ for kind in ours if kind.noise == "flow matching"} == models.FLOW
    assert {kind.__name__ for kind in ours if kind.latent_channels == 3} == models.PIXELS
    named = {family for family, _ in simpletuner.HOMES.values()} | {
        entry[0] for entry in diffusers_scripts.SCRIPTS.values()
    }
    named |= {family for family, _ in kohya.SCRIPTS.values()} | set(kohya.HOMES)
    assert named <= {kind.__name__ for kind in ours}


def test_levels_of_quantisation_are_those_of_dreamlit():
    from dreamlit.importing.simpletuner import PRECISIONS
    from dreamlit.quantisation.levels import LEVELS, NO_CHANGE

    assert set(PRECISIONS.values()) <= {*LEVELS, NO_CHANGE}


@pytest.mark.parametrize("name", [known.class_path for known in models.OPTIMIZERS.values() if known.class_path])
def test_an_optimizer_that_is_mapped_takes_what_it_is_given(name):
    import importlib

    known = next(one for one in models.OPTIMIZERS.values() if one.class_path == name)
    module, _, kind = name.rpartition(".")
    assert {"lr", *known.takes} <= set(inspect.signature(getattr(importlib.import_module(module), kind)).parameters)


# nothing is lost ------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The files of a case in the working folder, with folders for the photos."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train" / "10_sks dog").mkdir(parents=True)
    (tmp_path / "reg" / "1_dog").mkdir(parents=True)

    def lay(name: str) -> pathlib.Path:
        shutil.copytree(FILES / name, tmp_path, dirs_exist_ok=True)
        return tmp_path / CASES[name].args[0]

    return lay


@pytest.mark.parametrize("name", CASES)
def test_no_option_of_a_case_is_taken_and_then_forgotten(name, here):
    config = here(name)
    args = CASES[name].args
    datasets = pathlib.Path(args[1]) if len(args) > 1 and not args[1].startswith("--") else None
    draft = imported(config, datasets, args[args.index("--script") + 1] if "--script" in args else None)
    assert not draft.parts
    told = "\n".join([*draft.idle, *draft.refused, *draft.unknown, *draft.notes, text_of(draft, "")])
    if config.suffix == ".json":
        for option in json.loads(config.read_text()):
            assert option.lstrip("-") in told or rule_of(simpletuner.RULES, option.lstrip("-")), option


@pytest.mark.parametrize("name", CASES)
def test_the_same_files_give_the_same_text(name, here, capsys):
    here(name)
    texts = []
    for _ in range(2):
        assert command("import", *CASES[name].args, "--dry-run") == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and yaml.safe_load(texts[0])["model"]["family"]["init_args"]["path"]
    assert not pathlib.Path("run.yaml").exists()


ODD_VALUES = [1, "no such thing", True, 0, ["a", "b"], {"a": 1}, -3, 0.5]
FILES_OF_THEIR_OWN = ("user_prompt_library", "webhook_config", "lycoris_config", "config_file", "sample_prompts")


def with_odd(rules: Rules, value: object, own: dict) -> str:
    """Every option of a table at an odd value, but for those that make it a run at all."""
    odd = {name: value for name in rules if "*" not in name and name not in FILES_OF_THEIR_OWN}
    return json.dumps({**odd, **own})


@pytest.mark.parametrize("value", ODD_VALUES)
@pytest.mark.parametrize("family", ["sd3", "sdxl", "flux", "deepfloyd"])
def test_every_option_of_simpletuner_is_used_or_told_whatever_its_value(here, family, value):
    config = here("simpletuner-sd3-full")
    own = {"model_family": family, "model_flavour": None, "pretrained_model_name_or_path": "somewhere"}
    own |= {"model_type": "lora", "lora_type": "standard", "data_backend_config": "config/data.json"}
    config.write_text(with_odd(simpletuner.RULES, value, own))
    draft = imported(config)
    assert not draft.parts
    yaml.safe_load(text_of(draft, "odd"))


@pytest.mark.parametrize("value", ODD_VALUES)
@pytest.mark.parametrize("name", ["train_network.py", "flux_train_network.py", "train_db.py"])
def test_every_option_of_kohya_is_used_or_told_whatever_its_value(here, name, value):
    config = here("kohya-flux-masked").with_name("options.json")
    own = {"pretrained_model_name_or_path": "somewhere", "dataset_config": "dataset.toml", "network_args": None}
    config.write_text(with_odd(kohya.RULES, value, {**own, "network_module": "networks.lora"}))
    draft = imported(config, script=name)
    assert not draft.parts
    yaml.safe_load(text_of(draft, "odd"))


@pytest.mark.parametrize("value", ODD_VALUES)
@pytest.mark.parametrize(
    "name", ["train_dreambooth_lora_sdxl.py", "train_dreambooth_lora_flux.py", "train_dreambooth.py"]
)
def test_every_option_of_diffusers_is_used_or_told_whatever_its_value(tmp_path, name, value):
    config = tmp_path / "options.json"
    own = {"pretrained_model_name_or_path": "somewhere", "class_data_dir": "b", "class_prompt": "a dog"}
    own |= {"instance_data_dir": "a", "instance_prompt": "sks dog"}
    config.write_text(with_odd(diffusers_scripts.RULES, value, own))
    draft = imported(config, script=name)
    assert not draft.parts
    yaml.safe_load(text_of(draft, "odd"))


@pytest.mark.parametrize("value", ODD_VALUES)
def test_every_key_of_a_dataset_is_used_or_told_whatever_its_value(here, value):
    own = {"id": "rex", "type": "local", "dataset_type": "image"}
    masks = {"id": "m", "type": "local", "dataset_type": "conditioning", "conditioning_type": "mask"}
    entries = [json.loads(with_odd(simpletuner_data.IMAGES, value, own))]
    entries += [json.loads(with_odd(simpletuner_data.MASKS, value, masks)), {**PHOTOS, "id": "plain"}]
    draft = simpletuner_draft(here, {}, entries)
    assert not draft.parts and len(draft.datasets) == 3
    yaml.safe_load(text_of(draft, "odd"))


@pytest.mark.parametrize("value", ODD_VALUES)
def test_every_key_of_lycoris_and_of_a_webhook_is_used_or_told_whatever_its_value(here, value):
    here("simpletuner-flux-lycoris")
    config = json.loads(pathlib.Path("config/config.json").read_text())
    hook = json.loads(with_odd(simpletuner_more.WEBHOOK, value, {"webhook_type": "raw"}))
    pathlib.Path("config/config.json").write_text(json.dumps({**config, "webhook_config": hook}))
    pathlib.Path("config/lycoris_config.json").write_text(
        with_odd(simpletuner_lycoris.LYCORIS, value, {"algo": "loha"})
    )
    draft = imported(pathlib.Path("config/config.json"))
    assert not draft.parts
    yaml.safe_load(text_of(draft, "odd"))


# what is otherwise is said --------------------------------------------------------------------------------------------


def simpletuner_draft(here, changes: dict, datasets: list | None = None) -> Draft:
    config = here("simpletuner-sd3-full")
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    if datasets is not None:
        (config.parent / "config" / "data.json").write_text(json.dumps(datasets))
    return imported(config)


GUIDE = {"scheduled_sampling_max_step_offset": 10, "scheduled_sampling_probability": 1.0}
PHOTOS = {"id": "rex", "type": "local", "instance_data_dir": "photos", "instance_prompt": "sks dog"}
PHOTOS |= {"caption_strategy": "instanceprompt", "resolution": 512}


@pytest.mark.parametrize(
    ("changes", "probability", "said"),
    [
        (
            {"scheduled_sampling_ramp_steps": 1000},
            1.0,
            "from 1 to 0.5 (prob_end is 0.5 unless it is given), that is down",
        ),
        ({"scheduled_sampling_ramp_steps": 9, "scheduled_sampling_prob_end": 0.8}, 0.8, "from 1 to 0.8"),
        ({"scheduled_sampling_start_step": 5}, 1.0, "1 to max_step_offset steps here, from 0 there"),
    ],
)
def test_the_direction_of_the_ramp_is_said(here, changes, probability, said):
    draft = simpletuner_draft(here, {**GUIDE, **changes})
    assert draft.callbacks["ScheduledSampling"]["probability"].value == probability
    assert any(said in note for note in draft.notes)


def test_steps_of_a_rollout_stay_single_timesteps(here):
    draft = simpletuner_draft(here, {**GUIDE, "scheduled_sampling_order": 9})
    found = {name: one.value for name, one in draft.callbacks["ScheduledSampling"].items()}
    steps = {"max_step_offset": 10, "probability": 1.0, "step_stride": 1, "sampler": "unipc", "order": 3}
    assert found == {**steps, "anti_drift": 10.0}


REFLEX = "scheduled_sampling_reflexflow"


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({}, {"anti_drift": 10.0}),  # there it is on for a flow model unless it is turned off
        ({REFLEX: False, f"{REFLEX}_beta1": 3}, {}),
        ({REFLEX: "true", f"{REFLEX}_beta1": 3, f"{REFLEX}_alpha": 2}, {"anti_drift": 3, "frequency_compensation": 2}),
        ({REFLEX: True, f"{REFLEX}_beta1": 0}, {}),
    ],
)
def test_the_terms_of_reflexflow_are_those_of_there(here, changes, terms):
    draft = simpletuner_draft(here, {**GUIDE, **changes})
    found = draft.callbacks["ScheduledSampling"]
    assert {name: found[name].value for name in ("anti_drift", "frequency_compensation") if name in found} == terms
    assert not draft.parts and not any(REFLEX in name for name in draft.refused)
    assert ("frequency_compensation is left off" in " ".join(draft.notes)) == (
        changes.get(REFLEX) is not False and "frequency_compensation" not in terms
    )


def test_a_scale_of_the_loss_is_refused_and_terms_without_a_rollout_are_dropped(here):
    for scale in (2.0, 0):
        draft = simpletuner_draft(here, {**GUIDE, f"{REFLEX}_beta2": scale})
        assert any(f"{REFLEX}_beta2" in name for name in draft.refused)
    draft = simpletuner_draft(here, {**GUIDE, REFLEX: "no", f"{REFLEX}_beta2": 2.0})
    assert not any(REFLEX in name for name in draft.refused)
    draft = simpletuner_draft(here, {**GUIDE, "scheduled_sampling_probability": 0})
    assert draft.callbacks["ScheduledSampling"]["anti_drift"].value == 10.0 and not draft.parts
    draft = simpletuner_draft(here, {REFLEX: True, f"{REFLEX}_beta2": 1.0})
    assert "ScheduledSampling" not in draft.callbacks and not draft.parts
    assert not any(REFLEX in name for name in draft.refused)


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ("simpletuner-sdxl-lora", "masks: there the masked loss is divided by the whole frame"),
        ("simpletuner-sdxl-lora", "repeats: extra passes, there too: 0 is once"),
        ("simpletuner-sd2-toml", "an epoch has each photo repeats + 1 times, there too"),
        ("kohya-flux-masked", "masks: there the masked loss is divided by the whole frame"),
        ("kohya-flux-masked", "num_repeats: 1 is once there, repeats: 0 here"),
        ("kohya-sd15-dreambooth", "its images are repeated until they are as many as the others"),
        ("diffusers-lora-sdxl", "repeats: 1 is once there, 0 is once here"),
        ("diffusers-dreambooth", "dreamlit class-images --config run.yaml --count 200"),
        ("simpletuner-sd3-full", "there lr_warmup_steps is half a period"),
    ],
)
def test_what_the_other_trainer_does_otherwise_is_said(here, tool, said, capsys):
    here(tool)
    assert command("import", *CASES[tool].args, "--dry-run") == 0
    text = " ".join(line.lstrip("# ") for line in capsys.readouterr().out.splitlines())
    assert said in text


def test_repeats_of_kohya_and_diffusers_are_one_more(here):
    for name, repeats in (("kohya-flux-masked", 7), ("diffusers-lora-sdxl", 2), ("simpletuner-sd3-full", 3)):
        args = CASES[name].args
        draft = imported(here(name), pathlib.Path(args[1]) if len(args) > 1 else None)
        assert [one["repeats"].value for one in draft.datasets if "repeats" in one] == [repeats], name


@pytest.mark.parametrize(
    ("changes", "told", "refused"),
    [
        ({}, True, []),
        ({"model_prediction_type": "raw"}, False, []),
        ({"weighting_scheme": "sigma_sqrt"}, False, []),
        ({"model_prediction_type": "additive"}, False, ["model_prediction_type: additive"]),
    ],
)
def test_that_kohya_compares_photos_is_said(here, changes, told, refused):
    config = here("kohya-flux-masked").with_name("options.json")
    own = {"pretrained_model_name_or_path": "flux.safetensors", "dataset_config": "dataset.toml"}
    config.write_text(json.dumps({**own, "network_module": "networks.lora_flux", **changes}))
    draft = imported(config, script="flux_train_network.py")
    assert any("compares photos" in note for note in draft.notes) == told
    assert [name for name in draft.refused if "predict" in name or "scheme" in name] == refused


def test_a_dataset_configuration_of_kohya_may_be_json(here):
    config = here("kohya-flux-masked")
    subsets = [{"image_dir": "photos", "class_tokens": "sks dog", "caption_extension": ".none"}]
    content = {"general": {"num_repeats": 3}, "datasets": [{"resolution": 512, "subsets": subsets}]}
    pathlib.Path("dataset.json").write_text(json.dumps(content))
    entry = imported(config, pathlib.Path("dataset.json")).datasets[0]
    assert entry["repeats"].value == 2 and entry["instance_prompt"].value == "sks dog"


def test_full_rank_lokr_is_recognised_by_its_dimension(here):
    values = imported(here("simpletuner-flux-lycoris")).values
    assert values["model.adapter.init_args.full_matrix"].value is True
    assert "model.adapter.init_args.rank" not in values and "model.adapter.init_args.alpha" not in values


def test_prompts_of_a_library_and_of_a_file_become_previews(here):
    draft = imported(here("simpletuner-flux-lycoris"))
    assert draft.callbacks["ValidationPreview"]["prompts"].value == [
        "sks dog holding a sign",
        "sks dog as a chef",
        "a dog",
    ]
    draft = imported(here("kohya-sd15-dreambooth"))
    found = {name: one.value for name, one in draft.callbacks["ValidationPreview"].items()}
    assert found["prompts"] == ["sks dog in the snow", "a dog in the snow"] and found["seeds"] == [3]
    assert found["negative_prompt"] == "blurry" and found["guidance_scale"] == 7.5 and found["sizes"] == ["512x512"]


def test_several_webhooks_keep_their_own_variables(here):
    hooks = [
        {"webhook_type": "discord", "webhook_url": "u"},
        {"webhook_type": "raw", "callback_url": "v", "auth_token": "t"},
    ]
    draft = simpletuner_draft(here, {"webhook_config": hooks})
    run = yaml.safe_load(text_of(draft, ""))
    told = [one["init_args"] for one in run["trainer"]["callbacks"] if one["class_path"] == "Webhook"]
    assert [one["url_env"] for one in told] == ["WEBHOOK_URL", "WEBHOOK_URL_2"]
    assert told[1]["secret_env"] == "WEBHOOK_SECRET_2" and told[1]["token_env"] == "WEBHOOK_TOKEN_2"


def test_wandb_is_taken_with_its_names(here):
    draft = simpletuner_draft(here, {"report_to": "wandb", "tracker_project_name": "dogs", "tracker_run_name": "rex"})
    logger = yaml.safe_load(text_of(draft, ""))["trainer"]["logger"]
    assert logger == {"class_path": "WandbLogger", "init_args": {"project": "dogs", "name": "rex"}}


def test_a_dataset_that_is_elsewhere_is_refused_and_the_rest_is_kept(here):
    cloud = {"id": "cloud", "type": "aws", "aws_bucket_name": "b", "aws_secret_access_key": "sEcReT"}
    draft = simpletuner_draft(here, {}, [PHOTOS, cloud, {**PHOTOS, "id": "c", "dataset_type": "video"}])
    assert [one["id"].value for one in draft.datasets] == ["rex"]
    assert any("fetch the photos into a folder" in why for why in draft.refused.values()) and len(draft.refused) == 3


# secrets, unknown options, files --------------------------------------------------------------------------------------


def test_secrets_are_neither_written_nor_printed(here, capsys):
    for name in ("simpletuner-sdxl-lora", "simpletuner-sd15-env"):
        here(name)
        assert command("import", *CASES[name].args, "--output", f"{name}.yaml") == 0
        told = capsys.readouterr()
        for text in (told.out, told.err, pathlib.Path(f"{name}.yaml").read_text()):
            assert "s3cret" not in text and "hf_thisisasecret" not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("hub_token", "abc"), ("wandb_api_key", "abc"), ("url", "http://me:abc@host/"), ("x", "http://me:abc@host/")),
        *(("publishing_config", {"a": "abc"}), ("publishing_config", [{"a": "abc"}]), ("HF_TOKEN", ["abc"])),
    ],
)
def test_a_secret_value_is_never_shown(name, value):
    assert "abc" not in shown(name, value)


@pytest.mark.parametrize(
    "prompt",
    [
        "a: b # c",
        "two\nlines",
        "'",
        '"',
        "yes",
        "1e5",
        "007",
        "*x",
        "- a",
        "🟫 is {here}",
        " spaces ",
        "tab\there",
        "null",
        "a\u2028b",
    ],
)
def test_a_text_comes_out_as_it_went_in(here, prompt):
    draft = simpletuner_draft(here, {"output_dir": prompt, "seed": 7}, [{**PHOTOS, "instance_prompt": [prompt, "b"]}])
    run = yaml.safe_load(text_of(draft, ""))
    assert run["trainer"]["default_root_dir"] == prompt and run["seed_everything"] == 7
    assert run["data"]["datasets"][0]["instance_prompt"] == [prompt, "b"]


def test_an_unknown_option_is_shouted(here, capsys):
    config = here("simpletuner-sd3-full")
    config.write_text(json.dumps({**json.loads(config.read_text()), "learning_rat": 1, "use_magic": True}))
    assert command("import", str(config)) == 0
    told, text = capsys.readouterr(), pathlib.Path("run.yaml").read_text()
    for one in (told.err, text):
        assert "UNKNOWN, NOT IMPORTED:" in one and "learning_rat: 1" in one and "use_magic: True" in one
    assert "2 options unknown" in told.out


def test_a_file_is_overwritten_only_when_told(here, capsys):
    config = str(here("simpletuner-sd3-full"))
    pathlib.Path("mine.yaml").write_text("mine")
    assert command("import", config, "--output", "mine.yaml") == 2
    assert "--force" in capsys.readouterr().err and pathlib.Path("mine.yaml").read_text() == "mine"
    assert command("import", config, "--output", "mine.yaml", "--force") == 0
    assert yaml.safe_load(pathlib.Path("mine.yaml").read_text())["trainer"]["max_steps"] == 200
    assert command("import", config, "--output", "config.json/run.yaml") == 2
    assert "cannot be written" in capsys.readouterr().err


BROKEN = {
    "config.json": [
        ("", "is empty"),
        ("{", "is not valid JSON"),
        ("[1]", "a list of datasets"),
        ("[" * 100_000, "is not valid JSON"),
        ("{}", "does not say whose configuration it is"),
        ('{"model_family": "wan"}', "model_family is 'wan'"),
        ('{"model_family": "flux", "model_flavour": "kontext"}', "such a model is not trained here"),
        ('{"model_family": "flux", "model_type": "embedding"}', "model_type is 'embedding'"),
        ('{"model_family": "sd3", "model_flavour": "giant"}', "without a pretrained_model_name_or_path"),
        ('{"model_family": "flux"}', "names no list of datasets"),
        ('{"model_family": "z_image"}', "'turbo-ostris-v2' without a pretrained_model_name_or_path"),
        ('{"model_family": "flux", "data_backend_config": "nowhere.json"}', "neither in the working folder"),
        ('{"model_family": "flux", "data_backend_config": "empty.json"}', "must hold a list of datasets"),
        ('{"model_family": "flux", "data_backend_config": "broken.json"}', "is not valid JSON"),
        (
            '{"model_family": "flux", "model_type": "lora", "lora_type": "lycoris", "lycoris_config": "dylora.json", '
            '"data_backend_config": "good.json"}',
            "'dylora' is refused",
        ),
    ],
    "config.toml": [("a =", "is not valid TOML"), ("\xff", "is not valid TOML")],
    "config.env": [('export HF_TOKEN="hf_secret', "about line 1"), ("just words", "is neither JSON, TOML, KEY=value")],
    "train.sh": [
        ("python train_text_to_image.py --a=1", "train_text_to_image.py is no script of a trainer"),
        ("python train_network.py --dataset_config d.toml", "names no pretrained_model_name_or_path"),
        ("python train_network.py --pretrained_model_name_or_path=m", "there is no dataset"),
        ("python train_network.py --pretrained_model_name_or_path=m --train_data_dir=no", "there is no such folder"),
        ("python train_network.py --pretrained_model_name_or_path=m --train_data_dir=.", "no sub-folder named like"),
        (
            "python train_network.py --pretrained_model_name_or_path=m --dataset_config=bad.toml",
            "must hold [[datasets]]",
        ),
        (
            "python train_network.py --pretrained_model_name_or_path=m --dataset_config=none.toml",
            "needs [[datasets.subsets]]",
        ),
        (
            "python train_network.py --pretrained_model_name_or_path=m --dataset_config=odd.toml",
            "'big' is not a number",
        ),
        (
            "python train_network.py --pretrained_model_name_or_path=m --network_module=networks.oft",
            "network_module is",
        ),
        ("python train_network.py --pretrained_model_name_or_path=m --network_args dim", "not of the form name=value"),
        ("python train_dreambooth_lora_hidream.py --a 1", "the script is 'train_dreambooth_lora_hidream.py'"),
        ("python train_dreambooth.py --instance_data_dir=a", "names no pretrained_model_name_or_path"),
        ("python train_dreambooth.py --pretrained_model_name_or_path=m", "must have --instance_data_dir"),
        (
            "python train_dreambooth.py --pretrained_model_name_or_path=m --instance_data_dir=a --instance_prompt=b "
            "--with_prior_preservation",
            "needs --class_data_dir",
        ),
    ],
}
BESIDE = {
    "empty.json": "[]",
    "broken.json": "[{",
    "good.json": json.dumps([PHOTOS]),
    "dylora.json": json.dumps({"algo": "dylora", "linear_dim": 4}),
    "d.toml": "",
    "bad.toml": "[general]\nkeep_tokens = 1\n",
    "none.toml": "[[datasets]]\nresolution = 512\n",
    "odd.toml": "[[datasets]]\nresolution = 'big'\n[[datasets.subsets]]\nimage_dir = 'x'\n",
}


@pytest.mark.parametrize(("file", "content", "said"), [(f, *pair) for f, pairs in BROKEN.items() for pair in pairs])
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, monkeypatch, capsys, file, content, said):
    monkeypatch.chdir(tmp_path)
    for name, text in BESIDE.items():
        pathlib.Path(name).write_text(text)
    pathlib.Path(file).write_bytes(content.encode("latin-1"))
    assert command("import", file) == 2
    told = capsys.readouterr().err
    assert said in told or (("cannot be read" in told and content == "\xff") and "Traceback" not in told)
    assert "hf_secret" not in told and not pathlib.Path("run.yaml").exists()


def test_a_missing_file_is_told(capsys):
    assert command("import", "nowhere.json") == 2 and "nowhere.json cannot be read" in capsys.readouterr().err


def test_variables_and_launchers_of_shell_lines_are_understood(tmp_path):
    from dreamlit.importing.reading import read

    path = tmp_path / "x.sh"
    lines = ('A="my dir"', "export B=${A}/x", 'X="${X} --q=1"', "accelerate launch --num_processes=2 \\")
    path.write_text("\n".join([*lines, "  train_db.py --a=$B --b $UNSET --c 1 2 -- --d", "echo --e"]))
    source = read(path)
    assert source.script == "train_db.py" and source.launcher == {"num_processes": 2}
    assert source.options == {"a": "my dir/x", "b": "$UNSET", "c": [1, 2], "": True, "d": True}


def test_help_has_an_example_and_needs_no_library():
    code = "import sys; from dreamlit.cli import main\ntry: main(['import', '--help'])\nexcept SystemExit: pass\n"
    code += "print('LOADED', 'torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "examples:" in done.stdout and "LOADED False False" in done.stdout


def test_a_rule_says_something_of_every_option_that_is_not_mapped():
    rules: list[Rule] = [rule for table in (*TABLES.values(), *ENTRIES.values()) for rule in table.values()]
    assert all(rule.why for rule in rules if rule.kind != "to")
    assert all(rule.here for rule in rules if rule.key.startswith("_"))


def test_models_without_any_dataset_that_can_be_used_are_refused(here):
    with pytest.raises(ConfigError, match="no dataset"):
        simpletuner_draft(here, {}, [{"id": "cloud", "type": "aws"}])
