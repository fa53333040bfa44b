#!/bin/sh
# Runs the tests that need a Docker engine: finds one or starts a private one, builds the image, runs pytest.
# Arguments go to pytest. An engine that this script started is ended afterwards, unless KEEP_ENGINE=1.
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"

already=$(scripts/docker_engine.sh status || true)
engine=$(scripts/docker_engine.sh start)
export "${engine:?}" AGENTRL_REQUIRE_DOCKER=1
end_engine() {
    if [ -z "$already" ] && [ -z "${KEEP_ENGINE:-}" ]; then
        scripts/docker_engine.sh stop || echo "test_docker: the engine goes on" >&2 # the tests' status counts
    fi
}
trap end_engine EXIT
trap 'exit 130' INT TERM

PYTHONPATH=.:envs:sandbox "$python" -m agentrl_sandbox.docker.image --packages "${IMAGE_PACKAGES:-numpy,sympy}"
"$python" -m pytest -m docker tests/sandbox tests/containers "$@"
