"""What the evidence bench compares: each arm is the quickstart with a few settings changed, and nothing else."""

from __future__ import annotations

import copy
import hashlib
import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dreamlit.toybox.subjects import SUBJECTS, TOKEN


@dataclass(frozen=True)
class Arm:
    """One setting. `changes` are laid over the run's configuration; a value of None removes the key."""

    name: str
    what: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    prior: bool = True
    masks: bool = True
    captions: bool = True
    """Captions that say where each photo was taken; else all photos have the same short prompt."""
    class_prompt: bool = False
    """A class prompt on the photos, the same for all."""
    class_words: bool = False
    """Class prompts that are the photos' captions with the class in the subject's place."""
    busy: bool = False
    """The five photos all have the same brick wall behind the subject, as a hasty photographer's have."""
    word: str = TOKEN
    """The subject's name, in captions and in the prompts that are scored."""
    trained: bool = True
    against: str = "lokr"
    """The arm that it is compared with: the one that differs in nothing else."""

    @property
    def photos(self) -> str:
        """The folder of its photos, in the bench's: by what is on them and what their captions call it."""
        kind = "busy" if self.busy else "photos"
        return kind if self.word == TOKEN else f"{kind}-{self.word}"


def _adapter(name: str, lr: float, **options: Any) -> dict[str, Any]:
    return {
        "model.adapter": {"class_path": name, "init_args": options},
        "model.optimizer.init_args.lr": lr,
    }


def _lokr(lr: float) -> dict[str, Any]:
    return {"model.optimizer.init_args.lr": lr}


def _callback(name: str, **options: Any) -> dict[str, Any]:
    return {"trainer.callbacks": [{"class_path": name, "init_args": options}]}


ROLLOUT = {"max_step_offset": 2, "probability": 0.5}
CONSTANT = {"model.lr_scheduler": "constant_with_warmup"}
PLAIN = "two"
"""The word of the best score, rare and plain, in `dreamlit tokens dreamlit/toybox/weights/model`.

The pick of its `--measure`, for the class of each subject, is `TOKEN`: the model tells it farthest apart."""
COMMON = "red"
"""A colour of the captions that the base model was trained with (score 0.24)."""
LR = 1e-3
"""The quickstart's learning rate."""
ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("base", "no adapter", trained=False),
        Arm("lokr", "LoKr, teacher prior, masks: the quickstart"),
        Arm("lora", "LoRA of rank 16 on the same layers", _adapter("LyCORIS", LR, algo="lora", rank=16, preset="full")),
        Arm("loha", "LoHa of rank 8 on the same layers", _adapter("LyCORIS", LR, algo="loha", rank=8, preset="full")),
        Arm("full", "all weights of the denoiser", _adapter("Full", 1e-4)),
        Arm("lokr-no-prior", "LoKr without class images", prior=False),
        Arm(
            "lokr-data-prior",
            "LoKr, class images themselves as targets, at the same weight of 30",
            {"model.objective.prior_target": "data"},
        ),
        Arm(
            "lokr-data-prior-1",
            "LoKr, class images themselves as targets, at a weight of 1 as in the paper",
            {"model.objective.prior_target": "data", "model.objective.prior_loss_weight": 1.0},
        ),
        Arm("lokr-weak-prior", "LoKr, the teacher at prior_loss_weight 1", {"model.objective.prior_loss_weight": 1.0}),
        Arm(
            "lokr-class-prompt",
            "LoKr without class images, the class held by one class prompt",
            prior=False,
            class_prompt=True,
        ),
        Arm(
            "lokr-class-words",
            "LoKr without class images, the class held by the captions with the class in the subject's place",
            prior=False,
            class_words=True,
        ),
        Arm(
            "lokr-prior-control",
            "LoKr, prior_loss_weight steered from 1 to a drift of 0.003, the quickstart's mean",
            {"model.objective.prior_loss_weight": 1.0, **_callback("PriorControl", target=0.003)},
        ),
        Arm("lokr-no-masks", "LoKr without masks", masks=False),
        Arm("lokr-short-prompt", "LoKr, the same prompt for every photo instead of captions", captions=False),
        Arm(
            "lokr-busy",
            "LoKr with masks as of a hasty photographer: the same wall behind every photo, one prompt, no class images",
            prior=False,
            captions=False,
            busy=True,
        ),
        Arm(
            "lokr-busy-no-masks",
            "the same without masks",
            prior=False,
            captions=False,
            masks=False,
            busy=True,
            against="lokr-busy",
        ),
        Arm("lokr-plain-word", f"LoKr, the subject's word is {PLAIN!r}: rare and plain, but hardly apart", word=PLAIN),
        Arm("lokr-common-word", f"LoKr, the subject's word is {COMMON!r}, which the base knows well", word=COMMON),
        Arm("lokr-lr-low", "LoKr at a third of the learning rate", _lokr(LR / 3)),
        Arm("lokr-lr-high", "LoKr at three times the learning rate", _lokr(LR * 3)),
        Arm("lokr-ema", "the average of LoKr's weights", _callback("EMA", decay=0.99)),
        Arm("lokr-constant", "LoKr at a constant learning rate", CONSTANT),
        Arm(
            "lokr-constant-ema",
            "the average of that one's weights",
            {**CONSTANT, **_callback("EMA", decay=0.99)},
            against="lokr-constant",
        ),
        Arm("lokr-rollout", "LoKr, rollout with the corrected target", _callback("ScheduledSampling", **ROLLOUT)),
        Arm(
            "lokr-rollout-original",
            "LoKr, rollout with the original target",
            _callback("ScheduledSampling", **ROLLOUT, target="original"),
        ),
        Arm("lokr-perturbed", "LoKr, input perturbation of 0.1", {"model.objective.input_perturbation": 0.1}),
    )
}


def put(config: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key; None removes it."""
    *path, last = key.split(".")
    for part in path:
        config = config.setdefault(part, {})
    if value is None:
        config.pop(last, None)
    else:
        config[last] = value


@dataclass(frozen=True)
class Trial:
    """One training run of the bench: an arm, a subject, a seed and a number of optimizer steps."""

    arm: Arm
    subject: str
    seed: int
    steps: int

    def config(self, base: Mapping[str, Any], work: pathlib.Path) -> dict[str, Any]:
        """The configuration that `dreamlit fit` gets. base: the quickstart's; work: the bench's folder."""
        config: dict[str, Any] = copy.deepcopy(dict(base))
        kind = SUBJECTS[self.subject].individual.kind
        photos = work / self.arm.photos
        subject, masks, of_class = config["data"]["datasets"]
        subject["instance_data_dir"] = str(photos / self.subject)
        if not self.arm.captions:
            subject |= {"caption_strategy": "instanceprompt", "instance_prompt": f"a photo of {self.arm.word} {kind}"}
        if self.arm.class_prompt:
            subject["class_prompt"] = f"a photo of a {kind}"
        if self.arm.class_words:
            subject["class_words"] = {f"{self.arm.word} {kind}": f"a {kind}"}
        masks["instance_data_dir"] = str(photos / f"{self.subject}_masks")
        of_class["instance_data_dir"] = str(work / "class" / kind)
        datasets = [subject]
        if self.arm.masks:
            datasets.append(masks)
        else:
            del subject["conditioning_data"]
        if self.arm.prior:
            datasets.append(of_class)
        elif not (self.arm.class_prompt or self.arm.class_words):
            put(config, "model.objective.prior_loss_weight", None)
        config["data"] |= {"datasets": datasets, "cache_dir": str(work / "cache")}
        config["seed_everything"] = self.seed
        config["trainer"] |= {"max_steps": self.steps, "enable_progress_bar": False}
        config["trainer"].pop("callbacks", None)
        config["checkpoint"]["every_n_steps"] = self.steps
        for key, value in self.arm.changes.items():
            put(config, key, copy.deepcopy(value))
        return config

    def name(self, base: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
        """Readable, and a hash of everything that decides the result: another setting is another trial."""
        config = self.config(base, pathlib.Path("work"))
        # Where the package lies does not; `facts` has a hash of the weights.
        config["model"]["family"]["init_args"] = {**config["model"]["family"]["init_args"], "path": "model"}
        text = json.dumps([config, facts], sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
        return f"{self.arm.name}-{self.subject}-{self.seed}-{self.steps}-{digest}"
