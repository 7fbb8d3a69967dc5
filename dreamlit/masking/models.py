"""The model folders that segmenters read: from the disk or the hub, checked, loaded whole and in float32."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dreamlit.families.fingerprints as fingerprints
from dreamlit.errors import ConfigError, ModelError
from dreamlit.families.files import ModelFiles, hub_file, hub_folder, read_json
from dreamlit.quiet import no_weight_bars

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SETTINGS = ["*.json", "*.txt", "*.model"]
WEIGHTS = r"(model|pytorch_model)\b.*\.(safetensors|bin)"


class ModelFolder:
    """One model in the transformers layout.

    Args:
        place: A local folder, or a hub id (owner/name), which is downloaded to the hub cache when it is needed.
        option: The command line's name for it, for messages.
    """

    def __init__(self, place: str, option: str = "--model") -> None:
        self.place, self.option = place, option
        self.local = pathlib.Path(place).expanduser()
        if not self.local.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
            raise ModelError(f"{option} {place}: no such folder; give a local folder or a hub id (owner/name)")
        if self.local.is_file():
            raise ModelError(f"{option} {place}: a file; give the folder that holds config.json and the weights")

    @property
    def is_hub(self) -> bool:
        return not self.local.exists()

    @functools.cached_property
    def files(self) -> ModelFiles:
        return ModelFiles(self.place, option=self.option)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """What config.json says; of a hub model no other file is fetched. Errors: `ModelError`."""
        path = hub_file(self.files, "config.json") if self.is_hub else self.local / "config.json"
        if not path.is_file():
            raise ModelError(f"{path}: no such file; give {self.option} a model in the transformers layout")
        return read_json(path)

    def is_here(self) -> bool:
        """Whether nothing has to be downloaded."""
        if not self.is_hub:
            return True
        try:
            return has_weights(hub_folder(ModelFiles(self.place, local_files_only=True), [*SETTINGS, "*.safetensors"]))
        except ModelError:
            return False

    def folder(self) -> pathlib.Path:
        """The folder with its weights; a hub model is fetched. Errors: `ModelError`."""
        found = self._folder([*SETTINGS, "*.safetensors"])
        if self.is_hub and not has_weights(found):
            found = self._folder([*SETTINGS, "*.bin"])  # older models have no safetensors
        if not has_weights(found):
            names = ", ".join(sorted(path.name for path in found.iterdir()))
            raise ModelError(f"{self.place}: no weights (model.safetensors); there is {names or 'nothing'}")
        return found

    def fingerprint(self) -> str:
        """A digest of all that decides what the model does. Errors: `ModelError`."""
        folder = self.folder()
        own = [path for path in sorted(folder.iterdir()) if decides(path.name)]
        try:
            digests = [[path.name, fingerprints.file_digest(path)] for path in own if path.name != "config.json"]
        except OSError as error:
            raise ModelError(f"{folder}: cannot be read ({error})") from None
        return fingerprints.of([fingerprints.clean(self.config), digests])

    def _folder(self, patterns: list[str]) -> pathlib.Path:
        return hub_folder(self.files, patterns) if self.is_hub else self.local

    def weights(self, kind: Any, device: Any) -> Any:
        """The model of class `kind`, in eval mode, float32, on a device.

        Raises:
            ModelError: when files are missing, damaged, incomplete or of another kind of model.
            ConfigError: when the device cannot be used.
        """
        import torch

        folder = self.folder()
        # weights that are missing would be drawn
        with self.reading(), no_weight_bars(), torch.random.fork_rng(devices=[]):
            model, report = kind.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, local_files_only=True
            )
        missing = sorted([*report["missing_keys"], *(str(key) for key in report.get("mismatched_keys", ()))])
        if missing:
            raise ModelError(f"{self.place}: {len(missing)} weights are missing, first {missing[0]}; download it again")
        try:
            return model.eval().requires_grad_(False).to(device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"--device {device} cannot be used for {self.place}: {error}") from None

    def tokenizer(self) -> Any:
        """Its tokenizer. Errors: `ModelError`."""
        with self.reading():
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self.folder(), trust_remote_code=False)
        known = (self.config.get("text_config") or {}).get("vocab_size", len(tokenizer))
        # transformers makes an empty tokenizer where the files are missing
        if not known / 2 < len(tokenizer) <= known:
            raise ModelError(f"{self.place}: the tokenizer has {len(tokenizer)} tokens, the model {known}; files miss")
        return tokenizer

    def processor(self) -> Any:
        """What prepares its pictures, by Pillow, whatever else is installed. Errors: `ModelError`."""
        with self.reading():
            from transformers import AutoImageProcessor

            # Pillow's resizing and torchvision's differ: a mask must not depend on which is installed
            return AutoImageProcessor.from_pretrained(self.folder(), backend="pil", trust_remote_code=False)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Quietly; the many errors of the libraries below as one that says what to do."""
        from transformers.utils import logging

        level = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            yield
        except ModelError:
            raise
        except Exception as error:  # safetensors, tokenizers and transformers let errors of many kinds through
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"{self.place}: cannot be loaded ({type(error).__name__}: {cause}). Download it again, with "
                "config.json, preprocessor_config.json, its tokenizer where it reads text, and the weights"
            ) from None
        finally:
            logging.set_verbosity(level)


def decides(name: str) -> bool:
    """Whether a file of a model folder has a part in its results."""
    return bool(re.fullmatch(WEIGHTS, name)) or (pathlib.PurePath(name).suffix in (".json", ".txt", ".model"))


def has_weights(folder: pathlib.Path) -> bool:
    return folder.is_dir() and any(re.fullmatch(WEIGHTS, path.name) for path in folder.iterdir())


def pixels(processor: Any, photos: list[np.ndarray]) -> Any:
    """What a processor makes of photos uint8 [H, W, 3] of any sizes."""
    # the layout is said, because a picture three pixels high would be taken for one with channels first
    return processor(images=photos, input_data_format="channels_last", return_tensors="pt")


def full_size(values: Tensor, photo: np.ndarray) -> Tensor:
    """[h, w] in [0, 1] -> [H, W] of a photo [H, W, 3], bilinear, on the CPU.

    Raises:
        ModelError: when the model gave values that are not finite.
    """
    from torch.nn import functional

    if not values.isfinite().all():
        raise ModelError("the model gave values that are not finite; its weights are damaged")
    size = photo.shape[:2]
    return functional.interpolate(values.float().cpu()[None, None], size, mode="bilinear", align_corners=False)[0, 0]
