"""Is a reload command's program there? Seen without running anything of it.

Only what is certain is told: the shell's own reading of the command (`sh -n`), and the first word of each simple
command where it is written out. A command that branches (`if`, `||`) may well name a program that this host lacks.
"""

import os
import re
import shlex
import shutil
import subprocess

_SEPARATORS = frozenset({"&&", ";", "|", "&", "\n"})
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_PLAIN = re.compile(r"[A-Za-z0-9_./+@:,=-]+")
_BUILTINS = frozenset(
    [
        *(".", ":", "[", "alias", "bg", "break", "cd", "command", "continue", "echo", "eval", "exec", "exit", "export"),
        *("false", "fc", "fg", "getopts", "hash", "jobs", "kill", "printf", "pwd", "read", "readonly", "return", "set"),
        *("shift", "test", "times", "trap", "true", "type", "ulimit", "umask", "unalias", "unset", "wait"),
    ]
)
_BRANCHES = frozenset(
    [
        *("if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case", "esac", "in", "function"),
        *("{", "}", "!", "(", ")", "||"),
    ]
)
_SERVICE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What systemd gives to a service: a shell's own PATH may lack the half of it."""
_MOST_BYTES = 128 * 1024
"""Of one argument: MAX_ARG_STRLEN in execve(2)."""
_PATIENCE_SECONDS = 5.0


def hook_problem(command: str) -> str:
    """Why a reload command can't work, with its remedy; empty if nothing is known against it. Blocks."""
    if len(os.fsencode(command)) >= _MOST_BYTES:
        return f"is longer than {_MOST_BYTES // 1024} KiB, which no program is given; put it into a script"
    said = _shell_says(command)
    if said:
        return f"/bin/sh can't read it: {said}; correct reload_command"
    for word in _programs(command):
        if "/" in word:
            if problem := _path_problem(word):
                return problem
        elif word not in _BUILTINS and shutil.which(word) is None and shutil.which(word, path=_SERVICE_PATH) is None:
            path = os.environ.get("PATH", "")
            return f"there is no program {word} in PATH ({path}); install it, or write its whole path"
    return ""


def _shell_says(command: str) -> str:
    try:
        done = subprocess.run(
            ["/bin/sh", "-n", "-c", command],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ""
    lines = done.stderr.decode("utf-8", "backslashreplace").strip().splitlines()
    return (lines[0] if lines else "a syntax error") if done.returncode else ""


def _programs(command: str) -> list[str]:
    """The first words of the simple commands; none where the command branches, or can't be taken apart."""
    lexer = shlex.shlex(command.replace("\n", " ; "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError:
        return []
    if _BRANCHES & {*words}:
        return []
    found, first = [], True
    for word in words:
        if word in _SEPARATORS:
            first = True
        elif first and not _ASSIGNMENT.match(word):
            if not _PLAIN.fullmatch(word):  # a variable, a pattern, a substitution: the shell's to say
                return []
            found.append(word)
            first = False
    return found


def _path_problem(word: str) -> str:
    if not os.path.isabs(word):  # noqa: PTH117 - hooks run in /
        word = f"/{word}"
    if os.path.isdir(word):  # noqa: PTH112
        return f"{word} is a directory; correct reload_command"
    if not os.path.exists(word):  # noqa: PTH110
        return f"{word} doesn't exist; correct reload_command, or install it"
    if not os.access(word, os.X_OK):
        return f"{word} can't be run by this user; chmod +x {word}, or run it by its interpreter"
    return ""
