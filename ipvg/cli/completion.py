"""ipvg completion: scripts for shells, made from the parser, so that they know every option there is."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass, field

from .parts import OK, command

SHELLS = ("bash", "zsh", "fish")


def add(commands) -> None:
    sub = command(
        commands, "completion", run, "A shell's completion script, on stdout.",
        "  source <(ipvg completion bash)                              # in ~/.bashrc\n"
        "  source <(ipvg completion zsh)                               # in ~/.zshrc, after compinit\n"
        "  ipvg completion fish > ~/.config/fish/completions/ipvg.fish",
    )  # fmt: skip
    sub.add_argument("shell", choices=SHELLS)


def run(args) -> int:
    from . import parser

    print({"bash": bash, "zsh": zsh, "fish": fish}[args.shell](tree(parser())), end="")
    return OK


@dataclass
class Node:
    """A command. options: each spelling -> what follows it: None (nothing), "file", "folder", "any" or words. rest: the
    same of its positional argument. help: spelling or subcommand -> one line."""

    options: dict[str, str | list[str] | None] = field(default_factory=dict)
    commands: dict[str, Node] = field(default_factory=dict)
    rest: str | list[str] | None = None
    help: dict[str, str] = field(default_factory=dict)


def tree(parser: argparse.ArgumentParser) -> Node:
    node = Node()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            node.help |= {choice.dest: choice.help or "" for choice in action._choices_actions}
            node.commands = {name: tree(sub) for name, sub in action.choices.items()}
        elif action.option_strings:
            follows = None if action.nargs == 0 else _follows(action)
            node.options |= dict.fromkeys(action.option_strings, follows)
            node.help |= dict.fromkeys(action.option_strings, action.help or "")
        else:
            node.rest = _follows(action)
    return node


def _follows(action: argparse.Action) -> str | list[str]:
    known = getattr(action, "complete", None)
    if known and known[0] == "words":
        return list(known[1])
    if known and known[0] == "presets":
        from ..guidance import PRESETS

        return list(PRESETS)
    if action.choices:
        return [str(choice) for choice in action.choices]
    shown = action.metavar or ""
    return "folder" if "FOLDER" in shown else "file" if "FILE" in shown or shown == "PATH" else "any"


def _walk(node: Node, path: tuple[str, ...] = ()):
    yield path, node
    for name, sub in node.commands.items():
        yield from _walk(sub, (*path, name))


def bash(top: Node) -> str:
    def give(follows) -> str:
        if isinstance(follows, list):
            return f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(follows))} -- "$cur"))'
        return {"file": 'COMPREPLY=($(compgen -f -- "$cur"))', "folder": 'COMPREPLY=($(compgen -d -- "$cur"))'}.get(
            follows, "COMPREPLY=()"
        )

    cases = []
    for path, node in _walk(top):
        lines = [f'    "{" ".join(path)}")', '        case "$prev" in']
        lines += [f"            {o}) {give(f)}; return ;;" for o, f in node.options.items() if f is not None]
        lines += ["        esac", f'        words="{" ".join([*node.commands, *node.options])}"']
        rest = give(node.rest).removeprefix("COMPREPLY=(").removesuffix(")")
        lines += [f'        [[ $cur == -* ]] || {{ COMPREPLY=({rest}); [[ ${{#COMPREPLY[@]}} -gt 0 ]] && return; }}']
        cases += [*lines, "        ;;"] if node.rest else [*lines[:-1], "        ;;"]
    known = " ".join(shlex.quote(" ".join(path)) for path, _ in _walk(top) if path)
    return "\n".join(
        [
            "# bash completion of ipvg",
            "_ipvg() {",
            '    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} at="" word words known',
            '    for word in "${COMP_WORDS[@]:1:$((COMP_CWORD-1))}"; do',
            f"        for known in {known}; do",
            '            [[ ${at:+$at }$word == "$known" ]] && { at=$known; break; }',
            "        done",
            "    done",
            "    compopt -o filenames 2>/dev/null",
            '    case "$at" in',
            *cases,
            "    esac",
            '    COMPREPLY=($(compgen -W "$words" -- "$cur"))',
            "}",
            "complete -F _ipvg ipvg",
            "",
        ]
    )


def zsh(top: Node) -> str:
    """Through zsh's own reading of bash's scripts."""
    return "autoload -Uz bashcompinit && bashcompinit\n" + bash(top)


def fish(top: Node) -> str:
    lines = ["# fish completion of ipvg", "complete -c ipvg -f"]
    for path, node in _walk(top):
        here = "; and ".join(f"__fish_seen_subcommand_from {name}" for name in path) or "__fish_use_subcommand"
        if path and node.commands:
            here += f"; and not __fish_seen_subcommand_from {' '.join(node.commands)}"
        when = f"complete -c ipvg -n {_quoted(here)}"
        lines += [f"{when} -a {name} -d {_quoted(node.help.get(name, ''))}" for name in node.commands]
        for option, follows in node.options.items():
            name = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            lines.append(f"{when} {name}{_fish(follows)} -d {_quoted(node.help[option])}")
        if node.rest not in (None, "any"):
            lines.append(f"{when}{_fish(node.rest).replace(' -x', '').replace(' -r', '')}")
    return "\n".join(lines) + "\n"


def _fish(follows) -> str:
    if isinstance(follows, list):
        return f" -x -a {_quoted(' '.join(follows))}"
    return {None: "", "file": " -r -F", "folder": " -x -a '(__fish_complete_directories)'"}.get(follows, " -x")


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("%%", "%") + "'"
