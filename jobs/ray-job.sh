#!/usr/bin/env bash
# Submit one run to a Ray cluster: precompute, infer, evaluate; follow its log; end with the job's own exit code.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: jobs/ray-job.sh MANIFEST [--address http://HEAD:8265] [-- OPTIONS]

Runs `pipeline precompute`, `pipeline infer` and `pipeline evaluate` as one job on a running Ray cluster, follows its
log and exits as the job did. Nothing is uploaded: manifest, archives, checkpoints and output must lie at the same path
on storage that every node and this machine see.

  --address URL   job server of the cluster's head; else RAY_API_SERVER_ADDRESS
  OPTIONS         --workers N, --output RUN, --data-root FOLDER, --allow-code for both stages; --method NAME for
                  infer, repeatable

A cluster with token authentication needs RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN,
in a file named by RAY_AUTH_TOKEN_PATH, or in ~/.ray/auth_token. See jobs/README.md.
TEXT
}

die() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

manifest=""
address="${RAY_API_SERVER_ADDRESS:-}"
while [ "$#" -gt 0 ]; do
  case "$1" in
    -h | --help)
      usage
      exit 0
      ;;
    --address)
      [ "$#" -ge 2 ] || die "--address: needs a value, such as http://HEAD:8265"
      address="$2"
      shift 2
      ;;
    --address=*)
      address="${1#--address=}"
      shift
      ;;
    --)
      shift
      break
      ;;
    -*)
      die "$1: unknown option; options of the stages follow '--', see --help"
      ;;
    *)
      [ -z "$manifest" ] || die "$1: one manifest at a time; options of the stages follow '--', see --help"
      manifest="$1"
      shift
      ;;
  esac
done

[ -n "$manifest" ] || die "no manifest given; usage: jobs/ray-job.sh MANIFEST [--address http://HEAD:8265]"
[ -f "$manifest" ] || die "$manifest: no such manifest"
[ -n "$address" ] || die "no cluster given; use --address http://HEAD:8265 or set RAY_API_SERVER_ADDRESS"
case "$address" in
  http://* | https://*) ;;
  *) die "$address: not the address of a job server, which looks like http://HEAD:8265" ;;
esac
ray="$(command -v ray)" || die "no 'ray' on PATH; activate the environment that the pipeline is installed in"
if [ "${RAY_AUTH_MODE:-}" = token ] && [ -z "${RAY_AUTH_TOKEN:-}" ]; then
  token_file="${RAY_AUTH_TOKEN_PATH:-${HOME:-}/.ray/auth_token}"
  [ -s "$token_file" ] || die "RAY_AUTH_MODE is token, but RAY_AUTH_TOKEN is not set and $token_file holds no token"
fi

python="$(dirname -- "$ray")/python"
[ -x "$python" ] || python=python3
folder="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
manifest="$(cd -- "$(dirname -- "$manifest")" && pwd)/$(basename -- "$manifest")"
exec "$python" "$folder/ray_job.py" "$address" "$manifest" "$@"
