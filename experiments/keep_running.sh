#!/usr/bin/env bash
# Runs a command until it is done; restarts it after a crash or a preemption.
set -euo pipefail

usage() {
  cat <<'END'
Usage: experiments/keep_running.sh [FLAGS] COMMAND [ARGUMENT]...

Runs COMMAND, and restarts it if it crashes or is preempted; `dermvq train`
resumes from its last checkpoint. COMMAND is not restarted after exit code

  0         done
  2         a user error, reported in one line
  126, 127  COMMAND can't be run
  130       interrupted with Ctrl-C

nor after more than --max_failures failures in a row. The wait before a restart
doubles each time, from --first_wait up to 5 minutes. After a run of at least
--steady seconds, failures are counted from zero again and the wait is
--first_wait again. If this script gets SIGTERM, SIGINT or SIGHUP, it sends
SIGTERM to COMMAND, waits for its end and does not restart it. The exit code is
that of COMMAND's last run.

  --max_failures=N  default: 10; 0: never restart
  --first_wait=S    seconds, default: 5
  --steady=S        seconds, default: 600
  --log=FILE        also append all output to FILE

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
  # tee ignores the signals, so that it also writes the output after them.
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

# Waits for $child and sets $code. The child runs in the background, so that a
# signal is handled at once; a wait that a signal interrupts is repeated.
wait_for_child() {
  local seen=-1
  if ((signals)); then # A signal came before there was a child.
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
  # A terminal sends these to COMMAND too, which would end it while it saves.
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
