"""Makes the toybox model from nothing: draws the scenes, trains CLIP, the VAE, the judge, the VAE's decoder
once more, the tiny autoencoder and the denoiser, and writes them in half precision.

    python scripts/make_toybox.py --work /tmp/toybox --output dreamlit/toybox/weights --threads 2

Every stage goes on where it was interrupted; a stage that is done is not done again. On two CPU cores with bfloat16
instructions it takes about three hours, most of them for the denoiser; `--device cuda` takes minutes. The log of each
stage is copied beside the weights.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
from typing import Any

import torch

from dreamlit.toybox.making import denoising, networks, stages
from dreamlit.toybox.making.data import load_or_draw
from dreamlit.toybox.making.loop import Training
from dreamlit.toybox.making.tokenizer import write_tokenizer

STAGES = ("clip", "vae", "judge", "decoder", "taesd", "denoiser")
STEPS = {"clip": 600, "vae": 8500, "judge": 1500, "decoder": 9000, "taesd": 3000, "denoiser": 5000}
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
        named = stage in (self.options.stage or STAGES)
        steps = {"steps": (named and self.options.steps) or STEPS[stage], **self.common}
        torch.manual_seed(self.options.seed)  # of the initial weights
        if stage == "clip":
            return stages.clip(self.data, self.tokenizer, self.work, bfloat16=True, **steps)
        if stage == "vae":
            return stages.vae(self.data, self.work, bfloat16=True, **steps)
        if stage == "judge":
            return stages.judge(self.data, self.work, bfloat16=True, **steps)
        vae = self.get("vae")
        if stage == "decoder":
            return stages.decoder(self.data, vae, self.work, bfloat16=True, **steps)
        if stage == "taesd":
            return stages.tiny_autoencoder(self.data, self.get("decoder"), self.work, bfloat16=True, **steps)
        return denoising.denoiser(*self.encoded(vae, self.get("clip")), self.work, **steps)

    def encoded(self, vae: Any, clip: Any) -> tuple[dict[stages.Size, denoising.Encoded], torch.Tensor]:
        """Latents and text states, kept under the latents' scale, which no two trainings share."""
        kept = self.work / f"encoded-{vae.config.scaling_factor:.6f}-rare.pt"
        if not kept.exists():
            found, states = denoising.encode(self.data, vae, clip, self.tokenizer, self.options.device)
            torch.save([{size: (one.latents, one.captions) for size, one in found.items()}, states], kept)
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

        clip = self.get("clip").to("cpu", torch.float16)
        text = networks.library("transformers").CLIPTextModel(clip.config.text_config)
        text.load_state_dict(clip.text_model.state_dict())
        pipeline = (
            networks.library("diffusers")
            .StableDiffusionPipeline(
                vae=self.get("decoder").to("cpu"),
                text_encoder=text,
                tokenizer=self.tokenizer,
                unet=self.get("denoiser").to("cpu"),
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
        self.get("taesd").to("cpu", torch.float16).save_pretrained(output / "taesd")
        (output / "judge").mkdir(exist_ok=True)
        judge = {key: value.half().contiguous() for key, value in self.get("judge").to("cpu").state_dict().items()}
        save_file(judge, output / "judge" / "model.safetensors")
        (output / "logs").mkdir(exist_ok=True)
        for stage in STAGES:
            shutil.copy(self.work / f"{stage}.jsonl", output / "logs")
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
    maker = Maker(options)
    for stage in options.stage or STAGES:
        maker.get(stage)
    if options.output:
        maker.write(options.output)


if __name__ == "__main__":
    main()
