"""Shell completion: the scripts, run by the shells themselves."""

import argparse
import os
import pty
import select
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


def bash(folder, *words):
    line = " ".join(f"'{word}'" for word in ("ipvg", *words))
    ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _ipvg; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    return answer(["bash", "-c", f"source ./script; {ask}"], folder).split()


def fish(folder, *words):
    lines = answer(["fish", "--no-config", "-c", f"source ./script; complete -C 'ipvg {' '.join(words)}'"], folder)
    return [line.partition("\t")[0].rstrip("/") for line in lines.splitlines()]


def answer(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"HOME": str(folder)})
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


#: zsh completes at a terminal only. Tab: note what is offered, and leave.
ZSHRC = """
PROMPT= RPROMPT=
autoload -Uz compinit && compinit -u -d ./dump
source ./script
typeset -ga offered
compadd() { local -a new; builtin compadd -O new "$@"; offered+=("${new[@]}"); builtin compadd "$@" }
tell() { zle list-choices; print -rl -- "${offered[@]}" >answer; exit 0 }
zle -N tell; bindkey '^I' tell
"""


def zsh(folder, *words):
    (folder / ".zshrc").write_text(ZSHRC)
    master, terminal = pty.openpty()
    environ = os.environ | {"ZDOTDIR": str(folder), "HOME": str(folder), "TERM": "dumb"}
    ask = ["setsid", "-c", "zsh", "-d", "-i"]
    with subprocess.Popen(ask, cwd=folder, env=environ, stdin=terminal, stdout=terminal, stderr=terminal) as shell:
        os.close(terminal)
        os.write(master, f"ipvg {' '.join(words)}\t".encode())
        seen = b""
        while select.select([master], [], [], 30)[0]:
            try:
                seen += os.read(master, 4096)
            except OSError:  # it left
                break
        else:
            shell.kill()
    os.close(master)
    assert shell.returncode == 0 and b"ipvg:" not in seen, seen
    return (folder / "answer").read_text().split()


@pytest.mark.parametrize("complete", [bash, zsh, fish])
def test_what_a_shell_offers(script, tmp_path, complete):
    if shutil.which(complete.__name__) is None:
        pytest.skip(f"{complete.__name__} is not installed")
    (tmp_path / "script").write_text(script(complete.__name__))
    (tmp_path / "photo.png").touch()
    (tmp_path / "folder").mkdir()
    ask = lambda *words: set(complete(tmp_path, *words))  # noqa: E731
    assert ask("gen") == {"generate"} and {"generate", "rerun", "guidance"} <= ask("")
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
def test_the_script_is_the_parsers(script, shell):
    text = script(shell)
    assert "--guidance" in text or "-l guidance" in text
