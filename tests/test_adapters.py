"""Adapters: exactly the base when disabled or fresh, float32, seeded by name, strict about names."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_cases import CASES, LYCORIS, predict, shake, state, train, unet
from dreamlit.adapters import Full, LoRA, LyCORIS
from dreamlit.adapters.full import fits, stream_weights
from dreamlit.adapters.targets import PRESETS, layers, select
from dreamlit.errors import CheckpointError, CombinationError, ConfigError

ALGORITHMS = ("lora", "dora", "locon", "loha", "lokr", "glora", "diag-oft", "boft", "full")
"""A case for each way to compute an update."""
EVERY = pytest.mark.parametrize("name", CASES)
EACH_ALGORITHM = pytest.mark.parametrize("name", ALGORITHMS)
BOTH = pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in CASES] + [(name, torch.bfloat16) for name in ALGORITHMS],
    ids=[f"{name}-float32" for name in CASES] + [f"{name}-bfloat16" for name in ALGORITHMS],
)


def attached(name, dtype=torch.float32, seed=1):
    denoiser, adapter = unet(dtype=dtype), CASES[name]()
    adapter.attach(denoiser, seed, teacher_needed=True)
    return denoiser, adapter


# the base model -----------------------------------------------------------------------------------


@BOTH
def test_disabled_is_exactly_the_base_and_afterwards_everything_is_as_it_was(name, dtype):
    base = predict(unet(dtype=dtype)).detach()
    denoiser, adapter = attached(name, dtype)
    shake(adapter)
    live = predict(denoiser).detach()
    flags = {n: p.requires_grad for n, p in denoiser.named_parameters()}
    assert not torch.equal(live, base.to(live.dtype)), "an adapter that does nothing would prove nothing"
    with torch.no_grad(), adapter.disabled() as teacher:
        assert torch.equal(predict(teacher), base)
        with adapter.disabled() as inner:
            assert torch.equal(predict(inner), base)
        assert torch.equal(predict(teacher), base), "leaving the inner context switched the adapter on"
    assert torch.equal(predict(denoiser), live)
    assert flags == {n: p.requires_grad for n, p in denoiser.named_parameters()}


@pytest.mark.parametrize("name", ["lora", "dora", "lokr", "diag-oft", "full"])
def test_an_exception_inside_disabled_leaves_the_adapter_on(name):
    denoiser, adapter = attached(name)
    shake(adapter)
    live = predict(denoiser).detach()
    with pytest.raises(KeyboardInterrupt), adapter.disabled():
        raise KeyboardInterrupt
    assert torch.equal(predict(denoiser), live)


@BOTH
def test_a_fresh_adapter_changes_nothing(name, dtype):
    if name.startswith("full") and dtype == torch.bfloat16:
        pytest.skip("full weights are trained in float32, which is another model")
    base = predict(unet(dtype=dtype))
    denoiser, adapter = attached(name, dtype)
    for module in adapter.modules_to_register().values():
        module.train()
    assert torch.equal(predict(denoiser), base)


@EVERY
def test_training_moves_every_adapter_tensor_and_no_other(name):
    denoiser, adapter = attached(name)
    own = adapter.parameters()
    frozen = state(denoiser, {id(p) for p in own.values()})
    before = {n: p.detach().clone() for n, p in own.items()}
    train(adapter, denoiser)
    still = [n for n, p in own.items() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert not still
    assert [n for n, p in own.items() if torch.equal(p, before[n])] == []
    now = dict(denoiser.named_parameters())
    assert all(torch.equal(now[n], value) for n, value in frozen.items())


@EACH_ALGORITHM
def test_what_trains_is_float32_on_a_bfloat16_base(name):
    denoiser, adapter = attached(name, torch.bfloat16)
    assert {p.dtype for p in adapter.parameters().values()} == {torch.float32}
    assert all(p.requires_grad for p in adapter.parameters().values())
    trained = {id(p) for p in adapter.parameters().values()}
    assert not any(p.requires_grad for p in denoiser.parameters() if id(p) not in trained)


@pytest.mark.parametrize("algo", ["lora", "locon", "loha", "lokr"])
def test_an_update_far_below_the_base_weights_precision_still_acts(algo):
    """64 + 0.001 is 64 in bfloat16; the inputs cancel the base's output, so that what is left is the update's."""
    denoiser = torch.nn.Sequential(torch.nn.Linear(32, 32, bias=False)).to(torch.bfloat16)
    denoiser[0].weight.data = torch.tensor([64.0, -64.0], dtype=torch.bfloat16).repeat(32, 16)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).repeat_interleave(2, dim=1)
    assert not denoiser(x).any()
    adapter = LoRA(4, targets="full") if algo == "lora" else LyCORIS(algo, 4, preset="all")
    adapter.attach(denoiser, 0)
    shake(adapter, size=1e-4)
    assert (denoiser(x) != 0).float().mean() > 0.9


@pytest.mark.parametrize("name", ["diag-oft", "boft"])
def test_a_small_turn_is_not_rounded_away_under_autocast(name):
    denoiser, adapter = unet(), CASES[name]()
    adapter.attach(denoiser, 0)
    shake(adapter, size=1e-3)
    module = adapter.modules_to_register()["lycoris"]["mid_block/attentions/0/proj_in"]
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    seen = []
    module.op = lambda x, weight, *rest, **options: seen.append(weight) or torch.nn.functional.linear(x, weight)
    with torch.no_grad():
        denoiser.mid_block.attentions[0].proj_in(x)
        with torch.autocast("cpu", torch.bfloat16):
            denoiser.mid_block.attentions[0].proj_in(x)
    exact, low = seen
    assert exact.any()
    assert torch.equal(exact, low)


# initialisation -----------------------------------------------------------------------------------


@EACH_ALGORITHM
def test_attaching_neither_reads_nor_moves_the_global_generator(name):
    torch.manual_seed(1)
    first, before = attached(name)[1].parameters(), torch.get_rng_state()
    torch.manual_seed(2)
    moved = torch.get_rng_state()
    second = attached(name)[1].parameters()
    assert torch.equal(moved, torch.get_rng_state()) and not torch.equal(moved, before)
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("name", ["lora", "lokr", "loha", "locon", "glora"])
def test_another_seed_gives_other_weights(name):
    first, second = attached(name, seed=1)[1].parameters(), attached(name, seed=2)[1].parameters()
    assert any(not torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("make", [lambda t: LoRA(4, targets=t), lambda t: LyCORIS("lokr", 2, preset=preset(t))])
def test_a_modules_first_weights_do_not_depend_on_which_others_take_part(make):
    every, some = make(["to_q", "to_k"]), make(["to_k"])
    every.attach(unet(), 1)
    some.attach(unet(), 1)
    assert some.parameters()
    assert all(torch.equal(every.parameters()[n], p) for n, p in some.parameters().items())


def preset(names):
    return {"target_name": [f"*.{name}" for name in names], "use_fnmatch": True}


NAMES_SCRIPT = """
import json, sys, hashlib
sys.path[:0] = [{tests!r}]
from adapter_cases import CASES, unet
found = {{}}
for name in ("lora", "dora", "lokr", "loha-tucker", "boft", "full-part"):
    adapter = CASES[name]()
    adapter.attach(unet(), 1)
    digest = hashlib.sha256()
    for key, value in adapter.parameters().items():
        digest.update(key.encode() + value.detach().numpy().tobytes())
    found[name] = digest.hexdigest()
print(json.dumps(found))
"""


def test_names_order_and_first_weights_are_the_same_in_another_process():
    code = NAMES_SCRIPT.format(tests=str(pathlib.Path(__file__).parent))
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    for name, theirs in json.loads(run.stdout.splitlines()[-1]).items():
        digest = hashlib.sha256()
        for key, value in attached(name)[1].parameters().items():
            digest.update(key.encode() + value.detach().numpy().tobytes())
        assert theirs == digest.hexdigest(), name


# state --------------------------------------------------------------------------------------------


@EVERY
def test_saved_parameters_restore_the_adapter_exactly(name, tmp_path):
    denoiser, adapter = attached(name)
    shake(adapter)
    torch.save({n: p.detach() for n, p in adapter.parameters().items()}, tmp_path / "state.pt")
    again, other = attached(name, seed=9)
    other.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(predict(again), predict(denoiser))


def test_wrong_state_names_every_missing_unexpected_and_misshapen_tensor_and_changes_nothing():
    _, adapter = attached("lora")
    names = list(adapter.parameters())
    wrong = {n: p.detach().clone() + 1 for n, p in adapter.parameters().items()}
    del wrong[names[0]]
    wrong["elsewhere.lora_A.weight"] = torch.zeros(1)
    wrong[names[2]] = torch.zeros(1, 1)
    before = {n: p.detach().clone() for n, p in adapter.parameters().items()}
    with pytest.raises(CheckpointError) as caught:
        adapter.load_state(wrong)
    for word in ("1 missing", names[0], "1 unexpected", "elsewhere", names[2], "[1, 1]"):
        assert word in str(caught.value)
    assert all(torch.equal(p, before[n]) for n, p in adapter.parameters().items())


def test_a_state_of_another_rank_is_refused_in_a_few_lines():
    adapter = LoRA(8)
    adapter.attach(unet(), 0)
    with pytest.raises(CheckpointError, match=r"and \d+ more") as caught:
        adapter.load_state({name: p.detach() for name, p in attached("lora")[1].parameters().items()})
    assert len(str(caught.value).splitlines()) < 12


@pytest.mark.parametrize("name", LYCORIS)
def test_registering_the_lycoris_network_covers_every_parameter(name):
    adapter = attached(name)[1]
    holder = torch.nn.Module()
    for key, module in adapter.modules_to_register().items():
        holder.add_module(key, module)
    assert {id(p) for p in holder.parameters()} == {id(p) for p in adapter.parameters().values()}
    holder.to(torch.float64)
    assert {p.dtype for p in adapter.parameters().values()} == {torch.float64}, "a move did not reach the adapter"


def test_an_adapter_is_attached_once():
    denoiser, adapter = attached("lora")
    with pytest.raises(CombinationError, match="attached already"):
        adapter.attach(denoiser, 0)
    with pytest.raises(CombinationError, match="not attached"):
        LoRA().parameters()


# dropout ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["locon", "loha", "lokr", "glora", "diag-oft"])
def test_a_dropped_module_gives_a_zero_gradient_not_none(algo):
    denoiser, adapter = unet(), LyCORIS(algo, 2, preset="attn-mlp", module_dropout=0.99)
    adapter.attach(denoiser, 0)
    shake(adapter)
    adapter.modules_to_register()["lycoris"].train()
    torch.manual_seed(0)
    predict(denoiser).square().mean().backward()
    gradients = [p.grad for p in adapter.parameters().values()]
    assert all(g is not None for g in gradients), "DDP would wait for a gradient for ever"
    assert any(not g.any() for g in gradients)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LoRA(4, dropout=0.5),
        *(lambda a=a: LyCORIS(a, 4, dropout=0.5) for a in ("locon", "loha", "lokr", "glora")),
        *(lambda a=a: LyCORIS(a, 4, rank_dropout=0.5) for a in ("locon", "loha")),
        *(
            lambda a=a: LyCORIS(a, 4, module_dropout=0.5)
            for a in ("locon", "loha", "lokr", "glora", "diag-oft", "boft")
        ),
    ],
)
def test_every_dropout_acts_in_training_and_not_in_evaluation(make):
    denoiser, adapter = unet(), make()
    adapter.attach(denoiser, 0)
    shake(adapter)
    outputs = {}
    for mode in (True, False):
        for module in (denoiser, *adapter.modules_to_register().values()):
            module.train(mode)
        torch.manual_seed(0)
        outputs[mode] = [predict(denoiser).detach() for _ in range(2)]
    assert not torch.equal(*outputs[True])
    assert torch.equal(*outputs[False])


# targets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", PRESETS)
def test_a_preset_takes_what_it_says(targets):
    chosen = select(unet(), targets)
    linear = [layer for layer in layers(unet()) if layer.linear]
    names = [layer.name for layer in chosen]
    if targets == "full":
        assert names == [layer.name for layer in layers(unet())]
    elif targets == "all-linear":
        assert names == [layer.name for layer in linear]
    else:
        marks = ("attn1.", "attn2.", *((".ff.",) if targets == "attention-mlp" else ()))
        assert names == [layer.name for layer in linear if any(mark in layer.name for mark in marks)]


def test_patterns_are_last_parts_or_globs_and_never_ends_of_words():
    names = [layer.name for layer in select(unet(), ["to_q", "mid_block.*.ff.net.2"])]
    assert any(name.endswith("ff.net.2") for name in names)
    assert all(name.endswith(".to_q") or name.startswith("mid_block.") for name in names)
    with pytest.raises(ConfigError):
        select(unet(), ["o_q"])


@pytest.mark.parametrize(
    "adapter",
    [
        LoRA(targets=["to_w"]),
        LoRA(targets=["to_q", "nowhere.*"]),
        LoRA(targets="attentoin"),
        LoRA(rank_pattern={"ff.net.2": 4}),
        LyCORIS("lokr", preset={"target_module": ["CrossAttention"]}),
        LyCORIS("lokr", preset={"target_name": ["up_blocks.7.*"], "use_fnmatch": True}),
        LyCORIS("lokr", module_algo_map={"FeedFroward": {"factor": 4}}),
        LyCORIS("lokr", preset={"target_module": ["Attention"], "exclude_name": ["atn2"]}),
        Full(targets=["to_w"]),
    ],
)
def test_what_matches_no_layer_is_an_error_that_lists_what_could_match(adapter):
    with pytest.raises(ConfigError, match=r"to_q \(\d+\)"):
        adapter.attach(unet(), 0)


@given(st.sampled_from(["attn-only", "attn-mlp", "full-lin", "full", "unet-convblock-only"]), st.booleans())
@settings(max_examples=10, deadline=None)
def test_lycoris_presets_take_the_layers_that_lycoris_itself_takes(name, through_mapping):
    from lycoris.config import PRESET
    from lycoris.wrapper import LycorisNetwork

    from dreamlit.adapters.lycoris_options import _PRESET_TABLE, BEYOND

    mapping = dict(_PRESET_TABLE[name])
    reference = {"enable_conv": mapping.get("enable_conv", True), "target_module": list(mapping["target_module"])}
    reference["target_name"] = list(mapping.get("target_name", ()))
    saved = {
        key: getattr(LycorisNetwork, key) for key in ("ENABLE_CONV", "TARGET_REPLACE_MODULE", "TARGET_REPLACE_NAME")
    }
    try:
        LycorisNetwork.apply_preset(reference)
        theirs = {
            lora.lora_name for lora in LycorisNetwork(unet(), network_module="lokr", warn_on_unmatched=False).loras
        }
    finally:
        for key, value in saved.items():
            setattr(LycorisNetwork, key, value)
    adapter = LyCORIS("lokr", 4, preset=mapping if through_mapping and name != "attn-mlp" else name)
    ours = {"lycoris_" + layer.name.replace(".", "_") for layer, _ in adapter.plan(unet())}
    assert ours == theirs
    if name in ("attn-mlp", "full"):
        assert set(mapping["target_module"]) <= {*PRESET[name]["unet_target_module"], *BEYOND}


def test_a_per_module_map_changes_only_the_modules_it_names():
    adapter = LyCORIS(
        "lokr",
        2,
        factor=4,
        preset={
            "target_module": ["Attention", "FeedForward"],
            "module_algo_map": {"FeedForward": {"algo": "loha", "dim": 3, "alpha": 1}},
            "name_algo_map": {"mid_block.*.to_q": {"factor": 8}},
            "exclude_name": ["*.attn2"],
            "use_fnmatch": True,
        },
    )
    plan = {layer.name: options for layer, options in adapter.plan(unet())}
    assert not any(".attn2." in name for name in plan)
    for name, options in plan.items():
        expected = (
            ("loha", 3, 1, -1)
            if ".ff." in name
            else ("lokr", 2, None, 8 if name.startswith("mid_block") and name.endswith("to_q") else 4)
        )
        assert (options.algo, options.rank, options.alpha, options.factor) == expected, name


def test_a_fractional_rank_is_a_share_of_the_smaller_side_of_each_layer():
    denoiser, adapter = unet(), LyCORIS("locon", 0.25, alpha=0.5, preset="full")
    adapter.attach(denoiser, 0)
    for layer in layers(unet()):
        if f"{layer.name}.lora_down.weight" in adapter.parameters():
            weight = layer.module.weight
            rank = adapter.parameters()[f"{layer.name}.lora_down.weight"].shape[0]
            assert rank == max(1, round(0.25 * min(weight.shape[:2])))


@pytest.mark.parametrize("option", [{"conv_rank": 8}, {"conv_alpha": 2}, {"use_tucker": True}])
def test_an_option_for_convolutions_is_refused_where_there_are_none(option):
    with pytest.raises(ConfigError, match=f"{next(iter(option))}.*attn-mlp"):
        LyCORIS("locon", 4, preset="attn-mlp", **option).check(unet())
    LyCORIS("locon", 4, preset="full", **option).check(unet())


# refusals -----------------------------------------------------------------------------------------

REFUSED = [
    (lambda: LoRA(rank=0), "rank"),
    (lambda: LoRA(rank=2.5), "whole number"),
    (lambda: LoRA(alpha=0), "alpha"),
    (lambda: LoRA(alpha=float("nan")), "alpha"),
    (lambda: LoRA(dropout=1.0), "below 1"),
    (lambda: LoRA(dropout=True), "number"),
    (lambda: LoRA(targets=[]), "targets"),
    (lambda: LoRA(init="pissa"), "base weights"),
    (lambda: LoRA(init="gausian"), "did you mean 'gaussian'"),
    (lambda: LoRA(rank_pattern={"to_q": -1}), "rank_pattern"),
    (lambda: LyCORIS("dylora"), "locon"),
    (lambda: LyCORIS("ia3"), "lokr"),
    (lambda: LyCORIS("full"), "Full"),
    (lambda: LyCORIS("tlora"), "timestep"),
    (lambda: LyCORIS("lokrr"), "did you mean 'lokr'"),
    (lambda: LyCORIS("lokr", rank_dropout=0.1), "module_dropout"),
    (lambda: LyCORIS("diag-oft", alpha=1), "alpha"),
    (lambda: LyCORIS("diag-oft", dropout=0.1), "dropout"),
    (lambda: LyCORIS("boft", multiplier=0.5), "multiplier"),
    (lambda: LyCORIS("lokr", multiplier=0), "multiplier"),
    (lambda: LyCORIS("locon", factor=4), "factor"),
    (lambda: LyCORIS("glora", use_tucker=True), "use_tucker"),
    (lambda: LyCORIS("lokr", full_matrix=True, alpha=1), "full_matrix"),
    (lambda: LyCORIS("lokr", factor=0), "factor"),
    (lambda: LyCORIS("lokr", 1.5), "fraction"),
    (lambda: LyCORIS("boft", 0.5), "whole number"),
    (lambda: LyCORIS("lokr", preset="attn_mlp"), "did you mean 'attn-mlp'"),
    (lambda: LyCORIS("lokr", preset={"target_modules": ["Attention"]}), "did you mean 'target_module'"),
    (lambda: LyCORIS("lokr", module_algo_map={"Attention": {"facto": 4}}), "did you mean 'factor'"),
    (lambda: LyCORIS("lokr", module_algo_map={"Attention": {"algo": "ia3"}}), "ia3"),
    (lambda: LyCORIS("lokr", multiplier=0.5, module_algo_map={"Attention": {"algo": "boft"}}), "multiplier"),
    (lambda: Full(teacher="gpu"), "teacher"),
    (lambda: Full(targets=[]), "targets"),
]


@pytest.mark.parametrize(("make", "word"), REFUSED, ids=range(len(REFUSED)))
def test_a_wrong_option_is_refused_at_construction_with_what_to_do(make, word):
    with pytest.raises(ConfigError, match=word):
        make()


def test_sizes_that_an_algorithm_cannot_divide_are_refused_before_training_all_at_once():
    denoiser = torch.nn.Sequential(torch.nn.Linear(8, 9), torch.nn.Linear(8, 7), torch.nn.Linear(8, 8))
    for algo, advice in (("boft", "diag-oft"), ("diag-oft", "exclude")):
        with pytest.raises(CombinationError, match=advice) as caught:
            LyCORIS(algo, 2, preset="all").check(denoiser)
        assert "0:" in str(caught.value) and "1:" in str(caught.value) and "2:" not in str(caught.value)


def test_checking_needs_no_weights():
    with torch.device("meta"):
        denoiser = unet()
    for make in CASES.values():
        make().check(denoiser)


# full weights -------------------------------------------------------------------------------------


def test_full_keeps_no_copy_unless_the_run_needs_the_base_model():
    denoiser, adapter = unet(), Full()
    adapter.attach(denoiser, 0, teacher_needed=False)
    with pytest.raises(CombinationError, match="teacher_needed"), adapter.disabled():
        pass
    assert len(adapter.parameters()) == len(list(denoiser.parameters()))


def test_full_trains_only_its_targets():
    adapter = attached("full-part")[1]
    assert adapter.parameters() and all(".attn2." in name for name in adapter.parameters())


def test_the_teacher_is_not_part_of_the_trained_model():
    denoiser, adapter = attached("full")
    with adapter.disabled() as teacher:
        assert not any(p.requires_grad for p in teacher.parameters())
        ours = {p.data_ptr() for p in denoiser.parameters()}
        assert not ours & {p.data_ptr() for p in teacher.parameters()}
    assert adapter.modules_to_register() == {}


def test_an_int8_teacher_is_close_to_the_base_and_smaller():
    base = predict(unet()).detach()
    denoiser, adapter = unet(), Full(teacher="int8")
    adapter.attach(denoiser, 0, teacher_needed=True)
    shake(adapter)
    with torch.no_grad(), adapter.disabled() as teacher:
        error = (predict(teacher) - base).abs().max() / base.abs().max()
    assert 0 < error < 0.05
    assert type(teacher.mid_block.attentions[0].proj_in.weight).__name__ != "Parameter"


def test_streamed_weights_give_the_same_output_and_go_home_even_after_a_failure():
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GroupNorm(2, 4), torch.nn.Linear(4, 2))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    expected, homes = module(x), [p.data_ptr() for p in module.parameters()]
    stream_weights(module, torch.device("cpu"))
    assert torch.equal(module(x), expected)
    with pytest.raises(RuntimeError):
        module(torch.zeros(3, 5))
    assert [p.data_ptr() for p in module.parameters()] == homes


def test_the_automatic_teacher_leaves_room_for_gradients_and_moments():
    gib = 1024**3
    assert fits(5 * gib, 10 * gib, None)
    assert fits(5 * gib, 10 * gib, 37 * gib)
    assert not fits(5 * gib, 10 * gib, 36 * gib)
