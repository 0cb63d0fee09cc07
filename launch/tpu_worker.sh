#!/bin/bash
# What tpu_pod.sh runs on every host of a slice, each attempt from a folder of its own in ~/taming_jax:
#
#   tpu_worker.sh setup BUCKET    Python, the requirements, and the bucket at /bucket
#   tpu_worker.sh train FLAG...   trains and exits as the training does; host 0 prints what it says
#
# The training is a process of its own and does not end with the connection. gcloud repeats a command whose connection
# broke, and a person may come back: both find the training that runs, none is started beside it.
set -Eeuo pipefail
attempt=$(cd "$(dirname "$0")/.." && pwd)
home=$(dirname "$attempt")

setup() {
  trap 'exit 1' ERR # other codes have a meaning
  if ! cmp -s "$attempt/requirements.txt" "$home/venv/requirements.txt"; then
    rm -rf "$home/venv"
    python3 -m pip install --quiet --user uv # the images' own Python is too old
    python3 -m uv venv --quiet --python=3.11 "$home/venv"
    # One resolution, so that the requirements' bounds hold for jax[tpu] too.
    python3 -m uv pip install --quiet --python="$home/venv/bin/python" -r "$attempt/requirements.txt" 'jax[tpu]'
    cp "$attempt/requirements.txt" "$home/venv/requirements.txt"
  fi
  mount_bucket "$1"
}

mount_bucket() {
  local mounted
  mounted=$(findmnt --noheadings --output=SOURCE /bucket || true)
  if [ "$mounted" = "$1" ]; then
    return
  elif [ -n "$mounted" ]; then
    echo "error: /bucket is the bucket $mounted, not $1: take --bucket=$mounted or another slice" >&2
    exit 2
  fi
  command -v gcsfuse >/dev/null || install_gcsfuse
  sudo mkdir -p /bucket
  sudo chown "$(id -un)" /bucket
  # Nothing is remembered of files: the hosts write one checkpoint together, each must see what the others have done.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$1" /bucket
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt codename
  # shellcheck source=/dev/null
  codename=$(source /etc/os-release && echo "$VERSION_CODENAME")
  curl -fsSL "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $packages gcsfuse-$codename main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  # A new host updates itself, and holds apt's lock meanwhile.
  sudo apt-get -q -o DPkg::Lock::Timeout=600 update
  sudo apt-get -q -o DPkg::Lock::Timeout=600 install -y gcsfuse
}

train() {
  local running=$attempt host code
  if [ ! -e "$attempt/pid" ]; then
    if kill -0 "$(cat "$home/current/pid" 2>/dev/null)" 2>/dev/null; then
      running=$(readlink "$home/current")
    else
      start "$@"
    fi
  fi
  if [ "$(cat "$running/flags")" != "$(printf '%q ' "$@")" ]; then
    echo "error: this slice trains already, with other flags: $(cat "$running/flags")" >&2
    exit 2
  fi

  host=$(curl -fs -H 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
  if [ "$host" = 0 ]; then
    tail --pid="$(cat "$running/pid")" -n +1 -f "$running/train.log"
  else
    tail --pid="$(cat "$running/pid")" -f /dev/null
  fi
  code=$(cat "$running/code" || echo 1)
  if [ "$host" != 0 ] && [ "$code" != 0 ]; then
    tail -n 5 "$running/train.log" | sed "s/^/host $host: /" >&2
  fi
  exit "$code"
}

start() {
  printf '%q ' "$@" >"$attempt/flags"
  setsid bash "$0" record "$@" >"$attempt/train.log" 2>&1 </dev/null &
  echo $! >"$attempt/pid"
  ln -sfn "$attempt" "$home/current"
}

record() {
  local code=0
  trap : TERM # the training saves a checkpoint, and its code tells of it
  cd "$attempt"
  export JAX_COMPILATION_CACHE_DIR=/bucket/jax_cache # a slice that comes back does not compile for minutes again
  "$home/venv/bin/python" -u -m taming_jax.train --distributed "$@" || code=$?
  echo "$code" >code
}

"$@"
