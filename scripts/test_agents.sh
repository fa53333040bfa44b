#!/usr/bin/env bash
# Agents of other people's libraries: builds .venv-agents if it is not there, then runs their tests with ours.
#
# usage: scripts/test_agents.sh --build | [pytest arguments]
. "$(dirname "$0")/environments.sh" agents
fill() {
  install 'smolagents[openai]>=1.26,<2' 'openai-agents>=0.24,<1' 'langgraph>=1,<2' 'langchain-openai>=1,<2'
  rm -rf "$venv/ours" # half of one, where the last run was interrupted
  install -c constraints.txt --target "$venv/ours" 'mcp>=2.2,<3'
}
build_once "$@"
# The package mcp is imported by agentrl itself, and servers of the tests by the same interpreter.
export PYTHONPATH="$venv/ours${PYTHONPATH:+:$PYTHONPATH}"
export AGENTRL_AGENTS_PYTHON="$venv/bin/python"
run_tests "${TEST_PYTHON:-.venv/bin/python}" tests/agents "$@"
