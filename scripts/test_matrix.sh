#!/usr/bin/env bash
# The fast tests on several versions of Python and jax, each in a separate virtual environment.
#
#   scripts/test_matrix.sh                             # all of them, every fast test
#   ROWS="old new" scripts/test_matrix.sh tests/laws_test.py -k siren
#
# Arguments go to pytest. Environment: ROWS, of: old (Python 3.12, jax 0.7.2, flax 0.11.2: Colab's),
# main (3.11, jax 0.10.2), new (3.13, jax 0.12); PYTHON311, PYTHON312, PYTHON313: commands of the
# interpreters; VENVS: where the environments are made (default ~/.cache/entrolab-matrix); one that
# exists is used as it is. Prints a table; exit code 1 when a row fails.
set -u
cd "$(dirname "$0")/.."
venvs=${VENVS:-${XDG_CACHE_HOME:-$HOME/.cache}/entrolab-matrix}
declare -A python=([old]=${PYTHON312:-python3.12} [main]=${PYTHON311:-python3.11}
                   [new]=${PYTHON313:-python3.13})
declare -A pins=([old]="jax==0.7.2 flax==0.11.2" [main]="jax==0.10.2" [new]="jax>=0.12,<0.13")
versions='import sys, jax, flax
print("%d.%d.%d" % sys.version_info[:3], jax.__version__, flax.__version__, sep=" | ")'
mkdir -p "$venvs"
failed=0
table="| row | Python | jax | flax | tests | seconds |
| --- | --- | --- | --- | --- | --- |"
for row in ${ROWS:-old main new}; do
  [ -n "${pins[$row]:-}" ] || { echo "no row '$row'; choices: old main new" >&2; exit 2; }
  if [ ! -x "$venvs/$row/bin/python" ]; then
    read -ra wanted <<< "${pins[$row]}"
    "${python[$row]}" -m venv "$venvs/$row" &&
      "$venvs/$row/bin/pip" install -q -e '.[train,verify,test,gguf,tasks]' "${wanted[@]}" || {
        echo "$row: no environment with ${python[$row]}; name another in PYTHON3xx" >&2; exit 2; }
  fi
  begin=$SECONDS
  JAX_PLATFORMS=cpu "$venvs/$row/bin/python" -m pytest -q "$@" 2>&1 | tee "$venvs/$row.log"
  [ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
  table+="
| $row | $("$venvs/$row/bin/python" -c "$versions") | $(grep -E '(passed|failed|error|no tests)' \
    "$venvs/$row.log" | tail -1 | tr -d =) | $((SECONDS - begin)) |"
done
echo "$table"
exit $failed
