"""Messages of libraries that are known to mean nothing here, silenced one by one so that real warnings are seen."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

HARMLESS = (
    r".*LeafSpec.* is deprecated",  # Lightning's own use of a torch function
    r"Total length of `list` across ranks is zero",  # a run without an evaluation set
    r"Found \d+ module\(s\) in eval mode at the start of training",  # the frozen base model is meant to be
    r"The 'train_dataloader' does not have many workers",  # latents come from the cache: reading them takes no time
    r"The 'val_dataloader' does not have many workers",
    r"The '(test|predict)_dataloader' does not have many workers",
    r"You're resuming from a checkpoint that ended before the epoch ended",  # the datamodule knows its place
    r"You have overridden `transfer_batch_to_device` in `LightningModule`",  # on purpose: it is the faster one
    r"Checkpoint directory .* exists and is not empty",
    r"The number of training batches .* is smaller than the logging interval",
    r"It is recommended to use `self.log\('loss/(val|test)['/-]",  # it is summed over all ranks before it is logged
    r".*TypedStorage is deprecated",  # torchao
    r"TorchaoLoraLinear was instantiated without",  # merging in place is not done here
    r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`",
)

LOGGERS = {
    "torchao": logging.ERROR,  # "Failed to load ..._C_mxfp8": kernels for other hardware
    "torch.utils._pytree": logging.ERROR,  # torchao registers enums in an old way
    "diffusers.quantizers.torchao.torchao_quantizer": logging.ERROR,
    "bitsandbytes.backends.cpu.ops": logging.ERROR,  # an optional kernel
    "bitsandbytes.autograd._functions": logging.ERROR,  # int8 rounds its inputs to float16: said at every layer
    "lightning.pytorch.trainer.connectors.checkpoint_connector": logging.WARNING,  # `weights_only` was not set
    "lightning.pytorch.utilities.rank_zero": logging.WARNING,  # advertisements and device lists
}


FILTERED = {
    "LyCORIS": "using full matrix mode",  # repeats what `LyCORIS.rank` documents
    "transformers.utils.import_utils": "requires torchvision",  # pictures are prepared with Pillow on purpose
}
"""Parts of messages of loggers that set their own level."""


def quieten() -> None:
    """Hides the messages above; everything else is shown."""
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    for name, level in LOGGERS.items():
        logging.getLogger(name).setLevel(level)
    for name, text in FILTERED.items():
        logging.getLogger(name).addFilter(lambda record, text=text: text not in record.getMessage())


@contextlib.contextmanager
def no_weight_bars() -> Iterator[None]:
    """Hides transformers' bar over the tensors of a local file: milliseconds, and it breaks into our own bars."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
