"""Pictures and texts as unit vectors, by any CLIP or DINO folder.

N pictures or texts, D numbers in an embedding, H x W pixels.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dreamlit.encoder_input import check_processor, input_size, pixels_of, processed
from dreamlit.errors import ConfigError, DataError, ModelError
from dreamlit.quiet import no_weight_bars

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    Picture = Image | np.ndarray
    """A PIL picture, or an array [H, W, 3]: uint8, or floats in [0, 1], which are rounded to 8 bits."""

KINDS = {
    "clip": "CLIPModel",
    "vit": "ViTModel",  # DINO (v1)
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
}
"""`model_type` in an encoder's config.json -> class in transformers."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CLIP_COLOURS = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
IMAGENET_COLOURS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


class ImageEncoder:
    """Embeds pictures, and with CLIP texts, as unit vectors; the model is loaded once, when it is first needed.

    A picture's embedding is CLIP's projected image feature, or for DINO (a ViT; v2 with or without registers) the CLS
    token after the last layer norm (DreamBooth used DINO ViT-S/16: Caron et al. 2021, arXiv 2104.14294). Pictures are
    prepared as the folder's preprocessor_config.json says, by its Pillow version whatever else is installed; without
    that file the shorter side is resized to the encoder's size (bicubic), the middle cut out, and the colours
    normalised as for CLIP or ImageNet. Not an `nn.Module`, so that its weights stay out of a run's checkpoints.

    Args:
        path: Folder in the transformers layout, or hub id. Pickled weights are read as tensors only.
        device: Where the model runs; embeddings come back on the CPU.
        dtype: `float32`, `float16` or `bfloat16`. Only in float32 does batch_size change results by less than 1e-6.
        batch_size: Pictures or texts in one forward.
        revision: Branch, tag or commit of a hub id.
        local_files_only: Take a hub id from the local hub cache.

    Raises:
        ConfigError: when an option cannot be used.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        *,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        batch_size: int = 16,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype!r} cannot be used. Allowed: {', '.join(DTYPES)}")
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size}: at least 1 is needed")
        try:
            self.device = torch.device(device)
        except RuntimeError:
            raise ConfigError(f"device {device!r} is none; examples: cpu, cuda, cuda:1, mps") from None
        self.path, self.folder = str(path), pathlib.Path(path).expanduser()
        if revision and self.folder.exists():
            raise ConfigError(f"revision {revision!r} does nothing for a folder ({path}); leave it out")
        self.dtype, self.batch_size = DTYPES[dtype], batch_size
        self._place = str(self.folder) if self.folder.exists() else self.path
        self._hub = {"revision": revision, "local_files_only": local_files_only}
        self._model: Any = None
        self._processor: Any = None
        self._tokenizer: Any = None

    def check(self) -> None:
        """Cheap check before anything loads; a hub id is only checked when it is loaded.

        Raises:
            ModelError: when the folder is missing, has no weights or no usable config.json.
        """
        if not self.folder.exists():
            if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.path):
                return
            raise ModelError(f"{self.path}: no such folder; give a folder of CLIP or DINO, or a hub id (owner/name)")
        if not self.folder.is_dir():
            raise ModelError(f"{self.path}: a file; give the folder that holds config.json and the weights")
        file = self.folder / "config.json"
        try:
            _model_class(json.loads(file.read_text(encoding="utf-8")), self.path)
        except FileNotFoundError:
            raise ModelError(f"{file}: no such file; is this the folder of a CLIP or DINO model?") from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{file}: not readable as JSON ({error}); download it again") from None
        names = [path.name for path in self.folder.iterdir()]
        if not any(re.fullmatch(r"(model|pytorch_model)\b.*\.(safetensors|bin)(\.index\.json)?", n) for n in names):
            raise ModelError(f"{self.path}: no weights (model.safetensors); there is {', '.join(sorted(names))}")

    def load(self) -> None:
        """Load the model; loading twice is a no-op. The global random generator stays as it was.

        Raises:
            ModelError: when files are missing, damaged, incomplete or of another kind of model.
            ConfigError: when the device cannot be used.
        """
        if self._model is not None:
            return
        self.check()
        with _reading(self.path):
            from transformers import PreTrainedConfig

            config, _ = PreTrainedConfig.get_config_dict(self._place, **self._hub)
            name, model = _model_class(config, self.path), self._read_model(config)
            processor = self._read_processor(model.config)
        check_processor(processor, model.config, self.path)
        try:
            model.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device {self.device} cannot be used for {name}: {error}") from None
        self._model, self._processor = model, processor

    @contextlib.contextmanager
    def on(self, device: str | torch.device) -> Iterator[None]:
        """Moves a loaded model to another device and back, also after an exception: its memory there is free again."""
        home, self.device = self.device, torch.device(device)
        try:
            if self._model is not None:
                self._model.to(self.device)
            yield
        finally:
            self.device = home
            if self._model is not None:
                self._model.to(home)

    def unload(self) -> None:
        """Free the model's memory; the next use loads it again."""
        self._model = self._processor = self._tokenizer = None

    def embed_images(self, images: Sequence[Picture]) -> Tensor:
        """One unit vector for each picture: [N, D], float32, on the CPU. EXIF is applied, transparency laid on white.

        Raises:
            DataError: when there is no picture, or one cannot be read.
        """
        if len(images) == 0:
            raise DataError("no pictures to embed; at least one is needed")
        self.load()
        found = []
        for at in range(0, len(images), self.batch_size):
            batch = [pixels_of(image, at + i) for i, image in enumerate(images[at : at + self.batch_size])]
            pixels = processed(self._processor, batch).to(self.device, self.dtype)
            found.append(self._forward(self._image_features, pixels))
        return torch.cat(found)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """One unit vector for each text: [N, D], float32, on the CPU. A text longer than CLIP reads is cut, and told.

        Raises:
            DataError: when there is no text, or something that is not text.
            ModelError: when the encoder is not CLIP, or its tokenizer cannot be used.
        """
        if isinstance(texts, str) or len(texts) == 0 or not all(isinstance(text, str) for text in texts):
            raise DataError(f"a list of at least one text is needed, not {texts!r}")
        self.load()
        if not self.reads_text:
            raise ModelError(f"{self.path}: {type(self._model).__name__} embeds no text; give a CLIP folder")
        self._tokenizer = self._tokenizer or self._read_tokenizer()
        length, found = self._model.config.text_config.max_position_embeddings, []
        if cut := [text for text in texts if len(self._tokenizer(text, verbose=False)["input_ids"]) > length]:
            warnings.warn(
                f"CLIP reads {length} tokens; longer and cut: {len(cut)} texts, first {cut[0]!r}", stacklevel=2
            )
        for at in range(0, len(texts), self.batch_size):
            batch = list(texts[at : at + self.batch_size])
            tokens = self._tokenizer(batch, padding=True, truncation=True, max_length=length, return_tensors="pt")
            found.append(self._forward(self._text_features, tokens.to(self.device)))
        return torch.cat(found)

    @property
    def reads_text(self) -> bool:
        """Whether `embed_texts` works; loads the model."""
        self.load()
        return self._model.config.model_type == "clip"

    def _image_features(self, pixels: Tensor) -> Tensor:
        if self.reads_text:
            return self._model.get_image_features(pixel_values=pixels).pooler_output
        return self._model(pixel_values=pixels).last_hidden_state[:, 0]

    def _text_features(self, tokens: Any) -> Tensor:
        return self._model.get_text_features(**tokens).pooler_output

    def _forward(self, features: Any, inputs: Any) -> Tensor:
        # a run's own mixed precision must not decide what its scores are
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            found = features(inputs).float().cpu()
        if not found.isfinite().all():
            raise ModelError(f"{self.path}: embeddings in {self.dtype} are not finite; use float32")
        return torch.nn.functional.normalize(found, dim=-1)

    def _read_model(self, config: dict[str, Any]) -> Any:
        import transformers

        name = _model_class(config, self.path)
        kind: Any = getattr(transformers, name)
        options = {"add_pooling_layer": False} if name == "ViTModel" else {}  # DINO has none
        hush = no_weight_bars() if self.folder.exists() else contextlib.nullcontext()  # a download keeps its bar
        with hush, torch.random.fork_rng(devices=[]):  # weights that are missing would be drawn
            model, report = kind.from_pretrained(
                self._place, dtype=self.dtype, output_loading_info=True, **self._hub, **options
            )
        if missing := sorted(report["missing_keys"]):
            raise ModelError(f"{self.path}: {len(missing)} weights are missing, first {missing[0]}; download it again")
        return model.eval().requires_grad_(False)

    def _read_processor(self, config: Any) -> Any:
        from transformers import AutoImageProcessor, CLIPImageProcessorPil
        from transformers.models.auto.image_processing_auto import get_image_processor_config

        if get_image_processor_config(self._place, **self._hub):
            # Pillow's resizing and torchvision's differ: scores must not depend on which is installed
            return AutoImageProcessor.from_pretrained(self._place, backend="pil", trust_remote_code=False, **self._hub)
        height, width = input_size(config)
        colours = CLIP_COLOURS if config.model_type == "clip" else IMAGENET_COLOURS
        size = {"size": {"shortest_edge": max(height, width)}, "crop_size": {"height": height, "width": width}}
        return CLIPImageProcessorPil(**cast(Any, {**size, **colours}))

    def _read_tokenizer(self) -> Any:
        with _reading(self.path):
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self._place, trust_remote_code=False, **self._hub)
        known = self._model.config.text_config.vocab_size
        # transformers makes an empty tokenizer where the files are missing
        if not known / 2 < len(tokenizer) <= known:
            raise ModelError(
                f"{self.path}: the tokenizer has {len(tokenizer)} tokens, the model {known}; "
                "vocab.json and merges.txt (or tokenizer.json) are missing or another model's"
            )
        return tokenizer


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Quietly; the many errors of the libraries below as one that says what to do."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # a DINO without the pooler that nobody uses is reported at length
    logging.disable_progress_bar()
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # safetensors, tokenizers and the hub client let errors of many kinds through
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{path}: the encoder cannot be loaded ({type(error).__name__}: {cause}). Check the spelling, download it "
            "again, or without network give a local folder"
        ) from None
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _model_class(config: Any, path: str) -> str:
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in KINDS:
        raise ModelError(f"{path}: config.json says model_type {kind!r}; allowed for an encoder: {', '.join(KINDS)}")
    return KINDS[kind]
