"""Shell completion: the scripts, run by the shells themselves."""

import argparse
import shutil
import subprocess

import pytest

from ipvg.cli import main, parser
from ipvg.cli.completion import SHELLS, tree
from ipvg.guidance import PRESETS
from ipvg.tasks import TASKS


@pytest.fixture
def script(capsys):
    def make(shell):
        assert main(["completion", shell]) == 0
        return capsys.readouterr().out

    return make


def complete(script, folder, *words):
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in ("ipvg", *words))
    program = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}; _ipvg; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    return set(done.stdout.split())


def test_bash(script, tmp_path):
    text = script("bash")
    (tmp_path / "photo.png").touch()
    (tmp_path / "folder").mkdir()
    ask = lambda *words: complete(text, tmp_path, *words)  # noqa: E731
    assert ask("gen") == {"generate"} and {"generate", "rerun", "guidance", "--version"} <= ask("")
    assert ask("generate", "--gui") == {"--guidance"} and {"--task", "--set", "--config"} <= ask("generate", "--")
    assert ask("generate", "--task", "") == set(TASKS) and ask("generate", "--task", "ext") == {
        "extend-after", "extend-before",
    }  # fmt: skip
    assert ask("generate", "--guidance", "") == set(PRESETS) and ask("generate", "--solver", "u") == {"unipc"}
    assert ask("generate", "--reference", "ph") == {"photo.png"} and ask("generate", "--seed", "") == set()
    assert ask("generate", "--checkpoint", "") == {"folder"}
    assert ask("guidance", "") >= {"list", "show"} and ask("guidance", "show", "tpige_c") == {"tpige_code"}
    assert ask("generate", "--prompt", "guidance", "--task", "ima") == {"image"}
    assert ask("completion", "") == set(SHELLS) and ask("rerun", "ph") == {"photo.png"}


def test_every_option_of_every_command_is_known():
    def walk(node, known):
        for action in node._actions:
            if isinstance(action, argparse._SubParsersAction):
                assert set(known.commands) == set(action.choices)
                for name, sub in action.choices.items():
                    walk(sub, known.commands[name])
            else:
                assert set(action.option_strings) <= known.options.keys()

    walk(parser(), tree(parser()))


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_accepts_its_script(script, tmp_path, shell):
    text = script(shell)
    assert "--guidance" in text or "-l guidance" in text
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(text)
    done = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
