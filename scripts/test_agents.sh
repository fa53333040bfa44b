#!/usr/bin/env bash
# Agents of other people's libraries: builds .venv-agents if it is not there, then runs their tests with ours.
#
# usage: scripts/test_agents.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${AGENTRL_AGENTS_VENV:-.venv-agents}
if ! test -e "$venv/.installed"; then
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip --disable-pip-version-check install --quiet \
    'smolagents[openai]>=1.26,<2' 'openai-agents>=0.24,<1'
  touch "$venv/.installed"
fi
if ! test -d "$venv/ours/mcp"; then
  "$venv/bin/python" -m pip --disable-pip-version-check install --quiet -c constraints.txt --target "$venv/ours" 'mcp>=2.2,<3'
fi
# The package mcp is imported by agentrl itself, and servers of the tests by the same interpreter.
export PYTHONPATH="$PWD/$venv/ours${PYTHONPATH:+:$PYTHONPATH}"
export AGENTRL_AGENTS_PYTHON="$PWD/$venv/bin/python"
exec "${TEST_PYTHON:-.venv/bin/python}" -m pytest tests/agents "$@"
