#!/usr/bin/env bash
# Trains on a Cloud TPU slice, all of its hosts as one program, for as many slices as it takes.
#
#   launch/tpu_pod.sh --name=my-slice --zone=us-west4-a --type=v5litepod-16 --bucket=my-bucket --spot --delete \
#     -- --config=configs/imagenet_vq.py --workdir=/bucket/runs/imagenet_vq
#
#   --name=NAME             the slice; one of this name that is there already is used
#   --zone=ZONE             where it is
#   --type=TYPE             v4-*, v5litepod-* (v5e), v5p-* or v6e-*
#   --bucket=BUCKET         of Cloud Storage, at /bucket on every host: the run directory outlives the slice there
#   --spot                  cheaper, and may be taken away at any time
#   --runtime-version=NAME  the hosts' system, where the usual one for the type will not do
#   --delete                deletes the slice when the training has ended, however it did
#   --poll=SECONDS          between two looks at a slice that is not ready yet: 30
#   --dry-run               prints the commands and runs none
#
# What follows -- goes to taming_jax.train. A slice that is taken away is requested anew, and training goes on from the
# newest checkpoint. Ctrl-C ends the watching alone; the same command watches again. launch/README.md says more.
set -euo pipefail

name='' zone='' type='' bucket='' spot='' runtime_version='' delete='' poll=30 dry_run=''
root=$(cd "$(dirname "$0")/.." && pwd)
worker=launch/tpu_worker.sh requested='' attempts=0 failures=0

die() {
  echo "error: $1" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --spot) spot=yes ;;
    --runtime-version=*) runtime_version=${1#*=} ;;
    --delete) delete=yes ;;
    --poll=*) poll=${1#*=} ;;
    --dry-run) dry_run=yes ;;
    --help)
      sed -n 's/^# \{0,1\}//p' "$0" | tail -n +2
      exit
      ;;
    --) break ;;
    *) die "unknown option $1; there are --name=, --zone=, --type=, --bucket=, --spot, --runtime-version=, --delete,\
 --poll=, --dry-run and --help; the flags of taming_jax.train follow --" ;;
  esac
  shift
done
[ $# -gt 0 ] || die "-- is missing: the flags of taming_jax.train follow it"
shift

[ -n "$name" ] || die "--name= is missing: a name for the slice, such as my-slice"
[ -n "$zone" ] || die "--zone= is missing: where the slice is, such as us-west4-a"
[ -n "$type" ] || die "--type= is missing: the slice's accelerator type, such as v5litepod-16"
[ -n "$bucket" ] || die "--bucket= is missing: all hosts write the run directory together, and it outlives the slice"
case $bucket in */*) die "--bucket=$bucket: a bucket's name alone, without gs:// and folders" ;; esac
case $poll in '' | *[!0-9]*) die "--poll=$poll: a whole number of seconds" ;; esac
if [ -z "$runtime_version" ]; then
  case $type in
    v4-*) runtime_version=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime_version=v2-alpha-tpuv5 ;;
    v6e-*) runtime_version=v2-alpha-tpuv6e ;;
    v5e-*) die "--type=$type: Cloud TPU's name for it is v5litepod-${type#*-}" ;;
    *) die "--type=$type: v4-*, v5litepod-*, v5p-* or v6e-*; any other with --runtime-version=" ;;
  esac
fi

config='' workdir=''
for flag; do
  case $flag in
    --config=*) config=${flag#*=} ;;
    --workdir=*) workdir=${flag#*=} ;;
  esac
done
case $config in configs/*) ;; *) config='' ;; esac
[ -f "$root/${config%%:*}" ] || die "after -- there must be --config= with a file in configs/, which goes to the slice"
case $workdir in /bucket/?*) ;; *) die "after -- there must be --workdir= with a folder below /bucket/" ;; esac

run() { # COMMAND...: shows it, and runs it where this is no dry run
  { printf '+' && printf ' %q' "$@" && echo; } >&2
  [ -n "$dry_run" ] || "$@"
}

tpus() { # GROUP VERB ARGUMENT...
  run gcloud --quiet compute tpus "$@" --zone="$zone"
}

request() {
  tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$runtime_version" ${spot:+--spot}
}

remove() {
  tpus queued-resources delete "$name" --force
}

describe() { # GROUP FIELD: its value; MISSING where there is no such thing; UNREACHABLE where gcloud cannot tell
  if gcloud --quiet compute tpus "$1" describe "$name" --zone="$zone" --format="value($2)" 2>"$scratch/error"; then
    return
  elif grep -q NOT_FOUND "$scratch/error"; then
    echo MISSING
  else
    echo "UNREACHABLE: $(grep -m 1 ERROR "$scratch/error")"
  fi
}

slice_state() { # READY, MISSING, or what the queued resource or its node is in
  local state
  state=$(describe queued-resources state.state)
  [ "$state" != ACTIVE ] || state=$(describe tpu-vm state | sed 's/MISSING/TERMINATED/')
  echo "$state"
}

acquire() { # returns when the slice is ready
  local state last=''
  while true; do
    state=$(slice_state)
    [ "$state" = "$last" ] || echo "$(date +%H:%M:%S) $name is $state"
    case $state in
      READY) return ;;
      MISSING)
        if request; then
          requested=yes
        elif [ -n "$requested" ]; then
          failed "$name could not be requested"
        else
          exit 1
        fi
        ;;
      FAILED)
        describe queued-resources state.failedData.error.message
        [ -z "$requested" ] || failed "the request for $name has failed"
        remove || failed "$name could not be deleted"
        ;;
      SUSPENDED | PREEMPTED | TERMINATED | UNKNOWN) remove || failed "$name could not be deleted" ;;
      UNREACHABLE*) [ -n "$last$requested" ] || exit 1 ;;
    esac
    last=$state
    sleep "$poll"
  done
}

set_up() { # copies and installs, in a folder of this attempt's own
  attempts=$((attempts + 1))
  folder=taming_jax/$(date +%Y%m%d-%H%M%S)-$attempts
  tpus tpu-vm scp "$scratch/taming_jax.tgz" "$name:" --worker=all &&
    on_all_hosts "mkdir -p $folder && tar -xzf taming_jax.tgz -C $folder && bash $folder/$worker setup $bucket"
}

train() { # FLAG...
  on_all_hosts "bash $folder/$worker train$(printf ' %q' "$@")"
}

on_all_hosts() { # COMMAND: exits with the code of the first host where it is not 0
  tpus tpu-vm ssh "$name" --worker=all --command="$1"
}

failed() { # WHAT: gives up at the fourth failure that no pre-emption explains
  failures=$((failures + 1))
  [ "$failures" -le 3 ] || finish 1 "$1, after 3 other failures; not tried again"
  echo "$1; trying again, $failures of 3"
}

finish() { # CODE MESSAGE
  echo "$2"
  if [ -z "$delete" ]; then
    still_there
  elif ! remove; then
    still_there
    exit 1
  fi
  exit "$1"
}

still_there() {
  echo "$name stays, and goes on costing money; to delete it:"
  echo "  gcloud compute tpus queued-resources delete $name --zone=$zone --force"
}

interrupted() {
  echo
  echo "interrupted: what $name does goes on; the same command watches it again"
  still_there
  exit 130
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
run tar -czf "$scratch/taming_jax.tgz" -C "$root" --exclude=__pycache__ taming_jax configs requirements.txt $worker
if [ -n "$dry_run" ]; then
  request
  tpus queued-resources describe "$name"
  set_up
  train "$@"
  [ -z "$delete" ] || remove
  exit
fi
command -v gcloud >/dev/null || die "gcloud is missing: https://cloud.google.com/sdk/docs/install"
trap interrupted INT TERM

acquire
found=$(describe tpu-vm 'acceleratorType.basename()')
case $found in
  "$type" | '') ;;
  *) die "$name is a $found, not a $type: take --type=$found, another --name, or delete it first" ;;
esac
while true; do
  code=0 connected=''
  { set_up && connected=yes && train "$@"; } || code=$?
  case $code in
    0) finish 0 "the training has ended" ;;
    2) finish 2 "not tried again: the message above says what is wrong" ;;
    130) finish 130 "the training was stopped by hand; the same command goes on from its checkpoint" ;;
    75)
      echo "$name is being taken away; a checkpoint is saved"
      remove || failed "$name could not be deleted"
      ;;
    *)
      # A broken connection has the code 255; the training does not hang on it.
      if [ "$connected$code" != yes255 ] && [ "$(slice_state)" = READY ]; then
        failed "the training, or what it needs, ended with code $code"
      fi
      ;;
  esac
  acquire
done
