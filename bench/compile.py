"""(e) The overhead of a sandbox for an unrelated program: a compiler that opens many headers."""

from __future__ import annotations

from pathlib import Path

from .measure import Goal, Measure
from .runner import Stage, elapsed_seconds, timed_script

TIMES = 20
GOAL = 1.05
FUNCTIONS = 14
BODY = f"""
i=0
while [ $i -lt {TIMES} ]; do
    gcc -c -O2 -o "$2" "$1"
    i=$((i + 1))
done"""

HEADERS = (
    "ctype.h",
    "dirent.h",
    "errno.h",
    "fcntl.h",
    "pthread.h",
    "signal.h",
    "stdio.h",
    "stdlib.h",
    "string.h",
    "sys/mount.h",
    "sys/socket.h",
    "sys/stat.h",
    "sys/wait.h",
    "time.h",
    "unistd.h",
)
FUNCTION = """
int count_{n}(const char *path, char wanted)
{{
    char line[512];
    int count = {n};
    FILE *file = fopen(path, "r");
    if (!file)
        return -errno;
    while (fgets(line, sizeof line, file))
        for (size_t i = 0; line[i]; i++)
            count += tolower((unsigned char)line[i]) == wanted;
    fclose(file);
    return count;
}}
"""


def measures(stage: Stage) -> list[Measure]:
    source = _write_source(stage)
    script = timed_script(BODY, source, source.with_suffix(".o"))
    return [
        Measure(
            f"{TIMES} x gcc -c",
            "s",
            lambda: elapsed_seconds(stage.run_in_loopfs(script)),
            {"outside": lambda: elapsed_seconds(stage.run_as_user(script))},
            Goal(GOAL, "outside"),
        )
    ]


def _write_source(stage: Stage) -> Path:
    source = stage.new_directory("compile") / "sample.c"
    lines = ["#define _GNU_SOURCE", *(f"#include <{header}>" for header in HEADERS)]
    functions = "".join(FUNCTION.format(n=number) for number in range(FUNCTIONS))
    source.write_text("\n".join(lines) + "\n" + functions)
    stage.give(source)
    return source
