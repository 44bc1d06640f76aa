# The scripts source this file. `prepare` installs the service and the SDK in .venv and installs them again if a
# pyproject.toml changes; `prepare dev` also installs the development tools.

prepare() {
    local root python stamp checksum wanted
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    cd "$root" || exit 2
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "$0: needs Python 3.11 or newer; set PYTHON to one" >&2
        exit 2
    fi
    checksum="$(cat pyproject.toml ingest/sdk/pyproject.toml | cksum) $root"
    wanted="${1:-service} $checksum"
    stamp=$(cat .venv/installed 2>/dev/null || true)
    # scripts/run can also use an environment with the development tools.
    if [ "$stamp" = "$wanted" ] || { [ "${1:-service}" = service ] && [ "$stamp" = "dev $checksum" ]; }; then
        return
    fi
    echo "setting up .venv (once; this takes a minute or two) ..." >&2
    if ! "$python" -m venv --clear .venv >&2; then
        echo "$0: this Python has no venv; on Debian: apt-get install python3-venv" >&2
        exit 2
    fi
    local pip=(.venv/bin/python -m pip --quiet --disable-pip-version-check install)
    # --group needs pip 25.1.
    "${pip[@]}" --upgrade 'pip>=25.1' >&2
    if [ "${1:-service}" = dev ]; then
        "${pip[@]}" -e ./ingest/sdk -e '.[otel]' --group dev >&2
    else
        "${pip[@]}" -e ./ingest/sdk -e . >&2
    fi
    echo "$wanted" > .venv/installed
}
