"""`dreamlit doctor`: the machine, and all faults of a configuration in one report."""

import types

import pytest
import torch

from dreamlit.doctor import machine
from dreamlit.doctor import run as doctor_run
from dreamlit.doctor.examined import NOT_HERE
from dreamlit.doctor.findings import Findings, in_units
from dreamlit.memory.estimate import Estimate, Phase
from runs import base_config, command, merged, write_config, write_photos
from tests.tiny import tiny_sd


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("doctor")
    photos = write_photos(root / "photos", [(64, 64)] * 2)
    made = base_config(root / "run", tiny_sd(root / "sd"), photos)
    return merged(made, {"model.family.class_path": "SD"})


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The report on a run that works: exit code, what was printed."""
    path = write_config(tmp_path_factory.mktemp("whole") / "run.yaml", config)
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *words, **options: lines.append(" ".join(map(str, words))))
        code = command("doctor", "--config", str(path))
    return code, "\n".join(lines)


def test_a_run_that_works_has_no_problem_and_an_estimate(whole):
    code, shown = whole
    assert code == 0, shown
    assert "no problems found" in shown
    for what in ("caching the latents", "caching the captions", "training", "the largest", "cache of 2 images"):
        assert what in shown


def test_nothing_is_written_into_the_folder_of_the_run(whole, config):
    import pathlib

    assert not pathlib.Path(config["trainer"]["default_root_dir"]).exists()


def test_all_faults_of_a_configuration_are_told_at_once(config, tmp_path, capsys):
    broken = merged(
        config,
        {
            "model.family.init_args.path": str(tmp_path / "no-model"),
            "model.objective.unmasked_weight": 0.5,
            "trainer.overfit_batches": 1,
            "data.datasets": [{**config["data"]["datasets"][0], "instance_data_dir": str(tmp_path / "no-photos")}],
        },
    )
    assert command("doctor", "--config", str(write_config(tmp_path / "run.yaml", broken))) == 1
    shown = capsys.readouterr().out
    for what in ("no-model", "unmasked_weight", "overfit_batches", "no-photos"):
        assert what in shown, shown
    assert "no estimate of memory" in shown


@pytest.mark.parametrize(("memory", "told"), [(11, "problem"), (12.5, "note"), (24, "nothing")])
def test_a_device_that_is_too_small_is_a_problem_and_a_tight_one_a_note(memory, told):
    phases = Phase("caching", (("encoder", 10 * 2**30),)), Phase("training", (("all", 12 * 2**30),))
    found = Findings()
    doctor_run.report_memory(Estimate(phases, 0, 0, 0, 0), "cuda", found, int(memory * 2**30))
    assert [bool(found.problems), bool(found.notes)] == [told == "problem", told == "note"]
    assert all("training needs about 12.0 GB" in line for line in (*found.problems, *found.notes))


def test_class_images_that_are_to_be_drawn_are_no_problem_and_cost_memory_first(config, tmp_path, capsys):
    changed = merged(config, {"data.class_images": {"prompt": "a dog", "count": 3, "steps": 2}})
    code = command("doctor", "--config", str(write_config(tmp_path / "run.yaml", changed)))
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert "note: class images: 3 of 3 are to be drawn" in shown and "drawing class images" in shown
    assert not list(tmp_path.rglob("class-images*"))


def test_devices_that_are_not_here_share_the_batch(monkeypatch):
    run = types.SimpleNamespace(faults=[f"{NOT_HERE}: 4 GPUs"], config_init=None, trainer=None)
    for asked, ranks in (({"devices": 4, "num_nodes": 2}, 8), ({"devices": [0, 1]}, 2), ({"devices": "auto"}, 1)):
        run._get = lambda config, name, asked=asked: asked
        assert doctor_run.ranks_of(run) == ranks  # pyright: ignore[reportArgumentType]


def test_a_hub_model_that_is_not_here_is_said_plainly(config, tmp_path, capsys):
    changed = merged(config, {"model.family.init_args.path": "nobody/nothing"})
    command("doctor", "--config", str(write_config(tmp_path / "run.yaml", changed)))
    shown = capsys.readouterr().out
    assert "nobody/nothing is no folder here, nor in this machine's hub cache" in shown
    assert "there is no estimate of its memory" in shown


@pytest.mark.parametrize("text", ["trainr: {max_steps: 3}", "model: [", ""])
def test_a_configuration_that_cannot_be_read_is_a_problem_not_a_traceback(text, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert command("doctor", "--config", str(path)) == 1
    assert "cannot be read" in capsys.readouterr().out


def test_a_missing_configuration_is_named(tmp_path, capsys):
    assert command("doctor", "--config", str(tmp_path / "none.yaml")) == 1
    assert "none.yaml" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--memory", "24"), ("--memory", "-1", "--config", "x"), ("--frob",)])
def test_options_without_effect_are_refused(words, capsys):
    assert command("doctor", *words) == 2
    assert capsys.readouterr().err


def test_a_version_outside_its_range_is_a_problem():
    found = Findings()
    machine.examine_requirement("torch>=99", found)
    machine.examine_requirement("no-such-package-here>=1", found)
    machine.examine_requirement("torch>=1", found)
    machine.examine_requirement("no-such-package-here; extra == 'kolors'", found)
    assert len(found.problems) == 2
    assert "torch is" in found.problems[0] and "not installed" in found.problems[1]


def test_a_card_that_torch_cannot_use_is_a_problem(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    found = Findings()
    machine.devices(found)
    assert "torch cannot use it" in found.problems[0]


def test_threads_and_files_are_noted(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "999")
    monkeypatch.setattr(machine, "open_files", lambda: 64)
    monkeypatch.setenv("HF_HOME", "/no/such/place")
    found = Findings()
    machine.traps(found)
    assert [word for word in ("OMP_NUM_THREADS", "64 files", "HF_HOME") if word in " ".join(found.notes)] == [
        "OMP_NUM_THREADS",
        "64 files",
        "HF_HOME",
    ]


def test_workers_need_shared_memory_and_links_must_lead_somewhere(monkeypatch, tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    spec = types.SimpleNamespace(instance_data_dir=str(tmp_path))
    examined = types.SimpleNamespace(datamodule=types.SimpleNamespace(num_workers=2, specs=[spec]))
    monkeypatch.setattr(doctor_run, "shared_memory", lambda: 1024**2)
    found = Findings()
    doctor_run.loader_traps(examined, found)  # pyright: ignore[reportArgumentType]
    assert "/dev/shm" in found.problems[0] and "a.png" in found.problems[1]


def test_a_full_disk_is_a_problem(monkeypatch, tmp_path):
    usage = types.SimpleNamespace(free=10)
    monkeypatch.setattr(doctor_run.shutil, "disk_usage", lambda place: usage)
    found = Findings()
    doctor_run.report_room("cache", 1000, tmp_path / "not" / "there", found)
    assert found.problems == [f"cache needs 1000 B in {tmp_path / 'not' / 'there'}, where 10 B is free"]


def test_units_are_those_of_cards():
    assert [in_units(size) for size in (10, 2**20, 24 * 2**30)] == ["10 B", "1 MB", "24.0 GB"]


def test_missing_devices_are_a_problem_beside_the_others(config, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    changed = merged(config, {"trainer.accelerator": "gpu", "trainer.strategy": "fsdp", "trainer.overfit_batches": 1})
    changed = merged(changed, {"model.family.init_args.path": str(tmp_path / "no-model")})
    assert command("doctor", "--config", str(write_config(tmp_path / "run.yaml", changed))) == 1
    shown = capsys.readouterr().out
    for what in ("accelerator 'gpu'", "'fsdp'", "overfit_batches", "no-model"):
        assert what in shown, shown
