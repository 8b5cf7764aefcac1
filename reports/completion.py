"""Completion for bash, zsh and fish: static scripts, made from the parsers, so that neither forgets an option.

The first word is a path or a command, which no generator for argparse expects of a parser; so the grammar of the
scripts is written here: options of the command at hand, then its words, then files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from reports.arguments import (
    PROBES,
    SHELLS,
    completion_parser,
    demo_parser,
    doctor_parser,
    explain_parser,
    main_parser,
)

COMMANDS = {
    "demo": "train on embedded data with probes, then report",
    "explain": "what a measure, a number or a finding means",
    "doctor": "what works on this machine",
    "completion": "print a completion script",
}

_BASH = """\
# bash completion for diagnose: source <(diagnose completion bash), or save it in
# ~/.local/share/bash-completion/completions/diagnose
_diagnose() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=""
    COMPREPLY=()
    case $before in
{values}
    esac
    if [ -z "$words" ]; then
        case ${{COMP_WORDS[1]}}:$word in
{options}
        esac
        if [ "$COMP_CWORD" -eq 1 ]; then words="$words {commands}"; fi
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    # Files where nothing else is known, and beside the commands.
    if [ ${{#COMPREPLY[@]}} -eq 0 ] || {{ [ "$COMP_CWORD" -eq 1 ] && [ "${{word:0:1}}" != - ]; }}; then
        compopt -o filenames 2>/dev/null
        local IFS=$'\\n'
        COMPREPLY+=($(compgen -f -- "$word"))
    fi
}}
complete -F _diagnose diagnose
"""

_ZSH = """\
#compdef diagnose
# zsh completion for diagnose: source <(diagnose completion zsh) in ~/.zshrc, after compinit
autoload -U +X bashcompinit && bashcompinit
"""


def script(shell: str) -> str:
    """The script for one of ``SHELLS``."""
    if shell == "fish":
        return _fish()
    bash = _bash()
    return bash if shell == "bash" else _ZSH + bash.partition("\n")[2].partition("\n")[2]


def _parsers() -> dict[str, argparse.ArgumentParser]:
    return {
        "demo": demo_parser(),
        "explain": explain_parser(),
        "doctor": doctor_parser(),
        "completion": completion_parser(),
    }


def _bash() -> str:
    values = [_case("explain", _names()), _case("completion", SHELLS), _case("--probes", PROBES)]
    with_choices = [option for option in _options(main_parser()) if option.choices]
    values += [_case("|".join(option.option_strings), list(option.choices or ())) for option in with_choices]
    options = [_case(f"{name}:-*", _flags(parser)) for name, parser in _parsers().items()]
    options.append(_case("*:-*", _flags(main_parser())))
    return _BASH.format(values="\n".join(values), options="\n".join(options), commands=" ".join(COMMANDS))


def _case(pattern: str, words: Sequence[str]) -> str:
    return f'        {pattern}) words="{" ".join(words)}" ;;'


def _fish() -> str:
    lines = [
        "# fish completion for diagnose: diagnose completion fish > ~/.config/fish/completions/diagnose.fish",
        f"set -l commands {' '.join(COMMANDS)}",
    ]
    first, within = "test (count (commandline -opc)) -eq 1", "__fish_seen_subcommand_from"
    lines += [f"complete -c diagnose -n '{first}' -a {name} -d '{text}'" for name, text in COMMANDS.items()]
    lines.append(f"complete -c diagnose -f -n '{within} explain' -a '{' '.join(_names())}'")
    lines.append(f"complete -c diagnose -f -n '{within} completion' -a '{' '.join(SHELLS)}'")
    parsers = {f"{within} {name}": parser for name, parser in _parsers().items()}
    for condition, parser in {f"not {within} $commands": main_parser(), **parsers}.items():
        lines += [f'complete -c diagnose -n "{condition}" {_fish_option(option)}' for option in _options(parser)]
    return "\n".join(lines) + "\n"


def _fish_option(option: argparse.Action) -> str:
    parts = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.option_strings]
    if option.nargs != 0:
        parts.append("-r")
    words = PROBES if option.dest == "probes" else list(option.choices or ())
    if words:
        parts.append(f"-f -a '{' '.join(words)}'")
    text = (option.help or "").partition(";")[0].partition(":")[0].replace("'", "").replace("%(prog)s", "diagnose")
    return " ".join([*parts, f"-d '{text}'"])


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings]


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in _options(parser) for name in action.option_strings]


def _names() -> list[str]:
    from reports.explain.names import every_name

    return sorted(every_name())
