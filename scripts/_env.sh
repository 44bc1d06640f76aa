# Sourced by the scripts: a virtual environment in .venv, installed anew when pyproject.toml changes.
# Usage: prepare [dev]: with `dev` the development tools too.

prepare() {
    local root python stamp wanted
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    cd "$root" || exit 2
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "$0: needs Python 3.11 or newer; set PYTHON to one" >&2
        exit 2
    fi
    wanted="${1:-server} $(cksum < pyproject.toml) $root"
    stamp=.venv/installed
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] || { [ "${1:-server}" = server ] && [ "$(cat "$stamp" 2>/dev/null)" = "dev $(cksum < pyproject.toml) $root" ]; }; then
        return
    fi
    echo "setting up .venv (once; a minute or two) ..." >&2
    if ! "$python" -m venv --clear .venv >&2; then
        echo "$0: this Python has no venv; on Debian: apt-get install python3-venv" >&2
        exit 2
    fi
    # --group needs pip 25.1.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1' >&2
    if [ "${1:-server}" = dev ]; then
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[server,otel]' --group dev >&2
    else
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[server]' >&2
    fi
    echo "$wanted" > "$stamp"
}
