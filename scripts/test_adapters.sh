#!/usr/bin/env bash
# Environments of other people's packages: builds .venv-adapters if it is not there, then plays them for real.
#
# usage: scripts/test_adapters.sh --build | [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environments.sh
venv=$(realpath -m "${AGENTRL_ADAPTERS_VENV:-.venv-adapters}")
fill() {
  "$venv/bin/python" -m pip --disable-pip-version-check install --quiet \
    -e '.[reasoning-gym,gymnasium,verifiers]' 'pytest>=8' 'pytest-asyncio>=0.24' 'pytest-timeout>=2.3'
  # A server of OpenEnv without its web pages, which need gradio.
  "$venv/bin/python" -m pip --disable-pip-version-check install --quiet \
    'fastapi>=0.116' 'uvicorn>=0.24' 'fastmcp>=3,<4'
  "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps 'openenv>=0.10,<0.11'
}
build_once "$venv" scripts/test_adapters.sh
test "${1:-}" != --build || exit 0
# TRL and torch are not here; `make test-families` plays that one.
run_tests "$venv/bin/python" tests/adapters --ignore tests/adapters/test_verifiers_v1.py \
  --deselect tests/adapters/test_trl.py::test_trl_itself_offers_the_same_tools "$@"
