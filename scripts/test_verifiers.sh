#!/usr/bin/env bash
# Tasksets of verifiers 0.4, which does not go with 0.2: builds .venv-verifiers if it is not there, then plays them.
#
# usage: scripts/test_verifiers.sh --build | [pytest arguments]
. "$(dirname "$0")/environments.sh" verifiers
fill() {
  # Its harness is a script of uv, whose packages that fetches when it is first played.
  install -e . 'verifiers>=0.4,<0.5' uv 'pytest>=8' 'pytest-asyncio>=0.24' 'pytest-timeout>=2.3'
}
build_once "$@"
export PATH="$venv/bin:$PATH"
run_tests "$venv/bin/python" tests/adapters/test_verifiers_v1.py -m 'slow or not slow' "$@"
