"""What a mask does to the loss and its gradient."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamlit.objective import Objective
from dreamlit.process import Diffusion, rescale_zero_terminal_snr
from dreamlit.types import Batch, Role

PROCESS = Diffusion(torch.linspace(0.999, 0.005, 100, dtype=torch.float64))
KINDS = [
    {},
    {"loss": "huber"},
    {"loss": "smooth_l1", "huber_schedule": "exponential"},
    {"weighting": "min_snr"},
    {"weighting": "debiased"},
]
SHAPE = (3, 4, 6, 5)


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch_of(mask: torch.Tensor, role: Role = Role.INSTANCE) -> Batch:
    count, _, height, width = mask.shape
    latents = normal(0, (count, 4, height, width))
    return Batch(
        latents=latents,
        eps=normal(1, latents.shape),
        input_eps=normal(1, latents.shape),
        t=torch.arange(count) * 40 + 3,
        conditioning={},
        mask=mask,
        role=torch.full((count,), int(role)),
        weight=torch.ones(count),
        frame=torch.zeros(count, 6, dtype=torch.int64),
        keys=[f"a#{i}" for i in range(count)],
    )


def random_mask(seed: int = 5) -> torch.Tensor:
    """Black, grey and white cells."""
    values = torch.rand(3, 1, 6, 5, generator=torch.Generator().manual_seed(seed))
    return torch.where(values < 0.4, 0.0, torch.where(values > 0.8, 1.0, values))


@pytest.mark.parametrize("normalisation", ["area", "frame"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", list(Role))
def test_gradient_is_exactly_zero_where_the_mask_is_zero_and_nowhere_else(normalisation, kind, role):
    objective = Objective(mask_normalisation=normalisation, **kind)
    mask, prediction = random_mask(), normal(2).requires_grad_()
    objective.losses(PROCESS, prediction, normal(3), batch_of(mask, role), normal(4)).total.backward()
    dark = (mask == 0).expand(SHAPE)
    assert prediction.grad is not None
    assert (prediction.grad[dark] == 0).all()
    assert (prediction.grad[~dark] != 0).all()


@pytest.mark.parametrize("height", [1, 2, 5])
def test_area_normalised_loss_does_not_change_with_the_size_of_the_subject(height):
    """The subject's error is the same everywhere; only how much of the frame it fills changes."""
    mask = torch.zeros(3, 1, 6, 5)
    mask[:, :, :height] = 1
    prediction = torch.full(SHAPE, 0.5)
    prediction[:, :, height:] = 100  # the background is far off and must not matter
    losses = Objective().losses(PROCESS, prediction, torch.zeros(SHAPE), batch_of(mask))
    assert losses.per_sample.tolist() == [0.25] * 3


@given(scale=st.floats(1 / 1024, 1.0), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_area_normalised_loss_does_not_change_with_the_grey_of_the_mask(scale, seed):
    mask = random_mask(seed)
    first, second = (
        Objective().losses(PROCESS, normal(2), normal(3), batch_of(m)).per_sample for m in (mask, mask * scale)
    )
    torch.testing.assert_close(first, second, rtol=1e-5, atol=0)


def test_frame_normalised_loss_is_the_masked_sum_over_all_cells():
    mask = torch.zeros(3, 1, 6, 5)
    mask[:, :, :3] = 0.5  # half of the frame, half grey
    losses = Objective(mask_normalisation="frame").losses(
        PROCESS, torch.ones(SHAPE), torch.zeros(SHAPE), batch_of(mask)
    )
    assert losses.per_sample.tolist() == [0.25] * 3


@pytest.mark.parametrize("normalisation", ["area", "frame"])
@pytest.mark.parametrize("target", ["ignore", "base_model"])
def test_a_white_mask_is_no_mask(normalisation, target):
    objective = Objective(mask_normalisation=normalisation, unmasked_target=target, unmasked_weight=0.25)
    batch, prediction, own = batch_of(torch.ones(3, 1, 6, 5)), normal(2), normal(3)
    assert not objective.needs_base(batch).any()
    losses = objective.losses(PROCESS, prediction, own, batch)
    torch.testing.assert_close(losses.per_sample, (prediction - own).square().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("normalisation", ["area", "frame"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_black_mask_gives_zero_loss_and_zero_gradient(normalisation, kind):
    mask = random_mask()
    mask[1] = 0
    prediction = normal(2).requires_grad_()
    losses = Objective(mask_normalisation=normalisation, **kind).losses(PROCESS, prediction, normal(3), batch_of(mask))
    losses.total.backward()
    assert prediction.grad is not None
    assert losses.per_sample[1] == 0
    assert (prediction.grad[1] == 0).all()
    assert torch.isfinite(prediction.grad).all() and losses.total > 0


@pytest.mark.parametrize("normalisation", ["area", "frame"])
def test_unmasked_weight_is_a_floor_under_the_mask(normalisation):
    mask = random_mask()
    floored = Objective(mask_normalisation=normalisation, unmasked_weight=0.3)
    by_hand = Objective(mask_normalisation=normalisation)
    arguments = PROCESS, normal(2), normal(3)
    one = floored.losses(*arguments, batch_of(mask)).per_sample
    two = by_hand.losses(*arguments, batch_of(0.3 + 0.7 * mask)).per_sample
    torch.testing.assert_close(one, two)


def test_background_is_held_at_the_base_and_the_subject_at_the_photo():
    """With a hard mask and `frame`, the loss is the plain one toward the photo pasted onto the base's prediction."""
    mask = (random_mask() > 0.5).float()
    objective = Objective(mask_normalisation="frame", unmasked_target="base_model")
    prediction, own, base = normal(2), normal(3), normal(4)
    losses = objective.losses(PROCESS, prediction, own, batch_of(mask), base)
    pasted = mask * own + (1 - mask) * base
    torch.testing.assert_close(losses.per_sample, (prediction - pasted).square().mean(dim=(1, 2, 3)))


def test_background_gradient_points_to_the_base_under_area():
    mask = (random_mask() > 0.5).float()
    prediction, own, base = normal(2).requires_grad_(), normal(3), normal(4).requires_grad_()
    objective = Objective(unmasked_target="base_model")
    objective.losses(PROCESS, prediction, own, batch_of(mask), base).total.backward()
    dark = (mask == 0).expand(SHAPE)
    cells = prediction.numel()
    assert prediction.grad is not None
    torch.testing.assert_close(prediction.grad[dark], (2 * (prediction - base) / cells).detach()[dark])
    assert base.grad is None  # the teacher is not trained


def test_only_masked_samples_need_the_base_for_their_background():
    mask = torch.ones(3, 1, 6, 5)
    mask[1, 0, 2, 2] = 0.999
    assert Objective(unmasked_target="base_model").needs_base(batch_of(mask)).tolist() == [False, True, False]
    assert not Objective().needs_base(batch_of(mask)).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_masked_loss_and_gradient_are_finite_at_both_ends_of_a_zero_terminal_schedule(kind, prediction_type):
    table = rescale_zero_terminal_snr(torch.linspace(0.9999, 0.005, 100, dtype=torch.float64))
    batch = dataclasses.replace(batch_of(random_mask()), t=torch.tensor([0, 50, 99]))
    prediction = normal(2).requires_grad_()
    losses = Objective(**kind).losses(Diffusion(table, prediction_type), prediction, normal(3), batch)
    losses.total.backward()
    assert prediction.grad is not None
    assert torch.isfinite(losses.per_sample).all() and torch.isfinite(prediction.grad).all()


def test_a_mask_of_another_size_is_refused():
    batch = dataclasses.replace(batch_of(random_mask()), mask=torch.ones(3, 1, 6, 1))
    with pytest.raises(ValueError, match=r"mask is \[3, 1, 6, 1\].*\[3, 1, 6, 5\]"):
        Objective().losses(PROCESS, normal(2), normal(3), batch)
