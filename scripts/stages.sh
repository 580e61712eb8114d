#!/usr/bin/env bash
# How a script of several stages says what it does and after how long. Sourced when its first stage begins.

SECONDS=0

stage() {
    echo
    echo "=== [$((SECONDS / 60)) min $((SECONDS % 60)) s] $1"
}
run() {
    echo "\$ $*"
    "$@"
}
