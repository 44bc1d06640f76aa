# The scripts source this file. `prepare` installs the service and the SDK in .venv, and again if a pyproject.toml or a
# lock changes; `prepare dev` also installs the development tools. What the locks contain is installed in these versions
# and with these hashes, as in the image; only the development tools have ranges.

prepare() {
    local root python stamp checksum wanted
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    cd "$root" || exit 2
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "$0: needs Python 3.11 or newer; set PYTHON to one" >&2
        exit 2
    fi
    checksum="$(cat pyproject.toml ingest/sdk/pyproject.toml deploy/*.lock | cksum) $root"
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
    "${pip[@]}" --require-hashes -r deploy/requirements.lock -r deploy/build.lock >&2
    "${pip[@]}" --no-build-isolation --no-deps -e ./ingest/sdk -e . >&2
    if [ "${1:-service}" = dev ]; then
        sed -n 's/^\([a-z0-9._-]*==[^ ;]*\).*/\1/p' deploy/requirements.lock > .venv/constraints
        "${pip[@]}" --upgrade 'pip>=25.1' >&2 # for --group
        "${pip[@]}" --constraint .venv/constraints --group dev >&2
    fi
    echo "$wanted" > .venv/installed
}
