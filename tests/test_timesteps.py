"""Where the draws fall: evenly for each photo, by the density asked for, and by address alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamlit import densities
from dreamlit.objective import Objective
from dreamlit.process import Diffusion

PROCESS = Diffusion(torch.linspace(0.999, 0.005, 1000, dtype=torch.float64))
PHOTOS = [f"dog/{i:02}.jpg" for i in range(10)]


def levels(objective: Objective, photo: str, visits: int, seed: int = 0) -> np.ndarray:
    return np.array([objective.level(seed, photo, visit) for visit in range(visits)])


@pytest.mark.parametrize("photo", PHOTOS)
def test_each_photo_meets_ten_bands_evenly_after_any_number_of_visits(photo):
    seen = np.cumsum((levels(Objective(), photo, 1000) * 10).astype(int)[:, None] == np.arange(10), axis=0)
    fair = np.arange(1, 1001)[:, None] / 10
    assert np.abs(seen - fair).max() < 4  # 200 starts were off by 1.7 to 3.2; independent draws by 11 to 34
    assert (seen[12] > 0).all()  # the widest of the 13 gaps is golden ratio^-5 = 0.09; independent draws took 12 to 69


def test_random_timesteps_are_not_that_even():
    seen = np.cumsum(
        (levels(Objective(timesteps="random"), "a", 1000) * 10).astype(int)[:, None] == np.arange(10), axis=0
    )
    assert np.abs(seen - np.arange(1, 1001)[:, None] / 10).max() > 8


@given(seed=st.integers(0, 2**31), photo=st.text(max_size=8), visits=st.integers(2, 300))
@settings(max_examples=50, deadline=None)
def test_no_gap_between_the_visits_of_a_photo_is_wider_than_twice_the_mean(seed, photo, visits):
    points = np.sort(levels(Objective(), photo, visits, seed))
    gaps = np.diff(points, append=points[0] + 1)
    assert gaps.max() < 2 / visits  # the golden ratio's bound is 1 + 2/sqrt(5) = 1.894


def test_evenness_is_not_lost_by_rounding_after_very_many_visits():
    points = np.sort([Objective().level(0, "a", 10**15 + k) for k in range(144)])
    assert np.diff(points, append=points[0] + 1).max() < 2 / 144


def test_photos_start_at_different_levels():
    starts = [Objective().level(0, photo, 0) for photo in PHOTOS]
    assert len({round(start, 6) for start in starts}) == len(PHOTOS)
    assert max(starts) - min(starts) > 0.3


def log_linear_cdf(x: np.ndarray, ratio: float) -> np.ndarray:
    """The integral of ratio^x, normalised on [0, 1]: written from the density, not from its inverse."""
    return (ratio**x - 1) / (ratio - 1)


@pytest.mark.parametrize("timesteps", ["low_discrepancy", "random"])
@pytest.mark.parametrize(("bias", "strength"), [("later", 4.0), ("earlier", 4.0), ("later", 1.5), ("earlier", 20.0)])
def test_biased_draws_follow_their_density(timesteps, bias, strength):
    objective = Objective(timesteps=timesteps, timestep_bias=bias, timestep_bias_strength=strength)
    visits, edges = 5000, np.linspace(0, 1, 11)
    counts, _ = np.histogram(levels(objective, "a", visits), bins=edges)
    expected = np.diff(log_linear_cdf(edges, strength if bias == "later" else 1 / strength))
    tolerance = 0.001 if timesteps == "low_discrepancy" else 0.03
    assert np.abs(counts / visits - expected).max() < tolerance


@pytest.mark.parametrize("bias", ["later", "earlier"])
def test_the_favoured_end_is_drawn_strength_times_as_often(bias):
    objective = Objective(timestep_bias=bias, timestep_bias_strength=8.0)
    points = levels(objective, "a", 20000)
    low, high = (points < 0.05).sum(), (points >= 0.95).sum()
    ratio = high / low if bias == "later" else low / high
    assert ratio == pytest.approx(8 ** (1 - 0.05), rel=0.02)  # between the middles of the two bands


def logit_normal_density(x: np.ndarray, mean: float, std: float) -> np.ndarray:
    logit = np.log(x / (1 - x))
    return np.exp(-(((logit - mean) / std) ** 2) / 2) / (x * (1 - x))


def mode_density(x: np.ndarray, scale: float) -> np.ndarray:
    """How densely f(u) = 1 - u - scale (cos^2(pi u / 2) - 1 + u) of SD3's paper, equation 20, lies: |du / df|."""
    u = np.linspace(0, 1, 200_001)
    f = 1 - u - scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
    return np.interp(x, f[::-1], (1 / np.abs(np.gradient(f, u)))[::-1])


def beta_density(x: np.ndarray, a: float, b: float) -> np.ndarray:
    return x ** (a - 1) * (1 - x) ** (b - 1)


DENSITIES = [
    ({"timestep_density": "logit_normal"}, logit_normal_density, (0.0, 1.0)),
    ({"timestep_density": "logit_normal", "logit_mean": -0.6, "logit_std": 0.5}, logit_normal_density, (-0.6, 0.5)),
    ({"timestep_density": "mode"}, mode_density, (1.29,)),
    ({"timestep_density": "mode", "mode_scale": -0.5}, mode_density, (-0.5,)),
    ({"timestep_density": "beta"}, beta_density, (2.0, 2.0)),
    ({"timestep_density": "beta", "beta_alpha": 4.0, "beta_beta": 1.5}, beta_density, (4.0, 1.5)),
    ({"timestep_density": "beta", "beta_alpha": 1.2, "beta_beta": 60.0}, beta_density, (1.2, 60.0)),
]


@pytest.mark.parametrize(("options", "density", "parameters"), DENSITIES)
@pytest.mark.parametrize("timestep_range", [(0.0, 1.0), (0.2, 0.6)])
def test_draws_follow_the_densities_of_their_papers(options, density, parameters, timestep_range):
    objective, (low, high) = Objective(**options, timestep_range=timestep_range), timestep_range
    middles = (np.arange(100_000) + 0.5) / 100_000
    mass = density(middles, *parameters).reshape(10, -1).sum(1)
    counts, _ = np.histogram((levels(objective, "a", 4000) - low) / (high - low), bins=np.linspace(0, 1, 11))
    assert np.abs(counts / 4000 - mass / mass.sum()).max() < 0.002


@given(u=st.floats(0, 1, exclude_max=True), a=st.floats(0.05, 100), b=st.floats(0.05, 100))
@settings(max_examples=200, deadline=None)
def test_the_inverse_of_beta_is_its_inverse(u, a, b):
    x = densities.beta(u, a, b)
    assert 0 <= x < 1
    below, above = densities.beta_cdf(x, a, b), densities.beta_cdf(min(1.0, x + 2**-52), a, b)
    assert below - 1e-9 <= u <= above + 1e-9


@pytest.mark.parametrize("bias", ["none", "later", "earlier"])
@pytest.mark.parametrize("timestep_range", [(0.0, 0.2), (0.25, 0.75), (0.8, 1.0)])
def test_all_and_only_the_timesteps_of_the_range_are_drawn(bias, timestep_range):
    objective = Objective(timestep_range=timestep_range, timestep_bias=bias)
    drawn = {PROCESS.timestep(u) for u in levels(objective, "a", 6000)}
    first, last = (round(share * 1000) for share in timestep_range)
    assert drawn == set(range(first, last))


@given(low=st.floats(0, 1), high=st.floats(0, 1), strength=st.floats(1.0001, 1e6), visit=st.integers(0, 2**40))
@settings(max_examples=200, deadline=None)
def test_any_range_and_strength_stay_inside(low, high, strength, visit):
    low, high = sorted((low, high))
    if low == high:
        return
    objective = Objective(timestep_range=(low, high), timestep_bias="later", timestep_bias_strength=strength)
    level = objective.level(1, "a", visit)
    assert low <= level < high
    assert 0 <= PROCESS.timestep(level) < 1000


def test_rounding_never_leaves_the_half_open_range():
    last = 1 - 2**-53
    assert densities.into_range(last, 0.8, 1.0) < 1.0
    assert densities.into_range(last, 0.0, 0.2) < 0.2
    assert all(densities.log_linear(last, ratio) < 1 for ratio in (1e-9, 0.25, 1.0, 4.0, 1e9))
    assert [densities.log_linear(0.0, ratio) for ratio in (0.25, 1.0, 4.0)] == [0, 0, 0]


def draws_equal(a, b) -> bool:
    return a.t == b.t and torch.equal(a.eps, b.eps) and torch.equal(a.input_eps, b.input_eps)


def test_a_draw_depends_on_its_address_alone():
    objective = Objective(offset_noise=0.1, input_perturbation=0.1, timesteps="random")
    addresses = [(photo, visit) for photo in PHOTOS[:3] for visit in range(3)]
    first = {a: objective.draw(PROCESS, 7, *a, (4, 5, 6)) for a in addresses}
    torch.manual_seed(123)
    torch.randn(10)
    before = torch.get_rng_state()
    again = {a: objective.draw(PROCESS, 7, *a, (4, 5, 6)) for a in reversed(addresses)}
    assert torch.equal(torch.get_rng_state(), before)  # and it leaves the global generator alone
    assert all(draws_equal(first[a], again[a]) for a in addresses)


@pytest.mark.parametrize("other", [(8, "a", 0), (7, "b", 0), (7, "a", 1)])
def test_seed_sample_and_visit_each_change_the_draw(other: tuple[int, str, int]):
    objective = Objective()
    one, two = objective.draw(PROCESS, 7, "a", 0, (4, 8, 8)), objective.draw(PROCESS, *other, (4, 8, 8))
    assert one.t != two.t
    assert torch.corrcoef(torch.stack([one.eps.flatten(), two.eps.flatten()]))[0, 1].abs() < 0.3


def test_noise_is_standard_normal_and_both_uses_share_it():
    draw = Objective().draw(PROCESS, 0, "a", 0, (4, 64, 64))
    assert draw.eps.dtype == torch.float32
    assert draw.input_eps is draw.eps
    assert draw.eps.mean().abs() < 0.03
    assert draw.eps.std() == pytest.approx(1, abs=0.02)


def test_offset_noise_shifts_each_channel_as_a_whole_and_goes_into_the_target():
    plain = Objective().draw(PROCESS, 0, "a", 0, (4, 8, 8))
    offset = Objective(offset_noise=0.5).draw(PROCESS, 0, "a", 0, (4, 8, 8))
    shift = offset.eps - plain.eps
    assert offset.t == plain.t
    torch.testing.assert_close(shift, shift[:, :1, :1].expand_as(shift), rtol=0, atol=1e-6)
    assert len(shift[:, 0, 0].unique()) == 4
    shifts = [
        Objective(offset_noise=0.5).draw(PROCESS, 0, "a", v, (4, 1, 1)).eps
        - Objective().draw(PROCESS, 0, "a", v, (4, 1, 1)).eps
        for v in range(500)
    ]
    assert torch.stack(shifts).std() == pytest.approx(0.5, rel=0.1)
    assert torch.equal(offset.eps, offset.input_eps)


def test_input_perturbation_changes_the_input_and_keeps_the_target():
    plain = Objective().draw(PROCESS, 0, "a", 0, (4, 64, 64))
    perturbed = Objective(input_perturbation=0.1).draw(PROCESS, 0, "a", 0, (4, 64, 64))
    assert torch.equal(perturbed.eps, plain.eps)
    xi = (perturbed.input_eps - perturbed.eps) / 0.1
    assert xi.std() == pytest.approx(1, abs=0.02)
    assert torch.corrcoef(torch.stack([xi.flatten(), plain.eps.flatten()]))[0, 1].abs() < 0.03


def test_the_mean_of_an_even_density_is_reached_within_a_few_visits():
    points = levels(Objective(), "a", 34)
    assert points.mean() == pytest.approx(0.5, abs=0.03)
    assert math.isclose(points.var(), 1 / 12, rel_tol=0.1)
