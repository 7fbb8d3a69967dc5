"""What is particular about PixArt-Sigma: no loader of adapters in diffusers, older names, a variance in the output."""

from __future__ import annotations

import json

import pytest
import torch

from dreamlit.adapters import LoRA
from dreamlit.combinations import bare_denoiser
from dreamlit.errors import CombinationError
from dreamlit.export import check_round_trip, export
from dreamlit.families import PixArtSigma
from tests.family_cases import change, loaded, predicted, stock
from tests.runs import base_config, fit, merged, run, write_photos

pytestmark = [pytest.mark.filterwarnings("ignore:caption"), pytest.mark.usefixtures("own_memo")]


@pytest.fixture
def folder(family_folders):
    return family_folders("pixart")


@pytest.fixture
def configured(tmp_path, folder):
    write_photos(tmp_path / "subject", [(64, 64)] * 2, seed=1)
    config = base_config(tmp_path / "run", folder, tmp_path / "subject")
    return merged(config, {"model.family": {"class_path": "PixArtSigma", "init_args": {"path": str(folder)}}})


def test_diffusers_has_no_loader_of_adapters_for_it(folder):
    assert not hasattr(stock(folder), "load_lora_weights")  # once it has, `unread_formats` can go


def test_asking_for_a_file_that_nothing_reads_says_what_is_read(folder, tmp_path):
    family, adapter = loaded(PixArtSigma(str(folder))), LoRA(4)
    adapter.attach(family.denoiser, 0)
    with pytest.raises(CombinationError, match=r"no load_lora_weights for PixArtSigmaPipeline.*as 'kohya'"):
        export(adapter, tmp_path / "a.safetensors", family=family, format="diffusers")
    path = export(adapter, tmp_path / "a.safetensors", family=family)
    assert check_round_trip(path, family, adapter).difference < 1e-5


def test_a_run_writes_the_files_that_are_read(configured):
    root = fit(merged(configured, {"trainer.max_steps": 1}))
    assert {path.name for path in root.glob("*.safetensors")} == {"run.safetensors"}


def test_dora_is_refused_before_anything_loads(configured, capsys):
    adapter = {"class_path": "LoRA", "init_args": {"rank": 4, "use_dora": True}}
    assert run("fit", merged(configured, {"model.adapter": adapter})) != 0
    assert "DoRA is written as diffusers alone, which nothing reads for PixArtSigma" in capsys.readouterr().err


def test_a_model_with_the_older_name_of_its_class_is_the_same(own, kind, family):
    """The published ones call the transformer Transformer2DModel, which diffusers reads as what it is."""
    index = json.loads((own / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "PixArtTransformer2DModel"]
    change(own / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    change(own / "transformer" / "config.json", _class_name="Transformer2DModel")
    older = kind(str(own))
    older.check()
    LoRA(4).check(bare_denoiser(older))
    with torch.no_grad():
        assert torch.equal(predicted(loaded(older)), predicted(family))


def test_the_variance_gets_no_loss_and_stays(family):
    prediction = predicted(family)
    assert prediction.shape[1] == 4
    family.denoiser.requires_grad_(True)
    predicted(family).square().mean().backward()
    variance = family.denoiser.proj_out.weight.grad.view(2, 2, 8, -1)[:, :, 4:]
    assert variance.abs().max() == 0


def test_compiled_blocks_are_its_transformer_blocks(family, monkeypatch):
    compiled = []
    block = type(family.denoiser.transformer_blocks[0])
    monkeypatch.setattr(block, "compile", lambda self: compiled.append(self))
    family.compile = True
    family.prepare_denoiser()
    assert compiled == list(family.denoiser.transformer_blocks)
