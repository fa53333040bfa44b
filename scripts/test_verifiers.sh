#!/usr/bin/env bash
# Tasksets of verifiers 0.4, which does not go with 0.2: builds .venv-verifiers if it is not there, then plays them.
#
# usage: scripts/test_verifiers.sh --build | [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environments.sh
venv=$(realpath -m "${AGENTRL_VERIFIERS_VENV:-.venv-verifiers}")
fill() {
  # Its harness is a script of uv, whose packages that fetches when it is first played.
  "$venv/bin/python" -m pip --disable-pip-version-check install --quiet \
    -e . 'verifiers>=0.4,<0.5' uv 'pytest>=8' 'pytest-asyncio>=0.24' 'pytest-timeout>=2.3'
}
build_once "$venv" scripts/test_verifiers.sh
test "${1:-}" != --build || exit 0
export PATH="$venv/bin:$PATH"
run_tests "$venv/bin/python" tests/adapters/test_verifiers_v1.py -m 'slow or not slow' "$@"
