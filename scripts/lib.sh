# Shared by the set-up scripts: one line a step, everything else into a log.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
LOGS=$ROOT/build/log
mkdir -p "$LOGS"
umask 022 # an upgrade refuses files that others could write

say() { printf '==> %s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# step WORDS LOG COMMAND...: run COMMAND with its output in LOG, say how long it took, show the end of LOG if it failed.
step() {
    local words=$1 log=$LOGS/$2 begin=$SECONDS
    shift 2
    printf '==> %s … ' "$words"
    if "$@" >"$log" 2>&1 </dev/null; then
        printf 'done (%d s)\n' $((SECONDS - begin))
    else
        printf 'failed (%d s); the end of %s:\n' $((SECONDS - begin)) "$log"
        tail -n 30 "$log" >&2
        exit 1
    fi
}
