"""Shapes of configurations that users of other trainers have: what they mean there is what is imported."""

from __future__ import annotations

import json
import pathlib

import pytest

from dreamlit.importing.command import imported
from dreamlit.importing.draft import Draft, shown
from dreamlit.importing.reading import read
from dreamlit.importing.text import text_of
from tests.runs import command

PHOTOS = {"id": "rex", "type": "local", "instance_data_dir": "photos", "instance_prompt": "sks dog"}
PHOTOS |= {"caption_strategy": "instanceprompt"}
DATASET = "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = 'C:\\pets\\rex'\nclass_tokens = 'sks'\n"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def simpletuner(changes: dict, entry: dict | None = None) -> Draft:
    pathlib.Path("data.json").write_text(json.dumps([{**PHOTOS, **(entry or {})}]))
    own = {"model_family": "sdxl", "model_type": "lora", "data_backend_config": "data.json"}
    pathlib.Path("config.json").write_text(json.dumps({**own, "validation_prompt": "sks dog", **changes}))
    return imported(pathlib.Path("config.json"))


def kohya(script: str, options: str = "") -> Draft:
    pathlib.Path("dataset.toml").write_text(DATASET)
    line = f"accelerate launch {script} --pretrained_model_name_or_path=m --dataset_config=dataset.toml {options}"
    pathlib.Path("train.sh").write_text(line)
    return imported(pathlib.Path("train.sh"))


def value(draft: Draft, key: str) -> object:
    return draft.values[key].value if key in draft.values else None


# names, tables, numbers -----------------------------------------------------------------------------------------------


def test_an_option_by_its_older_name_is_not_replaced_by_the_default(folder):
    draft = simpletuner({"validation_steps": 50, "checkpointing_steps": 70, "use_gradient_checkpointing": False})
    assert draft.callbacks["ValidationPreview"]["every_n_steps"].value == 50
    assert value(draft, "checkpoint.every_n_steps") == 70
    assert value(draft, "model.family.init_args.gradient_checkpointing") is False


def test_a_value_that_does_not_fit_is_named_as_the_user_wrote_it(folder):
    draft = simpletuner({"train_batch_size": "many"})
    assert "train_batch_size: many" in draft.refused and "batch: many" not in draft.refused


def test_a_table_of_toml_is_an_option_and_an_unknown_one_is_told(folder):
    pathlib.Path("data.json").write_text(json.dumps([PHOTOS]))
    lines = ['model_family = "sdxl"', 'model_type = "lora"', 'data_backend_config = "data.json"', "[webhook_config]"]
    pathlib.Path("config.toml").write_text("\n".join([*lines, 'webhook_type = "raw"', "[magic]", "a = 1"]))
    draft = imported(pathlib.Path("config.toml"))
    assert draft.callbacks["Webhook"]["kind"].value == "raw" and "magic" in draft.unknown


def test_sizes_may_be_texts_and_other_texts_are_refused(folder):
    sizes = {"minimum_image_size": "256", "maximum_image_size": "2048", "target_downsample_size": "1280", "crop": True}
    entry = simpletuner({}, sizes).datasets[0]
    found = [entry[name].value for name in ("minimum_image_size", "maximum_image_size", "target_downsample_size")]
    assert found == [256, 2048, 1280]
    draft = simpletuner({}, {**sizes, "maximum_image_size": "huge"})
    assert any("maximum_image_size: huge" in name for name in draft.refused)


def test_json_with_a_comma_too_many_says_what_json_is(folder, capsys):
    pathlib.Path("config.json").write_text('{"model_family": "flux",}')
    assert command("import", "config.json") == 2
    assert "no comma behind the last" in capsys.readouterr().err


def test_a_folder_of_windows_gives_a_short_name(folder):
    assert kohya("train_network.py").datasets[0]["id"].value == "rex"


# commands -------------------------------------------------------------------------------------------------------------


def test_a_batch_file_keeps_its_backslashes_and_its_variables(folder):
    lines = ["@echo off", "rem don't", "set MODEL=C:\\my models\\sd.safetensors", 'set "OUT=C:\\out dir"']
    lines += ['accelerate launch --num_processes=2 "C:\\my tools\\train_network.py" ^', "  --a=%MODEL% ^ "]
    lines += ['  --b="%OUT%" --c C:\\train\\dog --d=1e-4 > log.txt']
    pathlib.Path("train.bat").write_bytes("\r\n".join(lines).encode())
    source = read(pathlib.Path("train.bat"))
    assert source.script == "train_network.py" and source.launcher == {"num_processes": 2}
    expected = {"a": "C:\\my models\\sd.safetensors", "b": "C:\\out dir", "c": "C:\\train\\dog", "d": 1e-4}
    assert source.options == expected


def test_a_shell_file_is_read_to_its_end_as_it_is_meant(folder):
    lines = ["# don't", 'cd x && accelerate launch "$ROOT/train_network.py" \\ ', "  --a=m#1 --b '|' \\"]
    lines += ["# --old=2 \\", "  --c '/b # c' # note", "  --d 42 2>&1 | tee log.txt"]
    pathlib.Path("train.sh").write_text("\n".join(lines))
    source = read(pathlib.Path("train.sh"))
    assert source.script == "train_network.py"
    assert source.options == {"a": "m#1", "b": "|", "c": "/b # c", "d": 42}


# rates and shifts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "class_path", "rate"),
    [
        ("prodigy", "torch.optim.AdamW", 1e-4),  # whose own rate is 1, at which AdamW would diverge
        ("DAdaptAdam", "torch.optim.AdamW", 1e-4),
        ("Lion", "bitsandbytes.optim.Lion", 1.0),
    ],
)
def test_an_optimizer_that_finds_its_own_rate_does_not_leave_it_to_adamw(folder, name, class_path, rate):
    draft = kohya("train_network.py", f"--optimizer_type={name} --learning_rate=1.0")
    assert value(draft, "model.optimizer.class_path") == class_path
    assert value(draft, "model.optimizer.init_args.lr") == rate


@pytest.mark.parametrize(
    ("script", "options", "shift"),
    [
        ("flux_train_network.py", "", 3.0),
        ("flux_train_network.py", "--timestep_sampling=flux_shift", None),
        ("flux_train_network.py", "--timestep_sampling=shift --discrete_flow_shift=2.5", 2.5),
        ("sd3_train_network.py", "", 1.0),
        ("lumina_train_network.py", "--timestep_sampling=shift", 6.0),
    ],
)
def test_the_shift_of_kohya_is_its_own_where_nothing_says_it(folder, script, options, shift):
    assert value(kohya(script, options), "model.family.init_args.shift") == shift


@pytest.mark.parametrize(
    ("script", "said"), [("train_dreambooth_lora_flux.py", True), ("train_dreambooth_lora_sd3.py", False)]
)
def test_a_script_that_trains_without_its_samplers_shift_is_told(folder, script, said):
    options = "--pretrained_model_name_or_path=m --instance_data_dir=a --instance_prompt=b"
    pathlib.Path("train.sh").write_text(f"accelerate launch {script} {options}")
    assert any("without the shift" in note for note in imported(pathlib.Path("train.sh")).notes) == said


# sample_prompts -------------------------------------------------------------------------------------------------------

TOML = """[prompt]
width = 640
height = 512
[[prompt.subset]]
prompt = "a dog"
seed = 3
"""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a dog --w 640 --h 512 --d 3\n"),
        ("p.toml", TOML),
        ("p.json", '[{"prompt": "a dog", "width": 640, "height": 512, "seed": 3}]'),
    ],
)
def test_sample_prompts_are_read_in_each_of_their_forms(folder, name, content):
    pathlib.Path(name).write_text(content)
    preview = kohya("train_network.py", f"--sample_prompts={name}").callbacks["ValidationPreview"]
    found = {option: preview[option].value for option in ("prompts", "sizes", "seeds")}
    assert found == {"prompts": ["a dog"], "sizes": ["640x512"], "seeds": [3]}


def test_options_of_a_prompt_that_do_not_fit_are_told_and_never_part_of_it(folder):
    pathlib.Path("p.txt").write_text("a dog --s many --w wide --g 2 --ss euler --fs 3\n")
    draft = kohya("train_network.py", "--sample_prompts=p.txt")
    assert draft.callbacks["ValidationPreview"]["prompts"].value == ["a dog"]
    told = " ".join(draft.refused)
    assert all(f"sample_prompts {name}" in told for name in ("sample_steps", "width", "sample_sampler", "--fs"))
    assert "sizes" not in draft.callbacks["ValidationPreview"] and text_of(draft, "")


@pytest.mark.parametrize(
    ("name", "content"), [("p.json", "3"), ("p.toml", "a = 1"), ("p.toml", "prompt = 'x'"), ("p.json", "[")]
)
def test_broken_sample_prompts_are_named(folder, name, content, capsys):
    pathlib.Path(name).write_text(content)
    kohya("train_network.py")
    with pathlib.Path("train.sh").open("a") as file:
        file.write(f" --sample_prompts={name}")
    assert command("import", "train.sh") == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    "secret",
    [
        "hf_abcdefghijkl",
        "https://discord.com/api/webhooks/1/abcdefgh",
        "https://x.org/hook?t=abcdefgh",
        "ghp_abcdefghi",
    ],
)
def test_a_secret_under_a_name_that_says_nothing_is_not_shown(secret):
    assert "abcdefgh" not in shown("extra", secret) and "abcdefgh" not in shown("extra", [secret])
