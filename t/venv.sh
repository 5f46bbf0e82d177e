#!/bin/sh
# readies build/venv, the Python environment that drives the browser in tests;
# safe to be called by several at a time

set -e

cd "$(dirname "$0")/.."

build=${SD_BUILD:-build}
want=playwright==1.65.2

mkdir -p "$build"
exec 9> "$build/venv.lock"
flock 9

cd "$build"

if [ "$(cat venv/browser 2>/dev/null)" != "$want" ]; then
    test -x venv/bin/pip || python3 -m venv venv
    venv/bin/pip install --quiet --disable-pip-version-check "$want"
    echo "$want" > venv/browser
fi
