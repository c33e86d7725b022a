#!/usr/bin/env bash
# Runs dermvq on Cloud TPU VMs, from creating the machine to deleting it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'END'
Usage: experiments/tpu_vm.sh COMMAND [FLAGS] [ARGUMENT]...

  create   request a machine (a queued resource)
  setup    install dermvq on all its workers
  stage    copy prepared data to the disk of every worker
  run      start a dermvq command on all workers, and restart it if it fails
  logs     print the output of the run
  status   print the machine's state, and whether the run is on
  stop     save and end the run
  delete   delete the machine

Each command has --help with examples. All commands take these flags; the
environment variables are used if a flag is not given:

  --name=NAME     TPU_NAME    name of the machine
  --zone=ZONE     ZONE        its zone
  --project=ID    PROJECT_ID  its project; default: that of gcloud
  --dry-run                   print the exact commands, run nothing
END
}

help() {
  case $1 in
    create)
      cat <<'END'
Usage: experiments/tpu_vm.sh create [FLAGS] [-- GCLOUD_FLAG...]

Requests a machine. It is ready when `status` prints ACTIVE, and costs money
from then on. Arguments after -- go to `gcloud compute tpus queued-resources
create`.

  --accelerator_type=TYPE      v6e-8, v5litepod-8, v5p-8, ...; default:
                               ACCELERATOR_TYPE
  --runtime_version=VERSION    default: RUNTIME_VERSION, or chosen by the type
  --spot                       cheaper, but can be taken away at any time
  --valid_until_duration=TIME  give up after this time, for example 6h
  --wait                       return only when the machine is ready

Examples:
  experiments/tpu_vm.sh create --name=mole --zone=us-east5-b \
    --accelerator_type=v6e-8 --spot --wait
  experiments/tpu_vm.sh create --accelerator_type=v5p-8 -- --reserved \
    --service-account=trainer@my-project.iam.gserviceaccount.com
END
      ;;
    setup)
      cat <<'END'
Usage: experiments/tpu_vm.sh setup [FLAGS]

Installs Python, this clone with its uncommitted changes, and its dependencies
(requirements/tpu.txt, whose digests are checked) into ~/dermvq on all workers.
Run it again after you change the clone.

  --wheel=FILE    install this wheel instead of the clone

Examples:
  experiments/tpu_vm.sh setup --name=mole --zone=us-east5-b
  experiments/tpu_vm.sh setup --wheel=dist/dermvq_jax-0.1.0-py3-none-any.whl
END
      ;;
    stage)
      cat <<'END'
Usage: experiments/tpu_vm.sh stage --from=DIR [FLAGS]

Copies the content of DIR, a --data_dir of `dermvq prepare`, to ~/dermvq/data on
every worker. Commands run in ~/dermvq, so give them --config.data_dir=data.
Datasets can't be read from gs:// directly.

  --from=DIR      gs://BUCKET/FOLDER, or a folder on this machine

Examples:
  experiments/tpu_vm.sh stage --from=gs://my-bucket/data
  experiments/tpu_vm.sh stage --from=DATA
END
      ;;
    run)
      cat <<'END'
Usage: experiments/tpu_vm.sh run [FLAGS] [--] dermvq ARGUMENT...

Starts the command on all workers, in ~/dermvq, inside tmux and
keep_running.sh: after a crash or a reboot it is restarted, and a training
resumes from its last checkpoint. The log is ~/dermvq/logs/dermvq.log.

  --worker=N           run on this worker only; default: all
  --max_failures=N     give up after more failures in a row; default: 10

Examples:
  experiments/tpu_vm.sh run dermvq train --config=vqvae:128 \
    --workdir=gs://my-bucket/run --config.data_dir=data
  experiments/tpu_vm.sh run --worker=0 dermvq report --workdir=runs/first
END
      ;;
    logs)
      cat <<'END'
Usage: experiments/tpu_vm.sh logs [FLAGS]

Prints the log of the run.

  --worker=N|all  whose log; default: 0
  --lines=N       print the last N lines; default: 50
  --follow        keep printing new lines, until Ctrl-C

Examples:
  experiments/tpu_vm.sh logs --follow
  experiments/tpu_vm.sh logs --worker=all --lines=5
  experiments/tpu_vm.sh logs --lines=1000000 >run.log
END
      ;;
    status)
      cat <<'END'
Usage: experiments/tpu_vm.sh status [FLAGS]

Prints the machine's state: WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, or
SUSPENDED (taken away). If it is ACTIVE, also prints for each worker whether the
run is on, and the last line of its log.

Examples:
  experiments/tpu_vm.sh status --name=mole --zone=us-east5-b
END
      ;;
    stop)
      cat <<'END'
Usage: experiments/tpu_vm.sh stop [FLAGS]

Ends the run on all workers. The run saves first; it is killed if it has not
ended after --grace seconds. To resume, `run` the same command again.

  --grace=S       seconds; default: 120

Examples:
  experiments/tpu_vm.sh stop --grace=600
END
      ;;
    delete)
      cat <<'END'
Usage: experiments/tpu_vm.sh delete [FLAGS]

Deletes the machine with everything on its disks, workdirs and logs included.

  --yes           don't ask for confirmation

Examples:
  experiments/tpu_vm.sh delete --name=mole --zone=us-east5-b
END
      ;;
  esac
}

fail() {
  printf 'tpu_vm.sh: error: %s\n' "$1" >&2
  exit 2
}

# The flags; empty if not given.
name=${TPU_NAME:-}
zone=${ZONE:-}
project=${PROJECT_ID:-}
accelerator_type=${ACCELERATOR_TYPE:-}
runtime_version=${RUNTIME_VERSION:-}
spot='' valid_until_duration='' wait='' wheel='' from='' worker='' follow=''
max_failures=10 lines=50 grace=120 dry_run='' yes=''
common='name zone project dry_run help'

own_flags() {
  case $1 in
    create)
      echo accelerator_type runtime_version spot valid_until_duration wait
      ;;
    setup) echo wheel ;;
    stage) echo from ;;
    run) echo worker max_failures ;;
    logs) echo worker lines follow ;;
    status) echo ;;
    stop) echo grace ;;
    delete) echo yes ;;
    *) fail "there is no command '$1'; see --help" ;;
  esac
}

# Quotes a word, so that a shell reads it back unchanged.
quote() {
  local apostrophe="'" escaped="'\\''"
  case $1 in
    '' | *[!A-Za-z0-9_./:=@%+,-]*)
      printf "'%s'" "${1//$apostrophe/$escaped}"
      ;;
    *) printf '%s' "$1" ;;
  esac
}

quote_all() {
  local separator='' word
  for word in "$@"; do
    printf '%s' "$separator"
    quote "$word"
    separator=' '
  done
}

do_or_print() {
  if [[ -n $dry_run ]]; then
    quote_all "$@"
    echo
  else
    "$@"
  fi
}

tpus() {
  do_or_print gcloud compute tpus "$@" "--zone=$zone" \
    ${project:+"--project=$project"}
}

# on_workers WORKER SCRIPT: runs a script with sh in the worker's home folder.
on_workers() {
  tpus tpu-vm ssh "$name" "--worker=$1" "--command=$2"
}

default_runtime() {
  # https://cloud.google.com/tpu/docs/runtimes
  case $1 in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    v5e-*) fail "Cloud TPU calls '$1' v5litepod-${1#*-}; give this" ;;
    *) fail "no runtime version is known for '$1'; give --runtime_version" ;;
  esac
}

state() {
  tpus queued-resources describe "$name" '--format=value(state.state)'
}

wait_until_active() {
  local now
  if [[ -n $dry_run ]]; then
    state
    return
  fi
  while :; do
    now=$(state)
    printf '%s: %s\n' "$name" "$now"
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPEND* | DELETING)
        fail "$name is $now: delete it, and create it again"
        ;;
    esac
    sleep 30
  done
}

create() {
  [[ -n $accelerator_type ]] ||
    fail 'which type? Give --accelerator_type, or set ACCELERATOR_TYPE'
  if [[ -z $runtime_version ]]; then
    runtime_version=$(default_runtime "$accelerator_type")
  fi
  tpus queued-resources create "$name" "--node-id=$name" \
    "--accelerator-type=$accelerator_type" \
    "--runtime-version=$runtime_version" \
    ${spot:+--spot} \
    ${valid_until_duration:+"--valid-until-duration=$valid_until_duration"} \
    "$@"
  if [[ -n $wait ]]; then
    wait_until_active
  fi
}

setup() {
  local archive=$HOME/.cache/dermvq/$name.tar.gz package=./src
  do_or_print mkdir -p "$HOME/.cache/dermvq"
  if [[ -n $wheel ]]; then
    [[ -f $wheel ]] || fail "there is no wheel $wheel"
    package=./src/$(basename "$wheel")
    do_or_print tar -czf "$archive" \
      -C "$root" requirements experiments/keep_running.sh \
      -C "$(cd "$(dirname "$wheel")" && pwd)" "$(basename "$wheel")"
  else
    do_or_print tar -czf "$archive" -C "$root" --exclude=__pycache__ \
      setup.py pyproject.toml README.md requirements \
      dermvq_jax configs experiments/keep_running.sh
  fi
  tpus tpu-vm scp "$archive" "$name:dermvq.tar.gz" --worker=all
  do_or_print rm "$archive"
  # The Python of the machine's image may be too old, so uv brings one. The
  # image's pip installs uv; an image that forbids this needs the variable.
  # Without --reinstall-package uv would keep an installed package of the same
  # version. cron restarts a run after the machine's maintenance.
  on_workers all "set -eu
if tmux has-session -t =dermvq 2>/dev/null; then
  echo \"\$(hostname): a run is on; stop it first\" >&2
  exit 1
fi
mkdir -p dermvq/data dermvq/logs
rm -rf dermvq/src
mkdir dermvq/src
tar -xzf dermvq.tar.gz -C dermvq/src
rm dermvq.tar.gz
if ! command -v tmux >/dev/null; then
  sudo apt-get -qq update
  sudo apt-get -qq install -y tmux
fi
export PATH=\"\$HOME/.local/bin:\$PATH\"
cd dermvq
command -v uv >/dev/null || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install\
 --quiet --user --require-hashes --requirement=src/requirements/uv.txt
uv venv --quiet --allow-existing --python=3.11 venv
build=--build-constraint=src/requirements/build.txt
uv pip install --quiet --python=venv/bin/python \"\$build\"\
 --require-hashes --requirement=src/requirements/tpu.txt
uv pip install --quiet --python=venv/bin/python \"\$build\"\
 --no-deps --reinstall-package=dermvq_jax $(quote "$package")
if command -v crontab >/dev/null; then
  {
    crontab -l 2>/dev/null | grep -v dermvq/run.sh || true
    echo \"@reboot test -f dermvq/run.sh && $start_session\"
  } | crontab -
fi
echo \"\$(hostname): dermvq \$(venv/bin/dermvq --version)\""
}

stage() {
  local entries
  [[ -n $from ]] || fail 'copy from where? Give --from'
  if [[ $from == gs://* ]]; then
    on_workers all "set -eu
mkdir -p dermvq/data
gcloud storage rsync --recursive $(quote "$from") dermvq/data"
    return
  fi
  [[ -d $from ]] || fail "there is no folder $from"
  entries=("$from"/*)
  [[ -e ${entries[0]} ]] || fail "$from is empty"
  on_workers all 'mkdir -p dermvq/data'
  tpus tpu-vm scp --recurse "${entries[@]}" "$name:dermvq/data" --worker=all
}

# run.sh exists as long as the run should be on; cron looks for it.
start_session="tmux new-session -d -s dermvq 'exec bash dermvq/run.sh'"

run() {
  local script
  (($#)) || fail 'run which command? For example: run dermvq train ...'
  script="cd \"\$HOME/dermvq\"
export PATH=\"\$PWD/venv/bin:\$PATH\"
bash src/experiments/keep_running.sh --log=logs/dermvq.log\
 --max_failures=$max_failures -- $(quote_all "$@") &
echo \$\$ \$! >run.pid
wait
rm -f run.sh"
  on_workers "${worker:-all}" "set -eu
if tmux has-session -t =dermvq 2>/dev/null; then
  echo \"\$(hostname): a run is on; see its logs, or stop it\" >&2
  exit 1
fi
if ! test -x dermvq/venv/bin/dermvq; then
  echo \"\$(hostname): dermvq is not installed; run setup first\" >&2
  exit 1
fi
printf '%s\\n' $(quote "$script") >dermvq/run.sh
$start_session
echo \"\$(hostname): started\""
}

logs() {
  on_workers "${worker:-0}" \
    "tail --lines=$lines ${follow:+-F }dermvq/logs/dermvq.log"
}

status() {
  local now=
  if [[ -n $dry_run ]]; then
    state
  else
    now=$(state)
    printf '%s: %s\n' "$name" "$now"
    [[ $now == ACTIVE ]] || return 0
  fi
  on_workers all "if tmux has-session -t =dermvq 2>/dev/null; then
  echo \"\$(hostname): a run is on\"
else
  echo \"\$(hostname): no run is on\"
fi
tail --lines=1 dermvq/logs/dermvq.log 2>/dev/null || true"
}

stop() {
  # run.pid has the ids of the process group and of keep_running.sh.
  on_workers all "set -eu
rm -f dermvq/run.sh
if ! tmux has-session -t =dermvq 2>/dev/null; then
  echo \"\$(hostname): no run is on\"
  exit 0
fi
read -r group loop <dermvq/run.pid
kill -TERM \"\$loop\" || true
for _ in \$(seq $grace); do
  if ! tmux has-session -t =dermvq 2>/dev/null; then
    echo \"\$(hostname): stopped\"
    exit 0
  fi
  sleep 1
done
kill -KILL -- \"-\$group\"
echo \"\$(hostname): killed after $grace s; it resumes from its last checkpoint\""
}

delete() {
  tpus queued-resources delete "$name" --force ${yes:+--quiet}
}

main() {
  local command=${1:---help} own key value number
  if [[ $command == --help || $command == help ]]; then
    usage
    exit 0
  fi
  own=$(own_flags "$command")
  shift
  while (($#)); do
    if [[ $1 == -- ]]; then
      shift
      break
    fi
    [[ $1 == -* ]] || break
    key=${1%%=*}
    key=${key#--}
    key=${key//-/_}
    [[ " $common $own " == *" $key "* ]] ||
      fail "$command has no flag ${1%%=*}; see $command --help"
    case $key in
      help)
        help "$command"
        exit 0
        ;;
      spot | wait | follow | dry_run | yes)
        [[ $1 != *=* ]] || fail "${1%%=*} takes no value"
        value=1
        ;;
      *)
        value=${1#*=}
        [[ $1 == *=?* ]] || fail "$1 needs a value: ${1%%=*}=..."
        ;;
    esac
    printf -v "$key" %s "$value"
    shift
  done
  case $command in
    create | run) ;;
    *) (($# == 0)) || fail "$command takes no argument '$1'" ;;
  esac
  for number in max_failures lines grace; do
    [[ ${!number} =~ ^[0-9]+$ ]] ||
      fail "--$number must be a whole number, not '${!number}'"
  done
  [[ -n $name ]] || fail 'which machine? Give --name, or set TPU_NAME'
  [[ $name =~ ^[a-z][-a-z0-9]*$ ]] ||
    fail "--name must be of a-z, 0-9 and -, not '$name'"
  [[ -n $zone ]] || fail 'where? Give --zone, or set ZONE'
  [[ -n $dry_run ]] || command -v gcloud >/dev/null ||
    fail 'gcloud is not installed: https://cloud.google.com/sdk/docs/install'
  "$command" "$@"
}

main "$@"
