# Sourced by scripts that test with other people's packages, from the repository's root.

# build_once FOLDER SCRIPT: unless this very recipe has built the virtual environment FOLDER already, make it, let
# the function `fill` of SCRIPT install into it, and write the stamp when all is done.
build_once() {
  local python=${PYTHON:-python3} recipe
  recipe=$({ cat "$2" scripts/environments.sh pyproject.toml constraints.txt; "$python" --version; } | sha256sum)
  test "$(cat "$1/.installed" 2> /dev/null)" != "$recipe" || return 0
  # Only what carries a stamp was made here, and may be removed.
  if test -e "$1/.installed"; then rm -rf "$1"; fi
  "$python" -m venv "$1"
  fill
  echo "$recipe" > "$1/.installed"
}

# run_tests PYTHON [pytest arguments]: where AGENTRL_TESTS_LIMIT_S is set, they are interrupted after so many
# seconds, and pytest says where it was. What the environment lacks is a failure.
run_tests() {
  export AGENTRL_REQUIRE_ADAPTERS=1
  exec timeout --foreground --signal=INT --kill-after=60 "${AGENTRL_TESTS_LIMIT_S:-0}" "$1" -m pytest "${@:2}"
}
