#!/usr/bin/env bash
# Environments of other people's packages: builds .venv-adapters if it is not there, then plays them for real.
#
# usage: scripts/test_adapters.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${AGENTRL_ADAPTERS_VENV:-.venv-adapters}
if ! test -e "$venv/.installed"; then
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip --disable-pip-version-check install --quiet \
    -e '.[reasoning-gym,gymnasium,verifiers]' 'pytest>=8' 'pytest-asyncio>=0.24' 'pytest-timeout>=2.3'
  # A server of OpenEnv without its web pages, which need gradio.
  "$venv/bin/python" -m pip --disable-pip-version-check install --quiet \
    'fastapi>=0.116' 'uvicorn>=0.24' 'fastmcp>=3,<4'
  "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps 'openenv>=0.10,<0.11'
  touch "$venv/.installed"
fi
exec "$venv/bin/python" -m pytest tests/adapters "$@"
