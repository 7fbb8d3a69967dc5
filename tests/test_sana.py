"""What is particular about Sana: the instruction before a prompt, 32 pixels a cell, convolutions in its blocks."""

from __future__ import annotations

import pytest
import torch

from dreamlit.adapters import LoRA
from dreamlit.combinations import bare_denoiser
from dreamlit.errors import ConfigError
from dreamlit.export import check_round_trip, export
from dreamlit.families import Sana
from dreamlit.families.sana import instruction
from dreamlit.in_the_making import predicted_x0
from tests.family_cases import calls_of, change, complaint, loaded, predicted, state, stock

pytestmark = [pytest.mark.filterwarnings("ignore:caption"), pytest.mark.usefixtures("own_memo")]


@pytest.fixture
def folder(family_folders):
    return family_folders("sana")


@pytest.fixture
def seen(family):
    """The texts that the text encoder has read."""
    texts = []

    def read(module, inputs):
        texts.extend(family.part("tokenizer").batch_decode(inputs[0], skip_special_tokens=True))

    family.part("text_encoder").register_forward_pre_hook(read)
    return texts


def test_the_instruction_stands_before_a_caption_but_not_before_none(family, seen):
    alone, nothing = family.encode_prompts(["A Dog"]), family.encode_prompts([""])
    assert (seen[0], seen[-1]) == (instruction() + "a dog", "")
    assert alone["prompt_mask"].sum() == 1 + 1 + len("a dog")  # the first token and the instruction's last
    assert nothing["prompt_mask"].sum() == 1
    assert instruction().startswith("Given a user prompt") and instruction().endswith("User Prompt: ")


def test_no_caption_is_read_as_what_guidance_leads_away_from(family, folder):
    _, _, negative, mask = stock(folder).encode_prompt("a dog", device="cpu")
    ours = family.encode_prompts(["a dog", "", " "])
    for row in (1, 2):
        torch.testing.assert_close(ours["prompt_embeds"][row], negative[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(ours["prompt_mask"][row], mask[0].float())


@pytest.mark.filterwarnings("default:caption")
def test_only_the_caption_is_named_where_it_is_cut(family):
    with pytest.warns(
        UserWarning, match=r"^caption 'dog dog .* has 302 tokens and the text encoder reads 298.* 'cat'$"
    ):
        family.encode_prompts(["dog " * 74 + "or cat"])


def test_the_instruction_is_part_of_the_fingerprint(folder, monkeypatch):
    before = Sana(str(folder)).fingerprint("text_encoders")
    monkeypatch.setattr("dreamlit.families.sana.instruction", lambda: "Draw: ")
    assert Sana(str(folder)).fingerprint("text_encoders") != before


def test_training_meets_the_noise_levels_of_the_sampler(folder):
    for options, shift in (({}, 3.0), ({"shift": 1.5}, 1.5)):
        family = Sana(str(folder), **options)
        sampler, process = family.scheduler(), family.process()
        sampler.set_timesteps(5)
        drawn = torch.tensor([process.timestep(u) for u in (0.9990, 0.7992, 0.5994, 0.3996, 0.1998)]) / 1000
        torch.testing.assert_close(sampler.sigmas[:5].double(), drawn.double(), atol=1e-5, rtol=1e-5)
        assert process.shift == shift


def test_a_sampler_without_the_flow_is_refused(own, kind):
    change(own / "scheduler" / "scheduler_config.json", use_flow_sigmas=False)
    assert "not of the flow kind" in complaint(kind(str(own)))


def test_the_image_in_the_making_is_read_off_the_flow(folder):
    sampler = Sana(str(folder)).scheduler()
    sampler.set_timesteps(4)
    x_t, velocity = torch.randn(2, 1, 32, 2, 2).unbind()
    sampler.step(velocity, sampler.timesteps[0], x_t)
    assert torch.equal(
        predicted_x0(sampler, velocity, sampler.timesteps[0], x_t), x_t - float(sampler.sigmas[0]) * velocity
    )


def test_a_models_own_scale_of_timesteps_is_kept(own, kind):
    change(own / "transformer" / "config.json", timestep_scale=0.001)
    family = loaded(kind(str(own)))
    conditioning = family.encode_prompts(["a dog", "dog"])
    for x_t, scaled, expected, _ in calls_of(stock(own), ["a dog", "dog"], height=64, width=64):
        ours = family.predict(x_t, scaled / 0.001, conditioning, state()[2])
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_size_must_be_of_whole_cells(folder):
    assert Sana(str(folder)).side_multiple == 32


# adapters -------------------------------------------------------------------------------------------------------------


def test_attention_and_mlp_reach_its_feed_forward_and_diffusers_loads_them(family, tmp_path):
    adapter = LoRA(4, targets="attention-mlp")
    adapter.attach(family.denoiser, 0)
    names = {key.rpartition(".lora")[0] for key in adapter.parameters()}
    block = {name.removeprefix("transformer_blocks.0.") for name in names if "blocks.0" in name}
    assert block >= {"attn1.to_q", "attn2.to_k", "ff.conv_inverted", "ff.conv_point"} and "ff.conv_depth" not in block
    with torch.no_grad():
        for value in adapter.parameters().values():
            value.add_(0.1)
    for format in adapter.formats:
        path = export(adapter, tmp_path / f"{format}.safetensors", family=family, format=format)
        found = check_round_trip(path, family, adapter)
        assert found.difference < 1e-4 < found.effect


def test_a_grouped_convolution_is_refused_before_anything_loads(folder):
    denoiser = bare_denoiser(Sana(str(folder)))
    LoRA(4, targets="full").check(denoiser)
    with pytest.raises(ConfigError, match="no layer matches"):
        LoRA(4, targets=["conv_depth"]).check(denoiser)


def test_channels_last_changes_nothing(folder, family):
    other = loaded(Sana(str(folder), channels_last=True))
    other.check()
    other.prepare_denoiser()
    weight = other.denoiser.transformer_blocks[0].ff.conv_depth.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(predicted(other), predicted(family), atol=1e-5, rtol=1e-5)


def test_compiled_blocks_are_its_transformer_blocks(family, monkeypatch):
    compiled = []
    monkeypatch.setattr(type(family.denoiser.transformer_blocks[0]), "compile", lambda self: compiled.append(self))
    family.compile = True
    family.prepare_denoiser()
    assert compiled == list(family.denoiser.transformer_blocks)


def test_a_tokenizer_by_its_older_name_is_the_same(own, kind, family):
    change(own / "model_index.json", tokenizer=["transformers", "GemmaTokenizerFast"])
    older = loaded(kind(str(own)))
    for name, value in older.encode_prompts(["a dog"]).items():
        assert torch.equal(value, family.encode_prompts(["a dog"])[name])
