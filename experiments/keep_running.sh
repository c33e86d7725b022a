#!/usr/bin/env bash
# Runs a command until it is done: a crash or a preemption starts it again.
set -euo pipefail

usage() {
  cat <<'END'
Usage: experiments/keep_running.sh [FLAGS] COMMAND [ARGUMENT]...

Runs COMMAND, and starts it again when it crashes or is preempted: `dermvq
train` goes on at its last checkpoint. It stays ended after exit code

  0         done
  2         a mistake of yours, told in one line
  126, 127  COMMAND can't be run
  130       interrupted by hand

and after --max_failures failures in a row. The wait before a new start doubles
from --first_wait to 5 minutes. A run of --steady seconds starts the count and
the wait anew. SIGTERM, SIGINT or SIGHUP to this script: COMMAND gets SIGTERM,
is waited for, and not started again. The exit code is COMMAND's last one.

  --max_failures=N  default: 10; 0: never start again
  --first_wait=S    seconds, default: 5
  --steady=S        seconds, default: 600
  --log=FILE        append all output to FILE too

Examples:
  experiments/keep_running.sh dermvq train --config=vqvae:128 --workdir=RUN
  experiments/keep_running.sh --log=RUN.log dermvq encode --workdir=RUN
END
}

fail() {
  printf 'keep_running.sh: error: %s\n' "$1" >&2
  exit 2
}

say() {
  printf 'keep_running.sh: %s: %s\n' "$(date '+%F %T')" "$*" >&2
}

whole_number() {
  [[ $2 =~ ^[0-9]+$ ]] || fail "$1 must be a whole number, not '$2'"
}

max_failures=10
first_wait=5
steady=600
log=
while (($#)); do
  case $1 in
    --max_failures=*) max_failures=${1#*=} ;;
    --first_wait=*) first_wait=${1#*=} ;;
    --steady=*) steady=${1#*=} ;;
    --log=*) log=${1#*=} ;;
    --help)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    -*) fail "unknown flag $1; see --help" ;;
    *) break ;;
  esac
  shift
done
(($#)) || fail 'which command? See --help'
whole_number --max_failures "$max_failures"
whole_number --first_wait "$first_wait"
whole_number --steady "$steady"

if [[ -n $log ]]; then
  : >>"$log" || fail "can't write $log"
  # tee outlives the signals, to write what comes after them.
  exec > >(trap '' TERM INT HUP && exec tee -a "$log") 2>&1
fi

child=
signals=0
on_signal() {
  signals=$((signals + 1))
  if [[ -n $child ]]; then
    kill -TERM "$child" 2>/dev/null || true
  fi
}
trap on_signal TERM INT HUP

# Waits for $child, which runs in the background so that a signal is seen at
# once, and sets $code. A wait cut short by a signal is taken up again.
wait_for_child() {
  local seen=-1
  if ((signals)); then # One came before there was a child to tell.
    kill -TERM "$child" 2>/dev/null || true
  fi
  until ((seen == signals)); do
    seen=$signals
    code=0
    wait "$child" || code=$?
  done
  child=
}

failures=0
pause=$first_wait
while :; do
  say "starts:$(printf ' %q' "$@")"
  started=$SECONDS
  # A terminal sends these to COMMAND too, and would end it while it saves.
  (trap '' INT HUP && exec "$@") &
  child=$!
  wait_for_child
  case $code in
    0 | 2 | 126 | 127 | 130)
      say "ended with exit code $code"
      exit "$code"
      ;;
  esac
  if ((signals)); then
    say "stopped; ended with exit code $code"
    exit "$code"
  fi
  if ((SECONDS - started >= steady)); then
    failures=0
    pause=$first_wait
  fi
  failures=$((failures + 1))
  if ((failures > max_failures)); then
    say "ended with exit code $code; $failures failures in a row, giving up"
    exit "$code"
  fi
  say "ended with exit code $code; starts again in $pause s ($failures of" \
    "$max_failures)"
  sleep "$pause" &
  child=$!
  wait_for_child
  if ((signals)); then
    say 'stopped'
    exit 143
  fi
  pause=$((pause * 2 < 300 ? pause * 2 : 300))
done
