# Sourced with the NAME of an environment by scripts that test with other people's packages: goes to the repository's
# root, and sets `venv` to .venv-NAME or to what AGENTRL_NAME_VENV says.
set -euo pipefail
script=$(realpath "$0")
cd "$(dirname "$script")/.."
venv=AGENTRL_${1^^}_VENV
venv=$(realpath -m "${!venv:-.venv-$1}")

# install [pip arguments]: into the environment.
install() {
  "$venv/bin/python" -m pip --disable-pip-version-check install --quiet "$@"
}

# build_once [--build]: unless this very recipe has built the environment already, make it, let the script's function
# `fill` install into it, and write the stamp when all is done. With --build the script ends here.
build_once() {
  local python=${PYTHON:-python3} recipe
  recipe=$({ cat "$script" scripts/environments.sh pyproject.toml constraints.txt; "$python" --version; } | sha256sum)
  if test "$(cat "$venv/.installed" 2> /dev/null)" != "$recipe"; then
    # Only what carries a stamp was made here, and may be removed.
    if test -e "$venv/.installed"; then rm -rf "$venv"; fi
    "$python" -m venv "$venv"
    fill
    echo "$recipe" > "$venv/.installed"
  fi
  test "${1:-}" != --build || exit 0
}

# run_tests PYTHON [pytest arguments]: where AGENTRL_TESTS_LIMIT_S is set, they are interrupted after so many
# seconds, and pytest says where it was. What the environment lacks is a failure.
run_tests() {
  export AGENTRL_REQUIRE_ADAPTERS=1
  exec timeout --foreground --signal=INT --kill-after=60 "${AGENTRL_TESTS_LIMIT_S:-0}" "$1" -m pytest "${@:2}"
}
