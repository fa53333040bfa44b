#!/usr/bin/env bash
# Environments of other people's packages: builds .venv-adapters if it is not there, then plays them for real.
#
# usage: scripts/test_adapters.sh --build | [pytest arguments]
. "$(dirname "$0")/environments.sh" adapters
fill() {
  install -e '.[reasoning-gym,gymnasium,verifiers]' 'pytest>=8' 'pytest-asyncio>=0.24' 'pytest-timeout>=2.3'
  # A server of OpenEnv without its web pages, which need gradio.
  install 'fastapi>=0.116' 'uvicorn>=0.24' 'fastmcp>=3,<4'
  install --no-deps 'openenv>=0.10,<0.11'
}
build_once "$@"
# TRL and torch are not here; `make test-families` plays that one.
run_tests "$venv/bin/python" tests/adapters --ignore tests/adapters/test_verifiers_v1.py \
  --deselect tests/adapters/test_trl.py::test_trl_itself_offers_the_same_tools "$@"
