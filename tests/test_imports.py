"""Who may import whom: the rules of docs/architecture.md, read off the syntax trees, lazy imports included."""

import ast
import gc
import importlib
import pathlib
import subprocess
import sys

import pytest
import torch

from dreamlit.imports import quick_imports

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = {
    "dreamlit": ROOT / "dreamlit",
    "dreamlit.callbacks": ROOT / "callbacks",
    "dreamlit.datamodules": ROOT / "datamodules",
}


def modules() -> dict[str, pathlib.Path]:
    """Module name to file, real folders only."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            if not any(parent.is_symlink() for parent in path.parents):
                parts = path.relative_to(folder).with_suffix("").parts
                found[".".join([package, *(p for p in parts if p != "__init__")])] = path
    return found


def imports_of(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return names


GRAPH = {name: imports_of(path) for name, path in modules().items()}
SHOWS = (
    *("dreamlit.images", "dreamlit.plots", "dreamlit.metrics", "dreamlit.encoders", "dreamlit.observing"),
    *("dreamlit.datamodules.images", "dreamlit.datamodules.fills"),
    *("dreamlit.in_the_making", "dreamlit.previewing", "dreamlit.preview_grid", "dreamlit.prompts", "dreamlit.recipes"),
    *("dreamlit.report_scores", "dreamlit.scoring", "dreamlit.curves", "dreamlit.step_lines"),
)
BASICS = (
    "dreamlit.types",
    "dreamlit.errors",
    "dreamlit.seeds",
    "dreamlit.quiet",
    "dreamlit.events",
    "dreamlit.imports",
)


def group(name: str) -> str:
    packages = (
        "families",
        "adapters",
        "datamodules",
        "callbacks",
        "live",
        "quantisation",
        "masking",
        "importing",
        "memory",
        "doctor",
        "newrun",
    )
    for prefix in map("dreamlit.{}".format, packages):
        if name == prefix or name.startswith(prefix + "."):
            return prefix
    return (
        "dreamlit.objective"
        if name.startswith(("dreamlit.objective", "dreamlit.densities", "dreamlit.weighting"))
        else name
    )


@pytest.mark.parametrize(
    ("importer", "allowed"),
    [
        ("dreamlit.families", ("dreamlit.process", "dreamlit.flow", "dreamlit.quantisation")),
        ("dreamlit.objective", ("dreamlit.process",)),
        ("dreamlit.adapters", ("dreamlit.quantisation",)),
        ("dreamlit.quantisation", ()),
        ("dreamlit.process", ()),
        ("dreamlit.rollout", ("dreamlit.process", "dreamlit.rollout_options")),
        ("dreamlit.rollout_options", ("dreamlit.process", "dreamlit.flow")),
        ("dreamlit.reflex", ("dreamlit.rollout", "dreamlit.rollout_options")),
        ("dreamlit.datamodules", ()),
        (
            "dreamlit.callbacks",
            (
                *SHOWS,
                "dreamlit.averaging",
                "dreamlit.evaluating",
                "dreamlit.delivery",
                "dreamlit.endpoints",
                "dreamlit.live",
                "dreamlit.discord",
                "dreamlit.rollout_options",
            ),
        ),
        ("dreamlit.evaluating", ()),
        ("dreamlit.delivery", ("dreamlit.endpoints",)),
        ("dreamlit.endpoints", ("dreamlit.__version__",)),
        ("dreamlit.discord", ()),
        ("dreamlit.averaging", ("dreamlit.export", "dreamlit.formats")),
        ("dreamlit.metrics", ("dreamlit.encoders",)),
        ("dreamlit.encoders", ("dreamlit.encoder_input",)),
        ("dreamlit.encoder_input", ()),
        ("dreamlit.scoring", ("dreamlit.metrics", "dreamlit.plots", "dreamlit.encoders")),
        ("dreamlit.curves", ("dreamlit.images", "dreamlit.step_lines")),
        ("dreamlit.prompts", ()),
        ("dreamlit.in_the_making", ("dreamlit.previewing",)),
        ("dreamlit.previewing", ("dreamlit.in_the_making", "dreamlit.families.recall")),
        ("dreamlit.recipes", ("dreamlit.images", "dreamlit.previewing")),
        ("dreamlit.preview_grid", ("dreamlit.plots",)),
        ("dreamlit.report_scores", ("dreamlit.metrics",)),
        ("dreamlit.logs", ("dreamlit.log_files",)),
        ("dreamlit.log_files", ()),
        ("dreamlit.non_finite", ()),
        (
            "dreamlit.masking",
            (
                *("dreamlit.datamodules", "dreamlit.images", "dreamlit.encoder_input"),
                *("dreamlit.families.files", "dreamlit.families.fingerprints"),  # where models lie, not what they are
            ),
        ),
        (
            "dreamlit.memory",
            ("dreamlit.families", "dreamlit.adapters", "dreamlit.quantisation", "dreamlit.module"),
        ),
        ("dreamlit.live", ()),
        ("dreamlit.importing", ("dreamlit.adapters.lycoris_options", "dreamlit.__version__")),
        ("dreamlit.types", ()),
        ("dreamlit.errors", ()),
        ("dreamlit.seeds", ()),
        ("dreamlit.quiet", ()),
        ("dreamlit.imports", ()),
        ("dreamlit.events", ()),
        ("dreamlit.event_schema", ()),
    ],
)
def test_a_layer_imports_only_what_it_may(importer, allowed):
    bad = [
        f"{name} imports {target}"
        for name, targets in GRAPH.items()
        if group(name) == importer
        for target in targets
        if target.startswith("dreamlit.") and group(target) != importer and not target.startswith((*BASICS, *allowed))
    ]
    assert not bad


def test_nobody_imports_the_command_line():
    allowed = {"dreamlit.__main__", "dreamlit.cli", "dreamlit.training_cli"}
    assert not [
        n for n, targets in GRAPH.items() if n not in allowed and any(t.startswith("dreamlit.cli") for t in targets)
    ]


def test_nobody_needs_the_toybox():
    users = [n for n, ts in GRAPH.items() if any(t.startswith("dreamlit.toybox") for t in ts)]
    assert users and all(name.startswith("dreamlit.toybox") for name in users)


def test_data_code_that_the_plan_needs_is_free_of_torch():
    torch_users = {"cache", "loader", "dreambooth", "cache_tools"}
    for name, targets in GRAPH.items():
        if name.startswith("dreamlit.datamodules.") and name.rpartition(".")[2] not in torch_users:
            assert not any(t == "torch" or t.startswith(("torch.", "lightning")) for t in targets), name


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sorted(m.partition('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_the_top_level_help_loads_no_library():
    loaded = loaded_by("from dreamlit.cli import main\nmain(['--help'])")
    assert not loaded & {
        "torch",
        "lightning",
        "diffusers",
        "transformers",
        "peft",
        "numpy",
        "PIL",
        "yaml",
        "jsonargparse",
    }


def test_the_training_command_loads_models_and_adapters_only_when_they_are_used():
    loaded = loaded_by("import dreamlit.training_cli")
    assert not loaded & {"diffusers", "peft", "lycoris", "torchao", "webdataset", "bitsandbytes"}
    assert not loaded & {"tensorboard", "tensorboardX", "wandb", "mlflow"}


@pytest.mark.parametrize("as_decorator", [False, True])
def test_what_a_library_compiles_at_its_import_is_compiled_once_and_when_it_is_called(monkeypatch, as_decorator):
    compiled = []

    def compile_now(function, **options):
        compiled.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile_now)

    def double(number):
        """Twice a number."""
        return 2 * number

    with quick_imports():
        later = torch.compile(dynamic=False)(double) if as_decorator else torch.compile(double, dynamic=False)
    assert torch.compile is compile_now and compiled == []
    assert (later(2), later(number=3)) == (4, 6) and compiled == [{"dynamic": False}]
    assert later.__doc__ == double.__doc__


def test_modules_compile_at_once_as_elsewhere(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **options: (model, options))
    layer = torch.nn.Linear(1, 1)
    with quick_imports():
        assert torch.compile(layer, mode="default") == (layer, {"mode": "default"})


def test_a_failed_import_leaves_garbage_collection_and_the_compiler_as_they_were():
    compile_now = torch.compile

    def failing():
        with quick_imports():
            assert not gc.isenabled()
            importlib.import_module("there_is_no_such_library")

    with pytest.raises(ModuleNotFoundError):
        failing()
    assert gc.isenabled() and torch.compile is compile_now


def test_a_model_library_comes_without_the_compiler_and_out_of_the_garbage_collection():
    """Half of the seconds that a run takes to start."""
    code = (
        "import gc\nfrom dreamlit.families.loading import component_class\n"
        "component_class({'unet': ['diffusers', 'UNet2DConditionModel']}, 'unet')\nimport bitsandbytes\n"
        "assert 'torch._inductor.compile_fx' not in sys.modules\n"
        "assert gc.get_freeze_count() > 20 * len(gc.get_objects())"
    )
    assert {"torch", "diffusers", "bitsandbytes"} <= loaded_by(code)
