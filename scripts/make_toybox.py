"""Makes the toybox model from nothing: draws the scenes, trains CLIP, the VAE, the judge, the VAE's decoder
once more, the tiny autoencoder and the denoiser, and writes them in half precision.

    python scripts/make_toybox.py --work /tmp/toybox --output dreamlit/toybox/weights --threads 2

Every stage goes on where it was interrupted; a stage that is done is not done again, and one that was made with another
seed, other scenes or other networks before it is refused. On two CPU cores with bfloat16 instructions it takes about
four and a half hours, half of them for the denoiser; `--device cuda` takes minutes. The log of each stage is copied
beside the weights.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
from typing import Any

import torch

from dreamlit.errors import DreamlitError
from dreamlit.toybox.folders import writable
from dreamlit.toybox.making import denoising, networks, stages
from dreamlit.toybox.making.data import load_or_draw
from dreamlit.toybox.making.loop import Training, fingerprint
from dreamlit.toybox.making.tokenizer import write_tokenizer

STAGES = ("clip", "vae", "judge", "decoder", "taesd", "denoiser")
STEPS = {"clip": 600, "vae": 8500, "judge": 1500, "decoder": 9000, "taesd": 3000, "denoiser": 5000}
PARENTS = {"decoder": ("vae",), "taesd": ("decoder",), "denoiser": ("vae", "clip")}
"""The stages whose networks a stage learns from."""
SCENES, FIRST_SEED = 36000, 1000


class Maker:
    """Runs stages and keeps what later ones need."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work: pathlib.Path = options.work
        self.work.mkdir(parents=True, exist_ok=True)
        self.data = load_or_draw(self.work, options.scenes, FIRST_SEED, options.threads)
        write_tokenizer(self.work / "tokenizer")
        from transformers import CLIPTokenizer

        self.tokenizer = CLIPTokenizer.from_pretrained(self.work / "tokenizer")
        self.common: dict[str, Any] = {"seed": options.seed, "device": options.device}
        self.trained: dict[str, Any] = {}

    def training(self, stage: str) -> Training:
        parents = {name: self.get(name) for name in PARENTS.get(stage, ())}
        origins = {name: fingerprint(network) for name, network in parents.items()}
        named = stage in (self.options.stage or STAGES)
        options: dict[str, Any] = {
            "steps": (named and self.options.steps) or STEPS[stage],
            "made_of": {"seed": self.options.seed, "scenes": self.options.scenes, **origins},
            "work": self.work,
            **self.common,
        }
        inputs: list[Any] = [*self.encoded(parents, origins)] if stage == "denoiser" else [self.data, *parents.values()]
        torch.manual_seed(self.options.seed)  # of the initial weights, whatever was trained before
        if stage == "denoiser":
            return denoising.denoiser(*inputs, **options)
        if stage == "clip":
            return stages.clip(self.data, self.tokenizer, bfloat16=True, **options)
        make = {"vae": stages.vae, "judge": stages.judge, "decoder": stages.decoder, "taesd": stages.tiny_autoencoder}
        return make[stage](*inputs, bfloat16=True, **options)

    def encoded(self, parents: dict[str, Any], origins: dict[str, str]) -> tuple[Any, torch.Tensor]:
        """Latents by size, and text states; kept under the scenes and networks that they were made with."""
        kept = self.work / f"encoded-{self.options.scenes}-{origins['vae']}-{origins['clip']}.pt"
        if not kept.exists():
            found, states = denoising.encode(
                self.data, parents["vae"], parents["clip"], self.tokenizer, self.options.device
            )
            part = kept.with_suffix(".part")
            torch.save([{size: (one.latents, one.captions) for size, one in found.items()}, states], part)
            part.rename(kept)
        pairs, states = torch.load(kept, weights_only=True)
        cover = {size: torch.from_numpy(scenes.cover) for size, scenes in self.data.items()}
        return {size: denoising.Encoded(*pair, cover=cover[size]) for size, pair in pairs.items()}, states

    def get(self, stage: str) -> Any:
        """The trained network of a stage; trains it first if need be."""
        if stage not in self.trained:
            training = self.training(stage)
            network: Any = training.run().requires_grad_(False)
            if stage == "vae":
                scale = denoising.latent_scale(self.data[stages.SQUARE], network, self.options.device)
                network.register_to_config(scaling_factor=scale)
            self.trained[stage] = network
        return self.trained[stage]

    def write(self, output: pathlib.Path) -> None:
        """The model in diffusers' layout, CLIP, the tiny autoencoder and the judge, in float16, and the logs."""
        from safetensors.torch import save_file

        # All of them before any is rounded: stages learn from each other's networks, on the device.
        made = {stage: self.get(stage) for stage in STAGES}
        clip = made["clip"].to("cpu", torch.float16)
        text = networks.library("transformers").CLIPTextModel(clip.config.text_config)
        text.load_state_dict(clip.text_model.state_dict())
        pipeline = (
            networks.library("diffusers")
            .StableDiffusionPipeline(
                vae=made["decoder"].to("cpu"),
                text_encoder=text,
                tokenizer=self.tokenizer,
                unet=made["denoiser"].to("cpu"),
                scheduler=networks.scheduler(),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
            .to(torch.float16)
        )
        pipeline.save_pretrained(output / "model", variant=None)
        clip.save_pretrained(output / "clip")
        write_tokenizer(output / "clip")
        processor = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 64},
            "crop_size": {"height": 64, "width": 64},
            "resample": 3,
            "image_mean": [stages.CLIP_MEAN] * 3,
            "image_std": [stages.CLIP_STD] * 3,
        }
        (output / "clip" / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")
        made["taesd"].to("cpu", torch.float16).save_pretrained(output / "taesd")
        (output / "judge").mkdir(exist_ok=True)
        judge = {key: value.half().contiguous() for key, value in made["judge"].to("cpu").state_dict().items()}
        save_file(judge, output / "judge" / "model.safetensors")
        (output / "logs").mkdir(exist_ok=True)
        for stage in STAGES:
            if (log := self.work / f"{stage}.jsonl").exists():  # fewer than 50 steps leave none
                shutil.copy(log, output / "logs")
        for path in output.rglob("*.safetensors"):
            path.chmod(0o644)  # the writers leave them for their owner alone
        size = sum(path.stat().st_size for path in output.rglob("*.safetensors"))
        print(f"{output}: {size / 1e6:.1f} MB of weights")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder of scenes, checkpoints and logs")
    parser.add_argument("--output", type=pathlib.Path, help="where the weights go; without it only the stages run")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this stage (and what it needs)")
    parser.add_argument("--steps", type=int, help="other number of steps, for the stages named")
    parser.add_argument("--scenes", type=int, default=SCENES, help="training scenes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        if options.output:
            writable(options.output)
        maker = Maker(options)
        for stage in options.stage or STAGES:
            maker.get(stage)
        if options.output:
            maker.write(options.output)
    except DreamlitError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
