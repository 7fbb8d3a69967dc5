"""Turns on scheduled sampling: training on states that the model itself reaches."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dreamlit.rollout_options import RampShape, RolloutOptions, RolloutTarget, Sampler, Strategy


class ScheduledSampling(Callback):
    """Some samples of a batch are noised further than their timestep and brought back to it by the model itself.

    In sampling the model meets its own earlier mistakes; this shows them to it in training. Each rolled-out batch costs
    up to `max_step_offset` more forwards without gradient: `rollout/forwards` in the logs is their number,
    `rollout/share` the share of samples. Which samples, and how far, depends on the seed and the sample alone: a
    resumed run goes on as it would have. Never active in evaluation. Regularisation samples are rolled out like all
    others, and the base model then predicts at the same drifted state.

    Args:
        max_step_offset: Most steps that a sample is denoised by the model before it is trained on; each sample gets a
            number from 1 to this.
        probability: Share of the samples that are rolled out once the ramp is over; 0 is off, whatever the rest says.
        start_step: Optimizer step before which no sample is rolled out.
        ramp_steps: Optimizer steps from `start_step` in which the probability rises from 0.
        ramp_shape: `linear`, or `cosine`, which sets in and ends gently.
        strategy: Which timesteps are rolled out: `uniform`, all alike; `early`, mostly those with little noise; `late`,
            mostly those with much. With early and late, half as many samples are on average.
        sampler: How the model denoises: `unipc`, `dpm`, `ddim` or `euler` (the last two are the same first-order step).
        order: Order of the sampler: 1 to 3 for unipc, 1 or 2 for dpm, 1 for the others (default: 2 where there is one).
        step_stride: Timesteps in one step (default: as in sampling with 30 steps, 33 of 1000).
        target: `corrected`, the prediction that leads from where the sample is back to its photo; `original`, the one
            for the noise that it began with. With epsilon prediction the corrected target grows large where there is
            little noise; `strategy: late` or the objective's `weighting: min_snr` keep that in bounds.
        anti_drift: For flow models: weight of ReflexFlow's directional error, |v / |v| - a / |a||^2, at the drifted
            state, with a = x_t - x0. 0 is off; the paper (arXiv 2512.04904) uses 10. `loss/instance` contains it.
        frequency_compensation: For flow models: ReflexFlow's alpha, which weighs the loss of each cell by what the
            model no longer predicts there; one more forward, which `rollout/forwards` does not count. 0 is off; the
            paper's 1 changes next to nothing.
    """

    def __init__(
        self,
        max_step_offset: int,
        probability: float = 0.5,
        start_step: int = 0,
        ramp_steps: int = 0,
        ramp_shape: RampShape = "linear",
        strategy: Strategy = "uniform",
        sampler: Sampler = "unipc",
        order: int | None = None,
        step_stride: int | None = None,
        target: RolloutTarget = "corrected",
        anti_drift: float = 0.0,
        frequency_compensation: float = 0.0,
    ) -> None:
        self.options = RolloutOptions(
            max_step_offset=max_step_offset,
            probability=probability,
            start_step=start_step,
            ramp_steps=ramp_steps,
            ramp_shape=ramp_shape,
            strategy=strategy,
            sampler=sampler,
            order=order,
            step_stride=step_stride,
            target=target,
            anti_drift=anti_drift,
            frequency_compensation=frequency_compensation,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.options.check_process(pl_module.process)  # pyright: ignore[reportArgumentType]
        pl_module.rollout = self.options  # pyright: ignore[reportArgumentType]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        offsets = outputs["offsets"]
        if offsets is None or not every or trainer.global_step % every:
            return
        pl_module.log("rollout/forwards", offsets.max().float(), rank_zero_only=True)
        pl_module.log("rollout/share", (offsets > 0).float().mean(), rank_zero_only=True)
