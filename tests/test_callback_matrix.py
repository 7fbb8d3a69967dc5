"""All callbacks with each other and each kind of adapter: they train and resume, and who looks changes nothing."""

import csv
import itertools
import json

import pytest

from hook_server import SECRET
from runs import assert_same_state, base_config, checkpoint, fit, merged, regularisation, write_photos
from tiny_encoders import make_dino

STEPS, HALF = 6, 3
ADAPTERS = {
    "LoRA": {"rank": 4, "dropout": 0.2},
    "LyCORIS": {"algo": "lokr", "rank": 4, "factor": 4},
    "Full": {},
}
SWITCHES = ("average", "rollout", "steering", "evaluation", "previews", "messages", "page", "report")
"""What belongs together is one switch: Scores and BestOf need previews."""
CHANGES = ("rollout", "steering")
"""The only ones whose weights are others."""
PICTURES = {"seeds": [3], "steps": 1, "guidance_scale": 1.0}


def callbacks_of(on, url, photos, encoder):
    named = {
        "average": [("EMA", {"decay": 0.5, "use_for": ["validation", "preview", "report", "export"]})],
        "rollout": [("ScheduledSampling", {"max_step_offset": 2, "probability": 0.5, "ramp_steps": 4})],
        "steering": [("PriorControl", {"target": 0.5, "every_n_steps": 2})],
        "evaluation": [("StableEvaluation", {"every_n_steps": 2})],
        "previews": [
            ("BestOf", {}),
            ("Scores", {"photos": photos, "dino": encoder}),
            ("ValidationPreview", {
                **PICTURES, "prompts": ["a photo of {subject}", "a photo of a dog"], "subject": "sks dog",
                "sizes": ["64x64"], "every_n_steps": 3, "validation_preview": True, "validation_preview_steps": 1,
            }),
        ],
        "messages": [("Webhook", {"kind": "raw", "url": url, "secret_env": "HOOK_SECRET"}), ("EventLog", {})],
        "page": [("LivePage", {})],
        "report": [("RunReport", {
            **PICTURES, "prompts": ["sks dog"], "photos": photos, "encoder": encoder, "width": 64, "height": 64,
        })],
    }  # fmt: skip
    return [
        {"class_path": name, "init_args": options} for switch in on for name, options in named[switch]
    ]  # fmt: skip


def covering_array():
    """6 rows in which any two switches take all four settings: all on, and each switch in two of five rows more."""
    yield SWITCHES
    pairs = list(itertools.combinations(range(5), 2))[: len(SWITCHES)]  # no two switches share both rows
    for row in range(5):
        yield tuple(name for name, pair in zip(SWITCHES, pairs, strict=True) if row in pair)


RUNS = [(adapter, SWITCHES) for adapter in ADAPTERS] + [
    (adapter, on) for adapter, on in zip(itertools.cycle(ADAPTERS), list(covering_array())[1:], strict=False)
]


def test_every_pair_meets_with_every_adapter_and_apart():
    for one, two in itertools.combinations(SWITCHES, 2):
        both = {adapter for adapter, on in RUNS if one in on and two in on}
        assert both == set(ADAPTERS)
        assert {(one in on, two in on) for _, on in RUNS} == set(itertools.product((True, False), repeat=2))


@pytest.fixture(autouse=True)
def _secret(monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", SECRET)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    home = tmp_path_factory.mktemp("parts")
    for number, name in enumerate(("subject", "class", "held")):
        write_photos(home / name, [(64, 64)] * 3, seed=number)
    make_dino("Dinov2", home / "dino")
    return home


def configured(root, model, parts, url, adapter, on, **changes):
    """A run with class images, dropout of captions and accumulation, so that there is state to lose."""
    config = base_config(root, model, parts / "subject")
    config["model"]["family"]["class_path"] = "SD"
    config["model"]["adapter"] = {"class_path": adapter, "init_args": ADAPTERS[adapter]}
    held = {**config["data"]["datasets"][0], "id": "held", "instance_data_dir": str(parts / "held")}
    config["data"]["datasets"][0]["caption_dropout"] = 0.3
    config["data"]["datasets"] += [regularisation(parts / "class"), {**held, "dataset_type": "eval"}]
    config["data"] |= {"cache_dir": str(parts / "cache"), "eval_timesteps": 4}
    config["trainer"] |= {"max_steps": STEPS, "accumulate_grad_batches": 2}
    config["trainer"]["callbacks"] = callbacks_of(on, url, str(parts / "subject"), str(parts / "dino"))
    if "evaluation" not in on:
        config["trainer"]["limit_val_batches"] = 0
    return merged(config, {"checkpoint.every_n_steps": HALF, **changes})


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_sd_model, parts):
    """The checkpoint of a run without anything that only looks, by adapter and what is on; each is run once."""
    home, made = tmp_path_factory.mktemp("plain"), {}

    def of(adapter, on):
        on = tuple(name for name in on if name in CHANGES)
        if (adapter, on) not in made:
            root = home / f"{adapter}-{'-'.join(on)}" / "run"
            made[adapter, on] = fit(configured(root, tiny_sd_model, parts, "", adapter, on))
        return made[adapter, on]

    return of


def weights(root, step):
    saved = checkpoint(root, step)
    return {key: saved[key] for key in ("state_dict", "optimizer_states", "lr_schedulers")}


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "on"), RUNS, ids=[f"{adapter}-{'+'.join(on)}" for adapter, on in RUNS])
def test_callbacks_work_beside_each_other_and_who_looks_changes_nothing(
    tmp_path, tiny_sd_model, parts, plain, server, adapter, on
):
    root = fit(configured(tmp_path / "run", tiny_sd_model, parts, server.url, adapter, on))
    assert_same_state(weights(root, STEPS), weights(plain(adapter, on), STEPS))
    endings = ("", "-ema") if "average" in on else ("",)
    for ending in endings:
        assert list(root.glob(f"run{ending}*")), "nothing was exported"
    wrote = {
        "evaluation": "evaluation.jsonl",
        "previews": "previews/step-000006/grid.png",
        "messages": "events.jsonl",
        "page": "events.jsonl",
        "report": "report/before-after.png",
    }
    for switch, file in wrote.items():
        if switch in on:
            assert (root / file).is_file(), file
    if "previews" in on:
        assert (root / "best-of" / "front.json").is_file()
        models = json.loads((root / "scores.jsonl").read_text().splitlines()[-1])["models"]
        assert ("ema" in models) == ("average" in on)
    if "evaluation" in on:
        last = json.loads((root / "evaluation.jsonl").read_text().splitlines()[-1])
        assert last["step"] == STEPS and ("ema" in last) == ("average" in on)
    if "messages" in on:
        assert server.requests


def losses(*folders):
    found = {}
    for folder in folders:
        for row in csv.DictReader((folder / "metrics.csv").open()):
            if row.get("loss"):
                found[int(row["step"])] = row["loss"]
    return found


def test_a_resume_with_all_callbacks_is_the_run_without_a_break(tmp_path, tiny_sd_model, parts, server):
    whole = configured(tmp_path / "whole" / "run", tiny_sd_model, parts, server.url, "LoRA", SWITCHES)
    root = fit(whole)
    part = configured(tmp_path / "part" / "run", tiny_sd_model, parts, server.url, "LoRA", SWITCHES)
    fit(merged(part, {"trainer.max_steps": HALF}))
    again = fit(part, "--ckpt_path", "last")
    one, two = checkpoint(root, STEPS), checkpoint(again, STEPS)
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same_state(one[key], two[key], key)
    for callback in ("EMA", "PriorControl"):
        assert_same_state(one["callbacks"][callback], two["callbacks"][callback], callback)
    assert losses(root / "logs") == losses(again / "logs", again / "logs-2")
    for name in ("run.safetensors", "run-ema.safetensors"):
        assert (root / name).read_bytes() == (again / name).read_bytes()
    for file, key in (("scores.jsonl", "models"), ("evaluation.jsonl", "loss/val")):
        last = [json.loads((where / file).read_text().splitlines()[-1]) for where in (root, again)]
        assert last[0] == last[1], key
    picture = "previews/step-000006/ema/000-00.png"
    assert (root / picture).read_bytes() == (again / picture).read_bytes()
