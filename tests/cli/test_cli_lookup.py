"""The commands that need neither data nor backbone, and what a mistake looks like."""

import contextlib
import importlib.metadata
import os
import re
import signal
import subprocess
import sys

import pytest
from limpet import runs
from limpet.cli import main
from limpet.recipe import load_recipe, packaged_names

COMMANDS = [
    "fit",
    "resume",
    "check",
    "evaluate",
    "predict",
    "explain",
    "recipes",
    "methods",
    "doctor",
    "compare",
    "add-classes",
    "remove-classes",
    "rename-classes",
    "cache",
]
HEAVY = (
    "torch",
    "lightning",
    "torchvision",
    "open_clip",
    "peft",
    "transformers",
    "scipy",
    "pandas",
    "numpy",
    "sklearn",
)


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert command in out
    assert main([]) == 0
    assert "fit" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


def test_recipes_lists_all_with_a_line_each(capsys):
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    for name in packaged_names():
        (line,) = [x for x in out.splitlines() if x.split()[:1] == [name]]
        assert len(line.split()) > 3


def test_recipes_show_gives_values_origins_and_notes(capsys):
    assert main(["recipes", "show", "order_reef", "method=ranknet", "optim.lr=0.3"]) == 0
    out = capsys.readouterr().out
    assert "lr: 0.3" in out and "# command line" in out and "# method/ranknet.yaml:" in out
    assert "# note: method=ranknet drops" in out


def test_recipes_show_of_a_grid_shows_each_cell(capsys):
    assert main(["recipes", "show", "fish", "seed=1,2"]) == 0
    out = capsys.readouterr().out
    assert "# cell: seed=1" in out and "# cell: seed=2" in out


def test_recipes_copy_keeps_comments_and_never_overwrites(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "fish", "mine.yaml"]) == 0
    assert "CHANGE THIS" in (tmp_path / "mine.yaml").read_text("utf-8")
    assert load_recipe("mine").backbone == load_recipe("fish").backbone
    (tmp_path / "mine.yaml").write_text("seed: 3\n")
    assert main(["recipes", "copy", "fish", "mine.yaml"]) == 2
    assert (tmp_path / "mine.yaml").read_text() == "seed: 3\n"
    assert "is there already" in capsys.readouterr().err
    assert main(["recipes", "copy", "fish", "mine.yaml", "--force"]) == 0
    assert main(["recipes", "copy", "method/coop", "sub/mine.yaml"]) == 2
    assert main(["recipes", "copy", "method/coop", "."]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["coop.yaml", "mine.yaml"]


def test_methods_lists_every_file(capsys):
    assert main(["methods"]) == 0
    assert "limpet fit quickstart method=" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fitt", "fish"], "There is no command 'limpet fitt'. Did you mean 'fit'?"),
        (["recipes", "shwo"], "There is no command 'limpet recipes shwo'. Did you mean 'show'?"),
        (["recipes", "fish"], "To see a recipe: limpet recipes show fish"),
        (["cache", "clean"], "There is no command 'limpet cache clean'. Did you mean 'clear'?"),
        (["fit"], "RECIPE is missing. See: limpet fit --help"),
        (["fit", "fish", "--data.root=x"], "Settings are written without dashes: data.root=x"),
        (["fit", "fish", "--sed", "3"], "See: limpet fit --help"),
        (["fit", "quikstart"], "There is no recipe 'quikstart'. Did you mean 'quickstart'?"),
        (["check", "fish", "optim.lrr=3"], "Key 'lrr' is not in 'optim'. Did you mean: 'lr'?"),
        (["fit", "fish", "seed"], "'seed' is not an override of the form key=value"),
        (["resume", "nothing"], "There is no run 'nothing', and no run at all"),
        (["evaluate", "nothing"], "First: limpet fit quickstart"),
        (["predict", "nothing", "x.jpg"], "There is no run 'nothing'"),
        (["predict", "nothing"], "PATH is missing"),
        (["compare", "nothing"], "There is no run 'nothing'"),
        (["predict", "a", "b", "--top", "0"], "--top: "),
        (["check", "~nobody_here/x"], "begins with ~ and no user's name of this machine"),
        (["check", "fish", "data.root=~nobody_here/x"], "begins with ~ and no user's name of this machine"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert expected in captured.err


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="There is no recipe"):
        main(["fit", "nothere", "--debug"])


def run(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options
    )


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [(["--help"], 0), (["fit", "--help"], 0), (["--version"], 0), (["recipes"], 0), (["methods"], 0),
     (["recipes", "show", "fish", "method=tip_adapter"], 0), (["fit", "fish", "optim.lrr=3"], 2),
     (["fit", "fsh"], 2), (["resume", "nothing"], 2), (["fitt"], 2)],
)  # fmt: skip
def test_lookups_import_nothing_heavy(words, exit_code, tmp_path):
    code = (
        f"import sys; from limpet.cli import main; code = main({words!r}); "
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]; print('HEAVY', heavy); sys.exit(code)"
    )
    done = run(code, cwd=tmp_path)
    assert done.returncode == exit_code, done.stderr
    assert "HEAVY []" in done.stdout


def test_import_limpet_is_lazy():
    done = run(
        f"import sys, limpet; print([m for m in {(*HEAVY, 'omegaconf', 'typer')!r} if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr
    done = run(
        "import limpet; print(limpet.load_recipe('fish').name, limpet.__version__, 'Adapter' in dir(limpet))"
    )
    assert done.stdout.startswith("fish ") and done.stdout.endswith("True\n"), done.stderr


def test_python_m_limpet():
    done = subprocess.run(
        [sys.executable, "-m", "limpet", "--version"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.startswith("limpet ")
    done = subprocess.run(
        [sys.executable, "-m", "limpet", "nope"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m limpet recipes show fish | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("leave", ["raise KeyboardInterrupt", "sys.exit(1)"])
def test_interrupt_names_the_command_that_continues(leave, tmp_path):
    code = f"""
import os, signal, sys, types
from limpet import cli, runs
def fit(recipe):
    run = runs.new_run_dir(recipe.name, recipe.run.dir)
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    try:
        os.kill(os.getpid(), signal.SIGINT)
        import time; time.sleep(5)
    except KeyboardInterrupt:
        {leave}
sys.modules["limpet.runner"] = types.SimpleNamespace(fit=fit)
sys.exit(cli.main(["fit", "quickstart"]))
"""
    done = run(code, cwd=tmp_path)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "interrupted: continue with: limpet resume quickstart/001\n"


def test_a_full_disk_is_a_sentence(monkeypatch, capsys, tmp_path):
    import errno
    import types

    def fit(recipe):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "x"))

    monkeypatch.setitem(sys.modules, "limpet.runner", types.SimpleNamespace(fit=fit))
    assert main(["fit", "quickstart"]) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_our_own_errors_keep_their_traceback(monkeypatch):
    import types

    def fit(recipe):
        raise ZeroDivisionError

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setitem(sys.modules, "limpet.runner", types.SimpleNamespace(fit=fit))
    with pytest.raises(ZeroDivisionError):
        main(["fit", "quickstart"])
    assert signal.getsignal(signal.SIGINT) is before


def test_commands_hand_over_what_was_said(monkeypatch, tmp_path):
    import types

    seen = []

    def note(name):
        return lambda *args, **settings: seen.append((name, args))  # None: nothing went wrong

    monkeypatch.chdir(tmp_path)
    done, open_ = runs.new_run_dir("fish"), runs.new_run_dir("fish")
    for folder in (done, open_):
        (folder / "recipe.yaml").write_text(load_recipe("fish").to_yaml())
    (done / "metrics.json").write_text("{}")
    runner = types.SimpleNamespace(**{n: note(n) for n in ("fit", "check", "resume")})
    monkeypatch.setitem(sys.modules, "limpet.runner", runner)
    for module, name in (("grid", "fit_grid"), ("evaluate", "evaluate_run"), ("predict", "predict_command"), ("compare", "compare")):
        monkeypatch.setitem(sys.modules, f"limpet.{module}", types.SimpleNamespace(**{name: note(name)}))
    for words in (["fit", "fish"], ["fit", "fish", "seed=1,2"], ["check", "fish"], ["resume", "fish"],
                  ["evaluate", "fish", "data.root=x"],
                  ["predict", "fish", "new", "--out", "p.csv", "--top=3"],
                  ["compare", "fish", "fish/001"]):  # fmt: skip
        assert main(words) == 0
    names = [name for name, _ in seen]
    assert names == ["fit", "fit_grid", "check", "resume", "evaluate_run", "predict_command", "compare"]
    assert [r.seed for r in seen[1][1][0]] == [1, 2]
    assert seen[3][1][0] == open_.relative_to(".") and seen[4][1] == (done, ["data.root=x"])
    assert (
        seen[5][1][0] == done
        and seen[5][1][1] == ["new"]
        and str(seen[5][1][2]) == "p.csv"
        and seen[5][1][3] == 3
    )
    assert seen[6][1] == ([done], None)


def test_doctor_names_versions_and_the_machine(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for package in ("limpet", "torch", "lightning", "open_clip_torch", "peft", "onnxruntime"):
        assert re.search(rf"^{package} +\d+\.\d+", out, re.MULTILINE), package
    assert sys.executable in out and os.environ["LIMPET_CACHE"] in out and out.rstrip().endswith("All is well.")


def test_doctor_warns_of_what_is_missing_and_of_releases_that_steal(monkeypatch, capsys):
    real = importlib.metadata.version

    def version(name):
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return "2.6.2" if name == "lightning" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "! peft is not installed: pip install peft" in out and "All is well" not in out
    assert "! lightning 2.6.2 is a compromised release" in out


def test_cache_says_its_size_and_is_cleared(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LIMPET_CACHE", str(tmp_path))
    assert main(["fit", "quickstart", "data.species=4", "data.shots=1", "data.train=2", "data.val=1", "data.test=1",
                 "trainer.epochs=1", f"run.dir={tmp_path / 'runs'}"]) == 0  # fmt: skip
    capsys.readouterr()
    assert main(["cache"]) == 0
    full = capsys.readouterr().out
    assert re.fullmatch(re.escape(str(tmp_path)) + r": \d+\.\d kB\n", full)
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == f"Freed {full.split(': ')[1].strip()}.\n"
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: 0 bytes\n"


def test_recipes_copy_adds_the_ending_and_needs_the_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "fish", "mine"]) == 0
    assert load_recipe("mine.yaml").name == "mine"
    assert main(["recipes", "copy", "fish", "nowhere/mine.yaml"]) == 2
    assert "There is no folder nowhere to write mine.yaml in." in capsys.readouterr().err


def test_recipes_show_of_a_large_grid_is_short(capsys):
    assert main(["recipes", "show", "fish", "seed=1,2,3,4,5", "data.shots=1,2,4,8,16"]) == 0
    out = capsys.readouterr().out
    assert "more cells; the last: seed=5 data.shots=16" in out


def on_a_terminal(*words, columns=80, **environment):
    """(exit code, what a terminal of so many columns was sent) of a command."""
    import fcntl
    import pty
    import struct
    import termios

    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    env |= {"TERM": "xterm", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "limpet", *map(str, words)]
    started = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=env)
    os.close(child)
    sent = b""
    with contextlib.suppress(OSError):  # so Linux says that nobody writes any more
        while got := os.read(parent, 4096):
            sent += got
    os.close(parent)
    return started.wait(timeout=300), sent.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals of this kind")
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_tables_fit_the_terminal(columns):
    code, sent = on_a_terminal("methods", columns=columns)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in sent.splitlines()]
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("Use one"))]
    assert code == 0 and "\x1b[" in sent and max(map(len, table)) <= columns
    assert any(line.split()[:1] == ["tip_adapter"] for line in table)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals of this kind")
def test_a_terminal_shows_bars_and_is_left_tidy(tmp_path):
    """A bar while images are encoded and one while prompts learn; neither is left behind, nor a hidden cursor."""
    words = ["data.species=8", "data.shots=8", "data.train=8", "data.val=2", "data.test=60", "optim.name=sgd"]
    small = ["backbone=limpet-tiny", "method=cocoop", "trainer.epochs=12", f"run.dir={tmp_path / 'runs'}"]
    code, sent = on_a_terminal("fit", "quickstart", *words, *small, LIMPET_CACHE=tmp_path / "cache")
    assert code == 0 and "Traceback" not in sent
    assert "\u2501" in sent and re.search(r"epoch \d+/12", sent)
    assert sent.count("\x1b[?25l") == sent.count("\x1b[?25h") > 0
    code, sent = on_a_terminal("fit", "quickstart", "data.shots=none")
    assert code == 2 and "\x1b[1;31merror:\x1b[0m " in sent
