"""Who may import whom, read from the files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STANDARD_AND_OMEGACONF = {
    "torch",
    "lightning",
    "torchvision",
    "open_clip",
    "peft",
    "numpy",
    "pandas",
    "PIL",
    "scipy",
}
SHARED = {
    "adapter", "deep_prompts", "backbone", "blocks", "prompting", "classes", "errors", "optim", "metrics", "gaussian",
    "cache_search", "conv_teacher", "fresh_text", "layers", "split_attention", "tower_adapter", "interpolation",
    "peft_layers", "block_memory", "csv_files", "descriptors", "foveal", "gathering", "objectives", "ordering_adapter",
    "pair_attention", "precision", "ranking_network", "region_adapter", "tokens", "tower_parts",
}  # fmt: skip


def imports(path):
    """(level, module, names) of every import in a file, wherever it stands; `import x` has level 0."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]


def files(folder):
    return sorted(p for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts)


def outside(path):
    """Top-level names of other distributions that a file imports."""
    return {module.split(".")[0] for level, module, _ in imports(path) if level == 0}


def inside(path):
    """Dotted names of Limpet's own modules that a file imports, from the mounted folder's root."""
    package = path.relative_to(ROOT).parts[1:-1]
    for level, module, names in imports(path):
        if level:
            base = [*package[: len(package) - level + 1], *(module.split(".") if module else [])]
            yield from ([".".join(base)] if module else [".".join([*base, n]) for n in names])


@pytest.mark.parametrize("folder", ["adapters", "datamodules", "recipes"])
def test_only_relative_imports_inside(folder):
    for path in files(folder):
        assert not outside(path) & {"limpet", "adapters", "datamodules", "recipes"}, path
        depth = len(path.relative_to(ROOT / folder).parts)
        assert all(level <= depth for level, _, _ in imports(path)), f"{path} leaves its folder"


def test_datamodules_know_no_clip():
    for path in files("datamodules"):
        assert not outside(path) & {"open_clip", "peft", "transformers", "timm"}, path


def test_recipes_import_nothing():
    for path in files("recipes"):
        assert not list(imports(path))


def test_configs_and_recipe_modules_are_light():
    allowed_configs = outside(ROOT / "datamodules/configs.py")
    assert allowed_configs <= {"__future__", "dataclasses", "typing", "collections"}
    for name in (
        "recipe",
        "sections",
        "compose",
        "validate",
        "nodes",
        "emit",
        "errors",
        "runs",
        "listing",
        "cli",
        "screens",
    ):
        assert not outside(ROOT / f"adapters/{name}.py") & STANDARD_AND_OMEGACONF, name


def test_only_the_backbone_imports_open_clip():
    users = {p.name for p in files("adapters") if "open_clip" in outside(p)}
    assert all(name.startswith("backbone") for name in users), users


def test_methods_share_through_the_base_files_only():
    for path in files("adapters/methods"):
        if not path.stem.startswith("_"):
            own = {module.split(".")[0] for module in inside(path)} - {""}
            others = {name for name in own - SHARED if not name.startswith(("backbone", "prompt"))}
            assert not others, f"{path} imports {others}"


def test_inference_needs_no_lightning():
    names = ("artifact", "inference", "export", "classes", "backbone", "blocks", "prompt", "adapter")
    for path in files("adapters"):
        if path.parent.name == "adapters" and path.name.startswith(names):
            assert not outside(path) & {"lightning", "pytorch_lightning"}, path
            assert "module" not in set(inside(path)), path


def test_the_two_packages_meet_in_few_places():
    for path in files("adapters"):
        met = [m for m in inside(path) if m.split(".")[0] in ("datamodules", "recipes")]
        assert not met, f"{path} imports {met}; use importlib with the name in the recipe"
