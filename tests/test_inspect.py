"""`inspect`: format, algorithm, ranks, alphas and matched modules; anything unmatched fails."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter_cases import CASES, Named, shake, unet
from dreamlit import formats
from dreamlit.errors import CheckpointError
from dreamlit.export import export
from dreamlit.inspection import inspect_file


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder with nothing but the UNet's configuration."""
    folder = tmp_path_factory.mktemp("model")
    unet().save_config(folder / "unet")
    return str(folder)


def written(name, path, format="kohya"):
    adapter = CASES[name]()
    adapter.attach(unet(), 0)
    shake(adapter)
    return str(export(adapter, path / f"{name}-{format}.safetensors", family=Named(), format=format))


def line(report, title):
    return next(text for text in report.splitlines() if text.startswith(title)).partition(" ")[2].strip()


@pytest.mark.parametrize(
    ("name", "format", "algorithm", "rank", "alpha"),
    [
        ("lora", "kohya", "lora (", "4 (", "2 ("),
        ("lora", "diffusers", "lora (", "4 (", "2 ("),
        ("rslora", "diffusers", "lora (", "4 (", "16 ("),
        ("dora", "diffusers", "dora (", "4 (", "2 ("),
        ("loha", "kohya", "loha (", "3 (", "2.5 ("),
        ("lokr", "kohya", "lokr (", "2 (", "1 ("),
        ("lokr-full-matrix", "kohya", "lokr (", "none", "16 ("),
        ("glora", "kohya", "glora (", "4 (", "2 ("),
        ("diag-oft", "kohya", "diag-oft (", "none", "0 ("),
        ("boft", "kohya", "boft (", "none", "0 ("),
    ],
)
def test_the_report_names_format_algorithm_rank_and_alpha(name, format, algorithm, rank, alpha, tmp_path, model):
    report, good = inspect_file(written(name, tmp_path, format), model)
    assert good, report
    assert line(report, "format") == format
    assert line(report, "algorithm").startswith(algorithm)
    assert line(report, "rank").startswith(rank)
    assert line(report, "alpha").startswith(alpha)
    count = line(report, "modules").partition(",")[0]
    assert line(report, "matched").startswith(f"{count} / {count} ")


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_ranks_and_alphas_of_a_pattern_are_counted_apart(format, tmp_path):
    report, _ = inspect_file(written("lora-rank-pattern", tmp_path, format))
    counts = dict(part.split(" (") for part in line(report, "rank").split(", "))
    assert set(counts) == {"4", "2", "8"}
    assert counts["2"] == counts["8"] and int(counts["4"].split()[0]) == 2 * int(counts["2"].split()[0])
    assert {part.split(" (")[0] for part in line(report, "alpha").split(", ")} == {"4", "2", "8", "1"}


def test_a_module_that_the_model_does_not_have_fails_and_is_named(tmp_path, model):
    path = written("lora", tmp_path)
    tensors = load_file(path)
    tensors["lora_unet_nowhere.lora_up.weight"] = torch.zeros(4, 2)
    tensors["lora_unet_nowhere.lora_down.weight"] = torch.zeros(2, 4)
    save_file(tensors, path)
    assert inspect_file(path)[1]
    report, good = inspect_file(path, model)
    assert not good and "lora_unet_nowhere" in report
    assert line(report, "matched").split()[0] == str(len(tensors) // 3)


def test_a_module_made_for_another_size_fails(tmp_path, model):
    path = written("lora", tmp_path)
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith("lora_down.weight"))
    tensors[key] = torch.zeros(4, 5)
    save_file(tensors, path)
    report, good = inspect_file(path, model)
    assert not good and "another size" in report and key.split(".")[0] in report


@pytest.mark.parametrize("key", ["lora_unet_x.strange", "plain"])
def test_an_unknown_key_or_half_a_module_fails_without_a_model_too(key, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({key: torch.zeros(1), "lora_unet_y.lora_up.weight": torch.zeros(2, 1)}, path)
    report, good = inspect_file(str(path))
    assert not good and key in report and "incomplete" in report and "lora_unet_y" in report


def test_low_precision_alphas_are_read(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {}
    for dtype, alpha in ((torch.bfloat16, 1.5), (torch.float16, 0.25), (torch.float64, 3.0), (torch.int64, 7)):
        name = f"lora_unet_{str(dtype)[6:]}"
        tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
        tensors[f"{name}.lora_up.weight"] = torch.zeros(4, 2, dtype=torch.bfloat16)
        tensors[f"{name}.lora_down.weight"] = torch.zeros(2, 4, dtype=torch.bfloat16)
    save_file(tensors, path)
    found = {part.split(" (")[0] for part in line(inspect_file(str(path))[0], "alpha").split(", ")}
    assert found == {"1.5", "0.25", "3", "7"}


def test_a_missing_alpha_is_said(tmp_path):
    path = tmp_path / "a.safetensors"
    name = "lora_unet_x"
    save_file({f"{name}.lora_up.weight": torch.zeros(4, 2), f"{name}.lora_down.weight": torch.zeros(2, 4)}, path)
    assert "missing" in line(inspect_file(str(path))[0], "alpha")


def test_a_folder_without_a_denoiser_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="folder of a diffusers model"):
        inspect_file(written("lora", tmp_path), str(tmp_path))


def test_without_a_model_torch_is_not_imported(tmp_path):
    path = written("lokr", tmp_path)
    code = "import sys, dreamlit.inspection as i; print(i.inspect_file(sys.argv[1])[1], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_every_written_key_splits_into_a_module_and_a_known_part(tmp_path):
    for name in CASES:
        if name.startswith("full"):
            continue
        adapter = CASES[name]()
        format = adapter.default_formats()[0]
        header = formats.read_header(written(name, tmp_path, format))
        groups, unknown = formats.grouped(header.tensors)
        assert not unknown
        assert sum(len(keys) for keys in groups.values()) == len(header.tensors)
