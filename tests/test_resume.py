"""A resumed run is the uninterrupted run, bit for bit; and what may differ on resume is compared, not guessed."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

from dreamlit.errors import CheckpointError
from dreamlit.resume import compare_configs
from dreamlit.run_folder import refuse_to_overwrite
from recorder import rows
from runs import assert_same_state, base_config, checkpoint, fit, merged, regularisation, run, write_photos

ADAPTERS = {
    "LoRA": {"class_path": "LoRA", "init_args": {"rank": 4, "dropout": 0.1}},
    "LoKr": {"class_path": "LyCORIS", "init_args": {"algo": "lokr", "rank": 4, "factor": 4}},
    "LoHa": {"class_path": "LyCORIS", "init_args": {"algo": "loha", "rank": 2}},
    "Full": {"class_path": "Full"},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("subject"), [(64, 64)] * 3 + [(128, 64)] * 2)


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> pathlib.Path:
    return write_photos(tmp_path_factory.mktemp("class"), [(64, 64)] * 2 + [(128, 64)], seed=1)


def configured(tmp_path, tiny, photos, adapter, regular, name, **changes):
    config = base_config(tmp_path / name, tiny, photos)
    config["model"]["adapter"] = ADAPTERS[adapter]
    if regular:
        config["data"]["datasets"].append(regularisation(regular))
    record = {"class_path": "recorder.Recorder", "init_args": {"path": str(tmp_path / f"{name}.jsonl")}}
    fixed = {
        "trainer.max_steps": 20,
        "trainer.accumulate_grad_batches": 3,
        "trainer.callbacks": [record],
        "checkpoint.every_n_steps": 10,
        "data.batch_size": 1,
        "model.lr_scheduler": "cosine",
    }
    return merged(config, {**fixed, **changes})


def assert_same_run(a: pathlib.Path, b: pathlib.Path, step: int) -> None:
    one, two = checkpoint(a, step), checkpoint(b, step)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "DreamBoothData"):
        assert_same_state(one[part], two[part], part)


@pytest.mark.parametrize("with_regularisation", [False, True], ids=["alone", "regularised"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_ten_steps_and_a_resume_are_twenty_steps(tmp_path, tiny_model, photos, others, adapter, with_regularisation):
    regular = others if with_regularisation else None
    whole = configured(tmp_path, tiny_model, photos, adapter, regular, "whole")
    fit(whole)
    # The interrupted run has workers, the whole one none: they must not matter either. cosine needs the same horizon.
    part = configured(tmp_path, tiny_model, photos, adapter, regular, "part", **{"data.num_workers": 2})
    root = fit(part)
    assert_same_run(tmp_path / "whole", root, 20)
    (root / "checkpoints" / "step-000020.ckpt").unlink()
    first = rows(tmp_path / "part.jsonl")
    fit(part, "--ckpt_path", "last")
    assert_same_run(tmp_path / "whole", root, 20)
    full, both = rows(tmp_path / "whole.jsonl"), rows(tmp_path / "part.jsonl")
    assert len(full) == 60
    assert first == full
    assert both[60:] == full[30:]


def test_a_resume_takes_more_steps_and_a_new_learning_rate(tmp_path, tiny_model, photos):
    config = configured(tmp_path, tiny_model, photos, "LoRA", None, "run", **{"model.lr_scheduler": "constant"})
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}}
    root = fit(merged(config, {"trainer.max_steps": 10, "model.optimizer": optimizer}))
    moments = checkpoint(root, 10)["optimizer_states"][0]["state"]
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-5}}
    fit(merged(config, {"trainer.max_steps": 13, "model.optimizer": optimizer}), "--ckpt_path", "last")
    after = checkpoint(root, 13)
    assert after["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-5
    assert after["global_step"] == 13
    assert float(after["optimizer_states"][0]["state"][0]["step"]) == float(moments[0]["step"]) + 3


def test_a_resume_takes_another_optimizer_option_that_is_allowed(tmp_path, tiny_model, photos):
    config = configured(tmp_path, tiny_model, photos, "LoRA", None, "run", **{"trainer.max_steps": 2})
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"weight_decay": 0.01}}
    root = fit(merged(config, {"model.optimizer": optimizer}))
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"weight_decay": 0.5}}
    allowed = "--allow_changes+=model.optimizer.init_args.weight_decay"
    fit(merged(config, {"trainer.max_steps": 3, "model.optimizer": optimizer}), "--ckpt_path", "last", allowed)
    saved = checkpoint(root, 3)["optimizer_states"][0]
    assert saved["param_groups"][0]["weight_decay"] == 0.5
    assert float(saved["state"][0]["step"]) == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.adapter.init_args.rank", 8),
        ("model.objective.weighting", "min_snr"),
        ("trainer.accumulate_grad_batches", 1),
        ("data.batch_size", 2),
        ("seed_everything", 8),
    ],
)
def test_a_resume_with_another_setting_is_refused_and_named(tmp_path, tiny_model, photos, capsys, key, value):
    config = configured(tmp_path, tiny_model, photos, "LoRA", None, "run", **{"trainer.max_steps": 2})
    fit(config)
    assert run("fit", merged(config, {"trainer.max_steps": 4, key: value}), "--ckpt_path", "last") == 2
    report = capsys.readouterr().err
    assert key in report
    assert "--allow_changes+=" in report


def test_a_resume_with_another_rollout_is_refused_and_one_with_another_onlooker_is_not(
    tmp_path, tiny_model, photos, capsys
):
    def with_rollout(most, *more):
        rollout = {"class_path": "ScheduledSampling", "init_args": {"max_step_offset": most, "probability": 1.0}}
        return {"trainer.callbacks": [rollout, *more]}

    config = configured(tmp_path, tiny_model, photos, "LoRA", None, "run", **{"trainer.max_steps": 1})
    fit(merged(config, with_rollout(2)))
    longer = merged(config, {"trainer.max_steps": 2})
    assert run("fit", merged(longer, with_rollout(3)), "--ckpt_path", "last") == 2
    assert "ScheduledSampling.max_step_offset: 2 in the checkpoint, 3 now" in capsys.readouterr().err
    assert run("fit", longer, "--ckpt_path", "last") == 2
    assert "--allow_changes+=ScheduledSampling.probability" in capsys.readouterr().err
    fit(merged(longer, with_rollout(2, {"class_path": "EventLog"})), "--ckpt_path", "last")


ROLLOUT = "scheduled_sampling.ScheduledSampling"


@pytest.mark.parametrize(
    ("before", "now", "key"),
    [
        ([("PriorControl", {"target": 0.1})], [("PriorControl", {"target": 0.2})], "PriorControl.target"),
        ([("PriorControl", {"target": 0.1})], [], "PriorControl.target"),
        ([], [("PriorControl", {"target": 0.1})], "PriorControl.target"),
        ([("EMA", {"decay": 0.9})], [("EMA", {"decay": 0.99})], "EMA.decay"),
        ([("EMA", {})], [("EMA", {"update_every_n_steps": 2})], "EMA.update_every_n_steps"),
        ([("EMA", {"decay": 0.9, "device": "cpu"})], [("EMA", {"decay": 0.9, "device": "model"})], None),
        ([("EMA", {"decay": 0.9})], [], None),
        ([], [("EMA", {"decay": 0.9})], None),  # it starts from the weights of the checkpoint, with a warning
        ([("LivePage", {"port": 1})], [("EventLog", {})], None),
        # what a newer version brought is no change, unless it is used
        ([(ROLLOUT, {"max_step_offset": 2})], [(ROLLOUT, {"max_step_offset": 2, "anti_drift": 0.0})], None),
        (
            [(ROLLOUT, {"max_step_offset": 2})],
            [(ROLLOUT, {"max_step_offset": 2, "anti_drift": 1.0})],
            "ScheduledSampling.anti_drift",
        ),
    ],
)
def test_callbacks_that_decide_what_a_run_is_are_compared_by_their_options(tmp_path, monkeypatch, before, now, key):
    def config(callbacks):
        named = [{"class_path": f"dreamlit.callbacks.{name}", "init_args": options} for name, options in callbacks]
        return {"trainer": {"callbacks": named, "default_root_dir": str(tmp_path)}}

    made = {"global_step": 1, "dreamlit": {"config": yaml.safe_dump(config(before))}}
    monkeypatch.setattr("dreamlit.resume.read_checkpoint", lambda path: made)
    if key:
        with pytest.raises(CheckpointError, match=f"allow_changes.*{key}"):
            compare_configs(tmp_path / "step-000001.ckpt", config(now), [])
    compare_configs(tmp_path / "step-000001.ckpt", config(now), [key] if key else [])


def test_a_changed_photo_is_refused_until_it_is_allowed(tmp_path, tiny_model, capsys):
    folder = write_photos(tmp_path / "photos", [(64, 64)] * 2)
    config = configured(tmp_path, tiny_model, folder, "LoRA", None, "run", **{"trainer.max_steps": 2})
    fit(config)
    write_photos(folder, [(64, 64)] * 2, seed=5)
    more = merged(config, {"trainer.max_steps": 4})
    assert run("fit", more, "--ckpt_path", "last") == 2
    assert "--allow_changes+=data" in capsys.readouterr().err
    root = fit(more, "--ckpt_path", "last", "--allow_changes+=data")
    assert checkpoint(root, 4)["global_step"] == 4


def test_another_base_model_is_refused(tmp_path, tiny_model, tiny_other_model, photos, capsys):
    config = configured(tmp_path, tiny_model, photos, "LoRA", None, "run", **{"trainer.max_steps": 2})
    fit(config)
    other = merged(config, {"trainer.max_steps": 4, "model.family.init_args.path": str(tiny_other_model)})
    assert run("fit", other, "--ckpt_path", "last", "--allow_changes+=model.family") == 2
    assert "another base model" in capsys.readouterr().err


def test_a_model_with_other_files_beside_the_denoiser_is_refused(tmp_path, tiny_model, photos, capsys):
    """They decide the latents, the embeddings and the noise, that is what the run is trained toward."""
    model = pathlib.Path(shutil.copytree(tiny_model, tmp_path / "model"))
    root = fit(configured(tmp_path, model, photos, "LoRA", None, "run", **{"trainer.max_steps": 1}))
    more = configured(tmp_path, model, photos, "LoRA", None, "run", **{"trainer.max_steps": 2})
    schedule = model / "scheduler" / "scheduler_config.json"
    for path, named in (
        (model / "vae" / "diffusion_pytorch_model.safetensors", "checkpoint: autoencoder"),
        (model / "text_encoder" / "model.safetensors", "checkpoint: text encoders"),
        (schedule, "checkpoint: scheduler configuration"),
    ):
        whole = path.read_bytes()
        if path == schedule:
            path.write_text(json.dumps({**json.loads(whole), "prediction_type": "v_prediction"}))
        else:
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert run("fit", more, "--ckpt_path", "last") == 2
        said = capsys.readouterr().err
        assert named in said and "; " not in said and "--allow_changes+=base" in said
        if path != schedule:
            path.write_bytes(whole)
    fit(more, "--ckpt_path", "last", "--allow_changes+=base")
    older = checkpoint(root, 2)
    del older["dreamlit"]["beside"]
    torch.save(older, root / "checkpoints" / "step-000002.ckpt")
    schedule.write_bytes(whole)
    fit(merged(more, {"trainer.max_steps": 3}), "--ckpt_path", "last")


def test_a_new_run_does_not_start_on_top_of_an_older_one(tmp_path, tiny_model, photos, capsys):
    config = configured(tmp_path, tiny_model, photos, "LoRA", None, "run", **{"trainer.max_steps": 2})
    root = fit(config)
    before = checkpoint(root, 2)
    assert run("fit", config) == 2
    assert "--ckpt_path last" in capsys.readouterr().err
    assert_same_state(before["state_dict"], checkpoint(root, 2)["state_dict"])


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, tiny_model, photos, capsys):
    config = configured(tmp_path, tiny_model, photos, "LoRA", None, "run", **{"trainer.max_steps": 4})
    root = fit(merged(config, {"checkpoint.every_n_steps": 2}))
    newest = root / "checkpoints" / "step-000004.ckpt"
    newest.write_bytes(newest.read_bytes()[:1000])
    fit(merged(config, {"checkpoint.every_n_steps": 2}), "--ckpt_path", "last")
    assert "passed over" in capsys.readouterr().err
    assert checkpoint(root, 4)["global_step"] == 4


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("last", "no complete checkpoint"), ("best", "checkpoint.monitor"), ("x.ckpt", "no checkpoint x")],
)
def test_a_checkpoint_that_is_not_there_is_an_error_that_says_what_to_do(
    tmp_path, tiny_model, photos, capsys, asked, expected
):
    config = configured(tmp_path, tiny_model, photos, "LoRA", None, "run")
    assert run("fit", config, "--ckpt_path", asked) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_checkpoint_is_small_plain_and_whole(tmp_path, tiny_model, photos, adapter):
    config = configured(tmp_path, tiny_model, photos, adapter, None, "run", **{"trainer.max_steps": 2})
    root = fit(config)
    path = root / "checkpoints" / "step-000002.ckpt"
    content = torch.load(path, weights_only=True)
    trained = sum(t.numel() * t.element_size() for t in content["state_dict"].values())
    assert path.stat().st_size <= 4 * trained + 2**20
    assert all(t.dtype == torch.float32 for t in content["state_dict"].values())
    assert not list((root / "checkpoints").glob("*.partial"))
    assert not list(root.glob(".preflight-*"))


def test_a_full_disk_is_named_and_leaves_no_half_of_a_checkpoint(tmp_path):
    script = (
        "import pathlib, resource, sys, torch\n"
        "from dreamlit.errors import CheckpointError\n"
        "from dreamlit.trainer import AtomicCheckpointIO\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))\n"
        "try:\n"
        "    weights, path = {'weights': torch.zeros(100000)}, pathlib.Path(sys.argv[1]) / 'a.ckpt'\n"
        "    AtomicCheckpointIO().save_checkpoint(weights, path)\n"
        "except CheckpointError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert "could not be written: [Errno 27]" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_another_optimizer_class_is_refused_even_where_changes_are_allowed(tmp_path, tiny_model, photos, capsys):
    config = configured(tmp_path, tiny_model, photos, "LoRA", None, "run", **{"trainer.max_steps": 2})
    fit(config)
    other = merged(config, {"trainer.max_steps": 4, "model.optimizer": {"class_path": "torch.optim.SGD"}})
    assert run("fit", other, "--ckpt_path", "last", "--allow_changes+=model.optimizer") == 2
    assert "model.init_from" in capsys.readouterr().err


def test_a_run_that_diverged_stops_and_keeps_its_last_good_checkpoint(tmp_path, tiny_model, photos, capsys):
    config = configured(tmp_path, tiny_model, photos, "LoRA", None, "run", **{"trainer.max_steps": 2})
    root = fit(config)
    ruin = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e37}}
    assert run("fit", merged(config, {"trainer.max_steps": 8, "model.optimizer": ruin}), "--ckpt_path", "last") == 2
    assert "not finite" in capsys.readouterr().err
    assert [path.name for path in (root / "checkpoints").iterdir()] == ["step-000002.ckpt"]


def test_a_stop_waits_for_the_end_of_the_optimizer_step(tmp_path, tiny_model, photos):
    options = {"trainer.max_steps": 5, "model.lr_scheduler": "constant"}
    whole = configured(tmp_path, tiny_model, photos, "LoRA", None, "whole", **options)
    fit(whole)
    part = configured(tmp_path, tiny_model, photos, "LoRA", None, "part", **options)
    part["trainer"]["callbacks"].append({"class_path": "recorder.StopAfter", "init_args": {"batches": 8}})
    root = fit(part)
    assert [path.name for path in (root / "checkpoints").iterdir()] == ["step-000003.ckpt"]
    del part["trainer"]["callbacks"][1]
    fit(part, "--ckpt_path", "last")
    assert_same_run(tmp_path / "whole", root, 5)
    assert rows(tmp_path / "part.jsonl") == rows(tmp_path / "whole.jsonl")


def test_a_run_is_not_branched_in_its_own_folder(tmp_path, tiny_model, photos, capsys):
    options = {"trainer.max_steps": 3, "checkpoint.every_n_steps": 1}
    config = configured(tmp_path, tiny_model, photos, "LoRA", None, "run", **options)
    root = fit(config)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    earlier = str(root / "checkpoints" / "step-000001.ckpt")
    assert run("fit", config, "--ckpt_path", earlier) == 2
    assert "step-000003.ckpt" in (report := capsys.readouterr().err) and "--trainer.default_root_dir" in report
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert run("fit", config, "--ckpt_path", earlier, "--trainer.default_root_dir", str(tmp_path / "branch")) == 0
    assert_same_run(root, tmp_path / "branch", 3)


def test_a_damaged_later_checkpoint_does_not_push_out_a_new_one(tmp_path, tiny_model, photos):
    config = configured(tmp_path, tiny_model, photos, "LoRA", None, "run", **{"trainer.max_steps": 4})
    root = fit(merged(config, {"checkpoint.every_n_steps": 2}))
    (root / "checkpoints" / "step-000004.ckpt").write_bytes(b"damaged")
    fit(merged(config, {"trainer.max_steps": 3, "checkpoint.keep": 1}), "--ckpt_path", "last")
    assert checkpoint(root, 3)["global_step"] == 3


@pytest.mark.parametrize("name", ["best.ckpt", "step-000002.ckpt"])
def test_a_new_run_keeps_off_every_checkpoint_of_an_older_one(tmp_path, name):
    refuse_to_overwrite(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name).touch()
    with pytest.raises(CheckpointError, match=name):
        refuse_to_overwrite(tmp_path)


@pytest.mark.parametrize("step", [4, 5])
def test_a_run_of_epochs_resumes_where_it_stood(tmp_path, tiny_model, photos, step):
    options = {"trainer.max_steps": -1, "trainer.max_epochs": 3, "trainer.accumulate_grad_batches": 1}
    options |= {"checkpoint.every_n_steps": step, "checkpoint.keep": 0}
    config = configured(tmp_path, tiny_model, photos, "LoRA", None, "run", **options)
    root = fit(config)
    whole, seen = checkpoint(root, 15), rows(tmp_path / "run.jsonl")
    assert len(seen) == 15
    for later in sorted((root / "checkpoints").iterdir())[1:]:
        later.unlink()
    fit(config, "--ckpt_path", "last")
    assert rows(tmp_path / "run.jsonl")[15:] == seen[step:]
    assert_same_state(checkpoint(root, 15)["state_dict"], whole["state_dict"])
