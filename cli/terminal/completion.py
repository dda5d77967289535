"""Completion in bash, zsh and fish: the scripts, and the answers that they ask the program for.

A shell calls the program with ``_CIRCUITCORE_COMPLETE`` set to its name.  zsh and fish give the
words as arguments and quote what they are told themselves; bash gives its line, since it splits
words at ``:`` and ``=`` and quotes nothing.  The exit code says that files (9) or folders (10) fit.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from circuitcore.cli.terminal.candidates import FILES, FOLDERS, Answer, answer
from circuitcore.errors import UsageError, nearest

VARIABLE = "_CIRCUITCORE_COMPLETE"
CODES = {"": 0, FILES: 9, FOLDERS: 10}
BREAKS = ":="  # where bash breaks words that this program takes as one
HARMLESS = re.compile(r"[\w./:=,@%+~-]", re.ASCII)

BASH = r"""_circuitcore() {
    local line reply
    COMPREPLY=()
    reply=$(_CIRCUITCORE_COMPLETE=bash COMP_LINE="${COMP_LINE:0:$COMP_POINT}" \
        COMP_WORD="${COMP_WORDS[COMP_CWORD]}" "${1/#\~/$HOME}" 2>/dev/null)
    case $? in
        0) ;;
        10) type compopt &>/dev/null && compopt -o dirnames; return ;;
        *) type compopt &>/dev/null && compopt -o default; return ;;
    esac
    while IFS= read -r line; do
        [[ -n $line ]] && COMPREPLY+=("$line")
    done <<< "$reply"
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[/:] ]]; then
        type compopt &>/dev/null && compopt -o nospace
    fi
}
complete -F _circuitcore circuitcore
"""
ZSH = r"""#compdef circuitcore
_circuitcore() {
    local reply code line program="${(Q)words[1]/#\~/$HOME}"
    local -a values shown open opened
    local -a before=("${(@Q)words[2,CURRENT-1]}")
    (( CURRENT > 2 )) || before=()
    reply=$(_CIRCUITCORE_COMPLETE=zsh "$program" "$before[@]" "${(Q)PREFIX}" 2>/dev/null)
    code=$?
    case $code in
        0) ;;
        10) _files -/; return ;;
        *) _files; return ;;
    esac
    for line in "${(@f)reply}"; do
        [[ -n $line ]] || continue
        if [[ ${line%%$'\t'*} == *[/:] ]]; then
            open+=("${line%%$'\t'*}"); opened+=("${line/$'\t'/  -- }")
        else
            values+=("${line%%$'\t'*}"); shown+=("${line/$'\t'/  -- }")
        fi
    done
    (( $#values )) && compadd -l -d shown -a values
    (( $#open )) && compadd -S '' -l -d opened -a open
}
if [[ ${zsh_eval_context[-1]} == loadautofunc ]]; then
    _circuitcore "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
    compdef _circuitcore circuitcore
fi
"""
FISH = r"""function __circuitcore_complete
    set -l words (commandline -opc)
    set -l now (string unescape -- (commandline -ct))
    set -l reply (env _CIRCUITCORE_COMPLETE=fish $words[1] $words[2..-1] "$now" 2>/dev/null)
    switch $status
        case 0
            printf '%s\n' $reply
        case 10
            __fish_complete_directories (commandline -ct)
        case '*'
            __fish_complete_path (commandline -ct)
    end
end
complete -c circuitcore -f -a '(__circuitcore_complete)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def complete(shell: str, commands: Any, arguments: Sequence[str]) -> int:
    """Answer a shell on stdout; the exit code."""
    if shell == "bash":
        words, prefix, quote = read_line(os.environ.get("COMP_LINE", ""))
        found = answer(commands, words)
        lines = _for_bash(found, prefix, os.environ.get("COMP_WORD", ""), quote)
    else:
        found = answer(commands, arguments)
        lines = [f"{c.value}\t{_brief(c.help)}".rstrip("\t") for c in found.words]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
    return CODES[found.shells]


def _brief(text: str) -> str:
    """One line about a word, such as shells show beside it."""
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:58].rstrip()} ..."


def read_line(line: str) -> tuple[list[str], str, str]:
    """The words after the program's name, the last as it is typed, and a quote that is open in it.

    A line ends at the cursor: its last word may be empty.
    """
    words, raw, word, quote, started, escaped = [], "", "", "", False, False
    for letter in line:
        if escaped:
            word, escaped = word + letter, False
        elif letter == "\\" and quote != "'":
            escaped, started = True, True
        elif quote:
            word, quote = (word, "") if letter == quote else (word + letter, quote)
        elif letter in "\"'":
            quote, started = letter, True
        elif letter.isspace():
            if started:
                words.append(word)
            raw, word, started = "", "", False
            continue
        else:
            word, started = word + letter, True
        raw += letter
    return [*words, word][1:], raw, quote


def _for_bash(found: Answer, raw: str, last: str, quote: str) -> list[str]:
    """Words as bash puts them in the place of ``last``, its own notion of the word ``raw``."""
    if quote:
        return [_quoted(c.value, quote) for c in found.words]
    kept = raw if last and last in BREAKS else raw[: len(raw) - len(last)]
    typed = len(read_line(f"x {kept}")[0][-1]) if kept[-1:] in (*BREAKS,) else 0
    return [_escaped(c.value[typed:]) for c in found.words]


def _quoted(value: str, quote: str) -> str:
    """A value inside quotes that are open."""
    if quote == "'":
        return value.replace("'", "'\\''")
    return re.sub(r'(["$`\\])', r"\\\1", value)


def _escaped(value: str) -> str:
    return "".join(c if not c.isascii() or HARMLESS.match(c) else f"\\{c}" for c in value)


def shell_of(given: str) -> str:
    """The shell of that name, or with ``auto`` the user's own.  Raises UsageError for others."""
    name = Path(os.environ.get("SHELL", "")).name if given == "auto" else given
    if name not in SCRIPTS:
        what = f"SHELL is {name or 'not set'}" if given == "auto" else f"no completion for {name!r}"
        raise UsageError(f"{what}: give bash, zsh or fish{nearest(name, SCRIPTS)}")
    return name


def install(shell: str, environment: Mapping[str, str] = os.environ) -> str:
    """Write the script where ``shell`` finds it; what was done, in words.  Raises OSError."""
    home = Path(environment.get("HOME") or Path.home())
    if shell == "fish":
        place = Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "fish/completions"
        path, start = place / "circuitcore.fish", None
    else:
        data = Path(environment.get("XDG_DATA_HOME") or home / ".local/share") / "circuitcore"
        path = data / f"completion.{shell}"
        own = Path(environment.get("ZDOTDIR") or home) / ".zshrc"
        start = own if shell == "zsh" else home / ".bashrc"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SCRIPTS[shell], encoding="utf-8")
    done = f"{shell} completion written to {path}"
    if start is not None:
        line = f'[ -f "{path}" ] && . "{path}"  # completion of circuitcore'
        there = start.read_text(encoding="utf-8", errors="replace") if start.exists() else ""
        if line not in there:
            with start.open("a", encoding="utf-8") as file:
                file.write(f"{'' if not there or there.endswith(chr(10)) else chr(10)}{line}\n")
        done += f", which {start} reads"
    return f"{done}; it works in shells opened from now on\n"
