"""The wheel holds the three folders under one name, whole, and works where it is unpacked."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOUNTS = {"adapters": "limpet", "datamodules": "limpet/datamodules", "recipes": "limpet/recipes"}


def tracked():
    """The files of the three folders that git knows, by the name they have in the wheel."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not in a git checkout: there is no list of files to compare with")
    done = subprocess.run(["git", "ls-files", "-z", *MOUNTS], cwd=ROOT, capture_output=True, check=True)
    files = [Path(name) for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    return {f"{MOUNTS[f.parts[0]]}/{f.relative_to(f.parts[0]).as_posix()}": ROOT / f for f in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build a wheel from a copy that holds only what the build may use (no stale build folder)."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in MOUNTS:
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    spec = importlib.util.find_spec("setuptools")
    version = importlib.metadata.version("setuptools") if spec else "0"
    isolation = [] if int(version.split(".")[0]) < 77 else ["--no-isolation"]
    command = [sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_exactly_the_tracked_files(wheel):
    files = tracked()
    with zipfile.ZipFile(wheel) as archive:
        inside = {n for n in archive.namelist() if not n.endswith("/") and ".dist-info/" not in n}
        assert inside == set(files)
        for name, path in files.items():
            assert archive.read(name) == path.read_bytes()


def test_wheel_installs_one_top_level_name_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"limpet"}


def test_installed_wheel_finds_its_recipes(wheel, tmp_path):
    target = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--quiet",
        "--target",
        str(target),
        str(wheel),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in target.iterdir() if p.suffix != ".dist-info"} <= {"limpet", "bin"}
    # No site packages: an editable install of this project must not answer in the wheel's place.
    path = os.pathsep.join([str(target), *_dependencies()])
    code = "import limpet, sys; print(limpet.__file__, file=sys.stderr); import limpet.cli; "
    code += "sys.exit(limpet.cli.main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": path}
    shown = {}
    for words in (["recipes"], ["recipes", "show", "quickstart"], ["methods"]):
        command = [sys.executable, "-S", "-c", code, *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(str(target))
        shown[words[-1]] = done.stdout
    recipes = {
        p.relative_to(ROOT / "recipes").with_suffix("").as_posix() for p in (ROOT / "recipes").rglob("*.yaml")
    }
    assert recipes <= set(shown["recipes"].split())
    assert "name: reef" in shown["quickstart"]


def _dependencies():
    """The folders this interpreter finds its other packages in."""
    known = [sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
    known += [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    known += [
        str(Path(importlib.util.find_spec(n).origin).parents[1]) for n in ("typer", "omegaconf", "rich")
    ]
    return list(dict.fromkeys(known))
