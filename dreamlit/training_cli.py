"""The LightningCLI of dreamlit: layered configurations, short class names, errors that teach, resumes that compare."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from dreamlit import resume
from dreamlit.callbacks import shipped_callbacks
from dreamlit.callbacks.checkpoint import RunCheckpoint
from dreamlit.callbacks.progress import RunProgress
from dreamlit.cli import COMMANDS
from dreamlit.combinations import check_combinations, check_model, refuse_sharding, refuse_without_checkpoints
from dreamlit.datamodules.config_values import base_folder
from dreamlit.datamodules.dreambooth import DreamBoothData
from dreamlit.errors import ConfigError, nearest
from dreamlit.layers import config_paths, expand_layers, optimizer_class, read_config, with_flags
from dreamlit.logs import LOGGER_HELP, missing_package, run_loggers
from dreamlit.module import DreamBooth
from dreamlit.precision_checks import check_levels
from dreamlit.quiet import quieten
from dreamlit.run_folder import held, refuse_to_overwrite, write_config
from dreamlit.suggestions import cause_of, explained, option_names
from dreamlit.trainer import Trainer

SUBCOMMANDS: dict[str, set[str]] = {
    "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
    "validate": {"model", "dataloaders", "datamodule", "weights_only"},
    "test": {"model", "dataloaders", "datamodule", "weights_only"},
    "predict": {"model", "dataloaders", "datamodule", "weights_only", "return_predictions"},
    "prepare": {"model", "datamodule"},
    "plan": {"model", "datamodule"},
    "sample": {"model", "datamodule"},
    "export": {"model", "datamodule"},
    "class_images": {"model", "datamodule"},
}
"""The commands, each with the arguments of its Trainer method that are not for the command line."""

CKPT_PATH_HELP = {
    "fit": "Resume exactly from a checkpoint of the run: `last`, `best`, the path of one, or `auto` (the last one, or "
    "a new run if there is none).",
    "validate": "Checkpoint whose weights are used: `last`, `best` or its path; left out, the model as it starts.",
}
DEFAULT_LEARNING_RATE = 1e-4
ONCE_ONLY = ("config", "extends", "ckpt_path", "verbose")
"""Keys of one call, or already applied: they have no place in a resolved configuration."""


class Parser(LightningArgumentParser):
    """jsonargparse's parser with a suggestion in every error about a name."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        own = cause_of(ex) if ex else None
        raise own or ConfigError(explained(str(message), self, sys.argv[1:])) from ex

    def dump(self, *args: Any, **options: Any) -> str:
        """As text; what is dumped here was parsed, so that it is not checked again, which was most of the time."""
        return super().dump(*args, **{"skip_validation": True, **options})


class SaveResolvedConfig(SaveConfigCallback):
    """Writes the resolved configuration beside the outputs, as `config.yaml`: any command takes it as --config."""

    def setup(self, trainer: LightningTrainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        text = self.parser.dump(self.config, skip_none=False, format="yaml")
        resolved = {key: value for key, value in yaml.safe_load(text).items() if key not in ONCE_ONLY}
        path = pathlib.Path(trainer.default_root_dir) / "config.yaml"
        if kept := write_config(path, yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)):
            print(f"your {path} is {kept.name} now: a run keeps its resolved configuration there")


class DreamlitCLI(LightningCLI):
    """`dreamlit SUBCOMMAND --config run.yaml`: one configuration for all commands.

    Args:
        run_command: Whether to run the command after its parts are made and checked.
    """

    def __init__(self, run_command: bool = True) -> None:
        shipped_callbacks()
        self.run_command = run_command
        super().__init__(
            model_class=DreamBooth,
            datamodule_class=DreamBoothData,
            save_config_callback=SaveResolvedConfig,
            trainer_class=Trainer,
            # Evaluations under inference mode gain nothing here, and quanto's packed layers do not run in it.
            trainer_defaults={
                "default_root_dir": "runs/default",
                "use_distributed_sampler": False,
                "inference_mode": False,
            },
            seed_everything_default=0,
            parser_class=Parser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # the parser ---------------------------------------------------------------------------------------------------

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        # Abbreviations would read a misspelt key as another option.
        parser = super().init_parser(**{"prog": "dreamlit", "allow_abbrev": False, **kwargs})
        help_of(parser, "config", "A YAML or JSON file; several may be given, and later ones win key by key.")
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything",
            type=bool | int,  # bool is taken so that as_seed can say why it is refused
            default=self.seed_everything_default,
            help="Seed of the run, a whole number: every draw of data, noise and weights follows from it.",
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only the asked-for command's parser is built: eight of them would cost a second."""
        asked = next((word for word in sys.argv[1:] if word in SUBCOMMANDS), None)
        return {asked: SUBCOMMANDS[asked]} if asked else SUBCOMMANDS

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(
            klass, subcommand, **{**kwargs, "description": COMMANDS[subcommand.replace("_", "-")]}
        )
        if subcommand in ("fit", "validate", "test", "predict"):  # Lightning's words on it hold for other programs
            help_of(parser, "ckpt_path", CKPT_PATH_HELP.get(subcommand, CKPT_PATH_HELP["validate"]))
        help_of(parser, "trainer.default_root_dir", "Folder of the run: checkpoints, adapters, logs, config.yaml.")
        help_of(parser, "trainer.logger", LOGGER_HELP)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--extends",
            type=str | list[str],
            default=[],
            help="Configurations that this one builds on, read before it; paths relative to the file that names them.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_argument(
            "--allow_changes",
            type=list[str],
            default=[],
            help="On resume: prefixes of configuration keys that may differ from the checkpoint's, such as "
            "'model.objective'; 'data' allows a changed dataset, 'base' another base model or other files of it.",
        )
        # The default must be of the class that is asked for: the parser carries options of another one over to it.
        optimizer = {"class_path": optimizer_class(sys.argv[1:]), "init_args": {"lr": DEFAULT_LEARNING_RATE}}
        parser.set_defaults({"model.optimizer": optimizer})
        parser.link_arguments("seed_everything", "model.seed", compute_fn=as_seed)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=as_seed)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; a misspelt top-level key of a file is an error even where its value is empty."""
        allowed = {name.split(".")[0] for name in option_names(parser)}
        for path in config_paths(sys.argv[1:]):
            for key in read_config(path):
                if key not in allowed:
                    raise ConfigError(f"{path} has a key {key!r} that means nothing; {nearest(str(key), allowed)}")
        super().parse_arguments(parser, args)

    # the parts of a run -------------------------------------------------------------------------------------------

    def _parse_ckpt_path(self) -> None:
        """Resolves `last`, `best` and `auto`; the checkpoint never overrides what the user asked for."""
        config = self.config[self.config.subcommand]
        if self.config.subcommand in ("fit", "validate", "test", "predict"):
            root = pathlib.Path(config.trainer.default_root_dir)
            config.ckpt_path = resume.find_checkpoint(config.get("ckpt_path"), root)
            if self.config.subcommand == "fit" and not config.ckpt_path:
                refuse_to_overwrite(root)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, ImportError, MisconfigurationException) as error:
            raise cause_of(error) or missing_package(error) or ConfigError(str(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> LightningTrainer:
        config = self._get(self.config_init, "trainer")
        refuse_sharding(config.get("strategy"))
        refuse_without_checkpoints(config)
        root = pathlib.Path(config["default_root_dir"])
        kwargs["logger"] = run_loggers(config.get("logger"), root, str(self.subcommand))
        try:
            return self.trainer_with(config, kwargs)
        except (ImportError, RuntimeError) as error:  # a package that is not here, a callback that stands twice
            raise ConfigError(f"trainer (accelerator {config.get('accelerator')}): {error}") from error
        except MisconfigurationException:
            if self.subcommand != "plan" and self.run_command:
                raise
            # What is planned or kept does not depend on hardware, which this machine may lack.
            here = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
            return self.trainer_with(config, {**kwargs, **here})

    def trainer_with(self, config: Any, options: dict[str, Any]) -> LightningTrainer:
        """A Trainer of the configuration, with some options replaced and our progress bar unless another is asked for.

        The list of callbacks is made anew, because Lightning adds to the one that it is given.
        """
        own = config.get("callbacks") or []
        own = list(own) if isinstance(own, list) else [own]
        if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in own):
            own.append(RunProgress())
        own.sort(key=lambda callback: not isinstance(callback, ProgressBar))  # it ends before a report's own bar begins
        return super().instantiate_trainer(**{**options, "callbacks": own})

    def after_instantiate_classes(self) -> None:
        self.describe_run()
        for check in self.checks(runs=self.run_command and self.subcommand != "plan"):
            check()

    def describe_run(self) -> None:
        """Tells the parts what the configuration is."""
        assert isinstance(self.model, DreamBooth) and isinstance(self.datamodule, DreamBoothData)
        self._dump_config()
        self.datamodule.progress = self.trainer.progress_bar_callback is not None
        self.datamodule.precision = str(self.trainer.precision)
        self.model.run_facts["config"] = yaml.safe_dump(self.config_dump, sort_keys=True)
        self.model.run_facts["allow_changes"] = list(self._get(self.config_init, "allow_changes"))

    def checks(self, runs: bool) -> Iterator[Callable[[], Any]]:
        """Yield what must hold before anything is loaded; each raises with all faults of its kind.

        Args:
            runs: Whether a model will be loaded.
        """
        model, data, trainer, training = self.model, self.datamodule, self.trainer, self.subcommand == "fit"
        assert isinstance(model, DreamBooth) and isinstance(data, DreamBoothData)
        yield lambda: check_combinations(model, data, trainer, training)
        ckpt_path = self._get(self.config_init, "ckpt_path")
        if training and ckpt_path:
            path, allowed = pathlib.Path(ckpt_path), model.run_facts["allow_changes"]
            yield lambda: resume.compare_configs(path, self.config_dump, allowed)
        yield lambda: check_model(model, build=runs)
        if runs:
            yield lambda: check_levels(model, trainer)

    def _run_subcommand(self, subcommand: str) -> None:
        if not self.run_command:
            return
        trainer: Any = self.trainer
        leaves = subcommand == "fit" and trainer.is_global_zero and not trainer.fast_dev_run
        try:
            with held(pathlib.Path(trainer.default_root_dir)) if leaves else contextlib.nullcontext():
                super()._run_subcommand(subcommand)
        except BaseException:
            assert isinstance(self.trainer, Trainer)
            self.trainer.end_other_ranks()
            raise


def as_seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"seed_everything must be a whole number, got {value!r}: every draw of a run has its address")
    return value


def help_of(parser: LightningArgumentParser, name: str, text: str) -> None:
    """Replaces the help text of one option."""
    for action in parser._actions:
        if action.dest == name:
            action.help = text


def help_text(command: str) -> str:
    """What `dreamlit COMMAND --help` prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        run([command, "--help"])
    return text.getvalue()


def run(args: list[str]) -> None:
    """Runs one of the commands that work on a run's configuration."""
    made(args)


def parts_of(config: str) -> tuple[DreamBooth, DreamBoothData]:
    """The module and the data of a run's configuration file; nothing is loaded and nothing is run."""
    cli = made(["prepare", "--config", config], run_command=False)
    assert isinstance(cli.model, DreamBooth) and isinstance(cli.datamodule, DreamBoothData)
    return cli.model, cli.datamodule


def made(args: list[str], run_command: bool = True, kind: type[DreamlitCLI] = DreamlitCLI) -> Any:
    """The command line of a configuration, after it ran; `kind` may do otherwise with what it finds."""
    quieten()
    token = base_folder.set(os.getcwd())
    try:
        # Lightning starts further processes with this process's command line, so it must say what is run.
        sys.argv[1:] = expand_layers(with_flags([args[0].replace("-", "_"), *args[1:]]))
        make_importable([pathlib.Path.cwd(), *(path.parent for path in config_paths(sys.argv[1:]))])
        return kind(run_command)
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error
    finally:
        base_folder.reset(token)


def make_importable(folders: list[pathlib.Path]) -> None:
    """Lets a dotted path name a class in a file of these folders; what is installed goes first, so none is shadowed."""
    for folder in map(str, dict.fromkeys(path.resolve() for path in folders)):
        if folder not in sys.path:
            sys.path.append(folder)
