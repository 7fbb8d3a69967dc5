"""The LightningModule: one training step, its optimizer, and a state that holds only what is trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from dreamlit import resume
from dreamlit.adapters import Adapter
from dreamlit.evaluating import WEIGHTS, Evaluation, Measured
from dreamlit.export import load_into_adapter
from dreamlit.families import Family
from dreamlit.non_finite import NonFinite, judged_gradients, known_first
from dreamlit.objective import Losses, Objective
from dreamlit.optimisation import Schedule, apply_options, check_schedule, schedule
from dreamlit.outputs import Outputs
from dreamlit.predictions import Predictions, rows_of
from dreamlit.process import Process
from dreamlit.quantisation import NO_CHANGE, Precision
from dreamlit.reflex import drift_terms
from dreamlit.rollout import rollout, rollout_target
from dreamlit.rollout_options import RolloutOptions
from dreamlit.seeds import reseed
from dreamlit.step_sums import StepSums
from dreamlit.types import Batch


class DreamBooth(Predictions, Outputs):
    """A pretrained model family, an adapter on its denoiser, and the objective that trains it.

    Args:
        family: The pretrained model: `SD`, `SDXL` or your own subclass of `dreamlit.families.Family` by dotted path.
        adapter: What is trained: `LoRA`, `LyCORIS`, `Full` or your own subclass of `dreamlit.adapters.Adapter`.
        objective: Loss, weighting, timesteps, noise, prior preservation and masks.
        optimizer: An optimizer class of torch or of your own, with its options; `optimizer.lr` is the learning rate.
        lr_scheduler: How the learning rate changes over the run.
        lr_warmup_steps: Optimizer steps in which the learning rate rises from 0; not for `constant`.
        init_from: Adapter file whose weights the run starts from (a new run: steps and optimizer start afresh).
        base_model_precision: Stores the frozen denoiser's linear layers in few bits: less memory, for adapters only.
            `dreamlit precisions` tells which levels work on this machine. The rest stays in the family's `dtype`.
        text_encoder_1_precision: The same for the first text encoder.
        text_encoder_2_precision: The second one.
        text_encoder_3_precision: The third one.
        text_encoder_4_precision: The fourth one.
        max_skipped_steps: Optimizer steps that the run may leave out because their loss or gradient is not finite (NaN
            or infinite): such a step changes nothing, and a warning names its samples. At one more the run stops.
        seed: Set by `seed_everything`.
    """

    def __init__(
        self,
        family: Family,
        adapter: Adapter,
        objective: Objective = Objective(),  # noqa: B008  (frozen)
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-4),
        lr_scheduler: Schedule = "constant",
        lr_warmup_steps: int = 0,
        init_from: str | None = None,
        base_model_precision: Precision = "no_change",
        text_encoder_1_precision: Precision = "no_change",
        text_encoder_2_precision: Precision = "no_change",
        text_encoder_3_precision: Precision = "no_change",
        text_encoder_4_precision: Precision = "no_change",
        max_skipped_steps: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_schedule(lr_scheduler, lr_warmup_steps)
        self.family = family
        self.adapter = adapter
        self.objective = objective
        self.optimizer_factory = optimizer
        self.lr_scheduler: Schedule = lr_scheduler
        self.lr_warmup_steps = lr_warmup_steps
        self.init_from = init_from
        self.base_model_precision: Precision = base_model_precision
        self.text_encoder_precisions: tuple[Precision, ...] = (
            *(text_encoder_1_precision, text_encoder_2_precision),
            *(text_encoder_3_precision, text_encoder_4_precision),
        )
        family.store(base_model_precision, self.text_encoder_precisions)
        self.non_finite = NonFinite(max_skipped_steps)
        self.step_skipped = False
        """Whether the last optimizer step was left out: a callback that follows the weights leaves it out too."""
        self.seed = seed
        self.run_facts: dict[str, Any] = {}
        """What a checkpoint says about its run: filled by whoever knows it (the command, the datamodule)."""
        self.regularised = True
        """Whether there are regularisation samples; the datamodule knows. `Full` keeps no copy of the base without."""
        self.class_prompts = False
        """Whether datasets have class prompts; the datamodule knows."""
        self.prior_loss_weight = objective.prior_loss_weight
        """The objective's, unless a callback steers it."""
        self.rollout = RolloutOptions()
        """Scheduled sampling, off unless the callback `ScheduledSampling` turns it on."""
        self.eval_passes: tuple[str, ...] = (WEIGHTS,)
        """What an evaluation measures; with an `EMA` for `validation` also its average (`dreamlit.evaluating`)."""
        self.before_loading: list[Callable[[], None]] = []
        """What callbacks want done when the data is ready and there is no denoiser yet: put there in their `setup`."""
        self.denoiser: torch.nn.Module | None = None
        self.step_sums = StepSums()
        """The losses of the latest optimizer step."""

    @functools.cached_property
    def process(self) -> Process:
        """The noise process of the family, from the model's own scheduler configuration."""
        return self.family.process()

    @functools.cached_property
    def beside_denoiser(self) -> dict[str, str]:
        """What else of the model decides the targets, as hashes: as it was when the run first asked for them."""
        return resume.beside(self.family)

    # loading ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Does what callbacks wanted done first; Lightning calls it after the `setup` of all of them."""
        while self.before_loading:
            self.before_loading.pop(0)()

    def configure_model(self) -> None:
        """Loads the denoiser and attaches the adapter; doing it again changes nothing."""
        if self.denoiser is not None:
            return
        prior = self.class_prompts or (self.objective.prior_target == "base_model" and self.regularised)
        teacher = prior or self.objective.unmasked_target == "base_model"
        # Lightning calls this with the accelerator as torch's default device, where other generators draw.
        with torch.device("cpu"):
            packed = self._trainer is not None and self.base_model_precision != NO_CHANGE
            # Few bits are packed by the device that will use them.
            self.family.load("denoiser", device=self.trainer.strategy.root_device if packed else "cpu")
            self.adapter.attach(self.family.denoiser, seed=self.seed, teacher_needed=teacher)
        self.family.prepare_denoiser()
        self.denoiser = self.family.denoiser
        for name, extra in self.adapter.modules_to_register().items():
            self.add_module(name, extra)
        if self.init_from:
            load_into_adapter(self.init_from, self.adapter)
        trained = {id(p) for p in self.adapter.parameters().values()}
        # DDP neither broadcasts nor watches the frozen base: every rank has loaded the same one.
        self._ddp_params_and_buffers_to_ignore = [n for n, p in self.named_parameters() if id(p) not in trained]
        self._ddp_params_and_buffers_to_ignore += [n for n, _ in self.named_buffers()]

    def noise_source(self) -> Any:
        """(sample id, visit, latent shape) -> timestep and noise, for the loader: pure, and fit for its workers."""
        return functools.partial(self.objective.draw, self.process, self.seed)

    # training -----------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Module dropout depends on the batch's place in the plan and the rank, not on what ran before."""
        reseed(self.device, self.seed, "step", batch.position, self.global_rank)

    def losses(self, batch: Batch, offsets: Tensor | None = None) -> Losses:
        """The objective on one batch. offsets [B]: steps that the model goes to x_t itself (`dreamlit.rollout`)."""
        batch = self.family.conditioned(batch, self.seed)
        x_t = on_path = self.process.noise(batch.latents, batch.input_eps, batch.t)
        target = self.process.target(batch.latents, batch.eps, batch.t)
        drift = None
        if offsets is not None and offsets.any():
            places = self.process.sized(batch.latents.shape), batch.latents
            x_t = rollout(self.as_it_samples(batch), *places, batch.input_eps, batch.t, offsets, self.rollout)
            target = rollout_target(*places, batch.eps, batch.t, x_t, offsets, self.rollout)
            if self.rollout.reflex:
                chosen = (offsets > 0) & self.objective.learns_photo(batch)
                drift = drift_terms(self.as_it_samples(batch), on_path, x_t, batch, chosen, self.rollout)
        base = self.base_prediction(x_t, batch, self.objective.needs_base(batch))
        taught, asked, rows = None, (), batch.class_rows
        if rows is not None and len(rows):  # before the model's own forward: `Full` puts other weights in place
            asked = rows_of(batch, x_t, rows, batch.class_conditioning)
            taught = self.by_base(*asked)
        prediction = self.family.predict(x_t, batch.t, batch.conditioning, batch.frame, denoiser=self.denoiser)
        of_class = None if taught is None else (self.family.predict(*asked, denoiser=self.denoiser), taught)
        weight = self.prior_loss_weight
        return self.objective.losses(self.process, prediction, target, batch, base, of_class, weight, drift)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        offsets = None
        if self.rollout.on:
            process = self.process.sized(batch.latents.shape)
            offsets = self.rollout.offsets(process, self.seed, batch.keys, batch.t, self.global_step)
        losses = self.losses(batch, offsets)
        self.non_finite.see(batch, losses.per_sample, batch_idx % self.trainer.accumulate_grad_batches == 0)
        self._log_losses(losses, batch_idx)
        told = {"per_sample": losses.per_sample, "of_class": losses.of_class, "keys": batch.keys, "offsets": offsets}
        return {"loss": losses.total, **told}

    def _log_losses(self, losses: Losses, batch_idx: int) -> None:
        self.step_sums.add(losses, batch_idx % self.trainer.accumulate_grad_batches == 0, self.trainer.world_size)
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if not every or (self.global_step + 1) % every:
            # Lightning's log takes a millisecond for each value; a callback that monitors the loss still finds one.
            self.trainer.callback_metrics["loss"] = self.step_sums.loss
            return
        self.log("loss", self.step_sums.loss, prog_bar=True, rank_zero_only=True)
        # Without a sample of a role its mean is 0 / 0, NaN; left out, loggers would repeat the last one.
        self.log("loss/instance", self.step_sums.instance, rank_zero_only=True)
        self.log("loss/prior", self.step_sums.prior, rank_zero_only=True)
        if self.class_prompts:
            self.log("loss/class", self.step_sums.of_class, rank_zero_only=True)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Takes the step where its loss and gradient are finite. To know that, it waits for the device."""
        assert optimizer_closure is not None
        loss = optimizer_closure()  # the last batch of the step, forward and backward
        gradients = judged_gradients(self.trainer, optimizer)
        self.step_skipped = not self.non_finite.is_finite(self.step_sums.total, gradients)
        if self.step_skipped:
            self.non_finite.skip(self.trainer, self)
        else:
            optimizer.step(closure=known_first(loss, optimizer_closure))

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if not self.step_skipped:
            super().lr_scheduler_step(scheduler, metric)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if self.non_finite.max_skipped_steps and every and self.global_step % every == 0:
            self.log("skipped", float(self.non_finite.skipped), rank_zero_only=True)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a batch's tensors; Lightning's way copies the whole dataclass first, piece by piece."""
        if not isinstance(batch, Batch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        return batch.moved_to(device)

    def on_validation_model_zero_grad(self) -> None:
        """Frees the gradients before an evaluation: only the adapter has any, and walking the whole model is slow."""
        for parameter in self.adapter.parameters().values():
            parameter.grad = None

    # evaluation ---------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._evaluation = Evaluation(self.eval_passes)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluation.add(dataloader_idx, batch, self.losses(batch).per_sample)

    def evaluated(self) -> dict[str, Measured]:
        """What the evaluation has measured: "" the weights, "-ema" their average. At its end, and on every rank."""
        return self._evaluation.measured(self.trainer.world_size)

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("loss/val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("loss/test")

    def _log_evaluation(self, name: str) -> None:
        for what, measured in self.evaluated().items():
            self.log(f"{name}{what}", torch.tensor(measured.mean), rank_zero_only=True, prog_bar=True)

    # optimizer ----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_factory(self.adapter.parameters().values())
        steps = self.trainer.estimated_stepping_batches
        scheduler = schedule(optimizer, self.lr_scheduler, self.lr_warmup_steps, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # state --------------------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Only what is trained: the base model is named by its fingerprint, not copied."""
        return {name: p.detach() for name, p in self.adapter.parameters().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads trained weights; a missing or unexpected name is an error that names it."""
        self.adapter.load_state(dict(state_dict))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["dreamlit"] = {
            **{name: value for name, value in self.run_facts.items() if name != "allow_changes"},
            "base_fingerprint": self.family.fingerprint("denoiser"),
            "beside": self.beside_denoiser,
            "skipped_steps": self.non_finite.skipped,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        allowed = self.run_facts.get("allow_changes", [])
        resume.refuse_other_base(checkpoint, self.family.fingerprint("denoiser"), allowed)
        if self.trainer.training:
            resume.refuse_other_targets(checkpoint, self.beside_denoiser, allowed)
            self.non_finite.skipped = checkpoint["dreamlit"].get("skipped_steps", 0)
            resume.refuse_other_data(checkpoint, self.run_facts["manifest_digest"], allowed)
            apply_options(self.optimizer_factory([torch.nn.Parameter(torch.zeros(1))]), checkpoint)
