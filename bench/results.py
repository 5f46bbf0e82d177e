#!/usr/bin/env python3
"""What the measuring scripts share: where things are, which machine this is,
tables, and blocks of bench/RESULTS.md, one a script.

    bench/results.py NAME < text        replaces the block of that name
"""
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
BUILD = os.path.join(ROOT, os.environ.get("SD_BUILD", "build"))
RESULTS = os.path.join(HERE, "RESULTS.md")


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def output(*command):
    try:
        return subprocess.check_output(command, text=True, cwd=ROOT,
                                       stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        info = dict(re.split(r"\s*:\s*", line.strip(), maxsplit=1)
                    for line in f if ":" in line)
    flags = [flag for flag in ("avx2", "fma", "avx512f", "avx512_bf16",
                               "amx_bf16") if flag in info["flags"].split()]
    with open("/proc/meminfo", encoding="utf-8") as f:
        memory = int(f.readline().split()[1]) / 1024 ** 2
    return "%s (family %s, model %s), %d processors, %.0f GB; %s" % (
        info["model name"], info["cpu family"], info["model"], os.cpu_count(),
        memory, " ".join(flags))


def built():
    return "gcc %s, commit %s" % (
        output("gcc", "-dumpfullversion"),
        output("git", "describe", "--always", "--dirty"))


def table(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"


def write(name, text):
    begin = "<!-- bench/%s begin -->" % name
    end = "<!-- bench/%s end -->" % name
    block = "%s\n%s\n%s" % (begin, text.rstrip("\n"), end)
    whole = "# Results\n"
    if os.path.exists(RESULTS):
        with open(RESULTS, encoding="utf-8") as f:
            whole = f.read()
    if begin in whole:
        before, rest = whole.split(begin, 1)
        whole = before + block + rest.split(end, 1)[1]
    else:
        whole = whole.rstrip("\n") + "\n\n" + block + "\n"
    with open(RESULTS, "w", encoding="utf-8") as f:
        f.write(whole)
    say("wrote", RESULTS)


if __name__ == "__main__":
    write(sys.argv[1], sys.stdin.read())
