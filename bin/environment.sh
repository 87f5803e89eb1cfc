# shellcheck shell=bash
# Sourced by bin/batchpredict and bin/test: finds or makes the virtual environment they run in.
#
# An environment is a directory that appears under its name only when it is complete: it is built
# beside that name and renamed. It holds the dependencies, and a .pth file that points to the
# checkout, so the checkout itself is never written to by a build and needs no installing.
#
# Beside it lies NAME.lock, which is never removed. Every run holds it shared for as long as its
# process lives (the descriptor survives exec); who builds or replaces the environment holds it
# exclusively. So nothing is swapped under a running job, and two first callers build once.
#
# Nothing here may read standard input: it may be the data.

: "${root:?the checkout, set by the script that sources this}"
program=${program:-${0##*/}}

say() { printf '%s: %s\n' "$program" "$*" >&2; }

fail() {
  local code=$1
  shift
  say "$@"
  exit "$code"
}

# cron hands over a `~` from a variable's value as it is written.
expand_home() {
  local path=$1
  # shellcheck disable=SC2088
  if [[ $path == '~' || $path == '~/'* ]]; then path="$(home)${path:1}"; fi
  if [[ $path != /* ]]; then path=$PWD/$path; fi
  printf '%s\n' "$path"
}

# Without HOME (env -i), bash looks the home directory up in the user database; an empty HOME it obeys.
home() {
  if [[ -z ${HOME:-} ]]; then unset HOME; fi
  printf '%s\n' ~
}

# Sets `pins`: everything that shapes an environment, as text. It is stored in the environment and
# compared without starting a process. Other sections of setup.cfg may change freely. The test
# environment's text begins with all of the other's, because it serves for that as well; the line
# `end` keeps a list that lost its last entry from passing for a beginning.
describe_pins() {
  local extras=$1 section='' line options='' extra_requirements=''
  [[ -r $root/setup.cfg && -r $root/constraints.txt ]] ||
    fail 78 "setup.cfg or constraints.txt is missing in $root: this is not a whole checkout"
  pins="format 1"$'\n'"checkout $root"$'\n'
  while IFS= read -r line || [[ -n $line ]]; do
    case $line in
      '' | '#'*) ;;
      *) pins+=$line$'\n' ;;
    esac
  done <"$root/constraints.txt"
  while IFS= read -r line || [[ -n $line ]]; do
    case $line in
      '' | '#'*) ;;
      '['*) section=$line ;;
      *)
        case $section in
          '[options]') options+=$line$'\n' ;;
          '[options.extras_require]') extra_requirements+=$line$'\n' ;;
        esac
        ;;
    esac
  done <"$root/setup.cfg"
  pins+=$options'end'$'\n'
  if [[ -n $extras ]]; then pins+="with $extras"$'\n'$extra_requirements; fi
}

# True if $venv is complete and made from these pins, by the Python that is asked for.
is_current() {
  local interpreter asked made_from
  [[ -r $venv/$stamp && -x $venv/bin/python ]] || return 1
  {
    IFS= read -r interpreter
    IFS= read -r asked
    IFS= read -r -d '' made_from || true
  } <"$venv/$stamp"
  [[ $made_from == "$pins"* ]] || return 1
  if [[ -n ${BATCHPREDICT_PYTHON:-} && $BATCHPREDICT_PYTHON != "$asked" ]]; then
    find_python
    [[ $python == "$interpreter" ]] || return 1
  fi
}

# A Python may put warnings before its answer.
read_answer() {
  local last=${1##*$'\n'}
  python=${last#* } python_version=${last%% *}
}

# Sets `python` (the real file, so that an upgrade behind a `python3` link is noticed as a missing
# file instead of giving the environment another version) and `python_version`.
find_python() {
  local name candidate answer directory search=$PATH complaint='' lacking=''
  # shellcheck disable=SC2016
  local probe='
import os, sys
if sys.version_info < (3, 11):
    sys.exit("is Python %d.%d" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError:
    sys.exit("lacks venv")
print("%d.%d" % sys.version_info[:2], os.path.realpath(sys._base_executable))
'
  if [[ -n ${BATCHPREDICT_PYTHON:-} ]]; then
    candidate=$BATCHPREDICT_PYTHON
    if [[ $candidate == */* ]]; then candidate=$(expand_home "$candidate"); fi
    answer=$("$candidate" -I -c "$probe" 2>&1 </dev/null) || {
      case $answer in
        'lacks venv') complaint="has no venv module (Debian, Ubuntu: apt install python3-venv)" ;;
        'is Python'*) complaint="${answer}; 3.11 or newer is needed" ;;
        *) complaint="does not run: ${answer##*$'\n'}" ;;
      esac
      fail 78 "BATCHPREDICT_PYTHON=$BATCHPREDICT_PYTHON $complaint"
    }
    read_answer "$answer"
    return
  fi
  # cron's PATH leaves out where a Python built by hand or by a package manager of its own lies.
  for directory in /usr/local/bin /opt/homebrew/bin "$(home)/.local/bin"; do
    if [[ :$search: != *:$directory:* ]]; then search+=:$directory; fi
  done
  for name in python3.14 python3.13 python3.12 python3.11 python3; do
    while IFS= read -r candidate; do
      # A pyenv shim or a broken installation has the name and does not run.
      if answer=$("$candidate" -I -c "$probe" 2>&1 </dev/null); then
        read_answer "$answer"
        return
      fi
      if [[ $answer == 'lacks venv' ]]; then lacking=$candidate; fi
    done < <(PATH=$search type -aPf "$name")
  done
  [[ -z $lacking ]] ||
    fail 78 "$lacking has no venv module (Debian, Ubuntu: apt install python3-venv)"
  fail 78 "no Python 3.11 or newer in $search; install one (Debian, Ubuntu: apt install" \
    "python3 python3-venv) or name one in BATCHPREDICT_PYTHON"
}

take_lock() {
  local kind=$1 message=$2 status=0
  flock -n "$kind" "$lock" || status=$?
  if [[ $status == 1 ]]; then
    say "$message"
    status=0
    flock "$kind" "$lock" || status=$?
  fi
  [[ $status == 0 ]] || fail 78 "cannot lock $venv.lock (flock ended with $status)"
}

# Runs a step of the build with its output in the log. In the background and waited for, because
# bash handles a signal only once a foreground child has ended, and pip may take a minute.
quietly() {
  "$@" >>"$log" 2>&1 </dev/null &
  step=$!
  local status=0
  wait "$step" || status=$?
  step=''
  return "$status"
}

abandon() {
  local signal=$1
  trap '' HUP INT TERM
  if [[ -n $step ]]; then
    kill "$step" 2>/dev/null || true
    wait "$step" 2>/dev/null || true
  fi
  rm -rf -- "$building"
  say "stopped; nothing half-made is left"
  trap - "$signal"
  kill -s "$signal" $$
}

build_failed() {
  local what=$1 code=78 reason='' line
  if grep -qE 'Connection(Error|Pool)|NewConnection|Connect(ion)?(Timeout| timed out)|ReadTimeout|Max retries|after connection broken|name resolution|ProxyError|SSLError|HTTP error' "$log"; then
    code=69 reason=' (downloading failed)'
  fi
  say "$what$reason; the last lines were:"
  while IFS= read -r line; do printf '    %s\n' "$line" >&2; done < <(tail -n 12 "$log")
  rm -rf -- "$building"
  exit "$code"
}

# Needs the exclusive lock. Whatever an earlier call that was killed left behind goes first.
build() {
  local extras=$1 minutes=$2 building=$venv.building replaced=$venv.replaced log step='' file signal
  log=$building/setup.log
  find_python
  if ! { rm -rf -- "$building" "$replaced" && mkdir -- "$building"; }; then
    fail 78 "cannot write beside $venv"
  fi
  for signal in HUP INT TERM; do
    # shellcheck disable=SC2064
    trap "abandon $signal" "$signal"
  done
  say "setting up $venv with Python $python_version ($minutes; once, and again when the pins change)"
  quietly "$python" -I -m venv "$building" || build_failed "$python cannot make an environment"
  # The requirements are read by the Python they are for; pip sees no project, so nothing is built
  # and the checkout may be read-only.
  "$building/bin/python" -I - "$root/setup.cfg" "$extras" >"$building/requirements.txt" \
    2>>"$log" <<'PYTHON' || build_failed "cannot read the requirements in setup.cfg"
import configparser
import sys

config = configparser.ConfigParser(interpolation=None)
with open(sys.argv[1], encoding="utf-8") as file:
    config.read_file(file)
lists = [config.get("options", "install_requires", fallback="")]
if sys.argv[2]:
    lists.append(config.get("options.extras_require", sys.argv[2]))
for line in "\n".join(lists).splitlines():
    if line.strip():
        print(line.strip())
PYTHON
  if [[ -s $building/requirements.txt ]]; then
    # A user's pip.conf stays in force (mirrors), but not where it sends packages elsewhere.
    quietly env -u PIP_TARGET -u PIP_PREFIX -u PIP_ROOT PIP_USER=0 \
      "$building/bin/python" -I -m pip --disable-pip-version-check --no-input install \
      --constraint "$root/constraints.txt" --requirement "$building/requirements.txt" ||
      build_failed "pip cannot install what batchpredict needs"
  fi
  for file in "$building"/lib/python3.*/site-packages; do
    printf '%s\n' "$root" >"$file/batchpredict-checkout.pth"
  done
  # venv and pip write the place where they run into their scripts.
  for file in "$building"/bin/*; do
    if [[ -f $file && ! -L $file ]] && grep -qIF -- "$building" "$file"; then
      sed -i "s|${building//[][\\.^\$*|]/\\&}|${venv//[\\&|]/\\&}|g" "$file"
    fi
  done
  printf '%s\n%s\n%s' "$python" "${BATCHPREDICT_PYTHON:-}" "$pins" >"$building/$stamp"
  if ! { { [[ ! -e $venv && ! -L $venv ]] || mv -T -- "$venv" "$replaced"; } &&
    mv -T -- "$building" "$venv"; }; then
    rm -rf -- "$building"
    fail 78 "cannot put the environment in place as $venv"
  fi
  trap - HUP INT TERM
  rm -rf -- "$replaced"
}

# Sets `venv` to where the environment is or belongs.
choose_place() {
  local override=$1 default=$2 key
  if [[ -n $override ]]; then
    venv=$(expand_home "$override")
    venv=${venv%/}
    return
  fi
  venv=$root/$default
  # A checkout that cannot be written to may still bring its environment along.
  if [[ -w $root ]] || is_current; then return; fi
  key=$(printf '%s' "$root" | sha256sum)
  local data=${XDG_DATA_HOME:-}
  # The XDG specification says to ignore a relative path.
  if [[ $data != /* ]]; then data=$(home)/.local/share; fi
  venv=$data/batchpredict/${root##*/}-${key:0:12}/${default#.}
}

# Leaves `venv` set to a complete, current environment whose lock this process holds shared, or exits.
#   $1 value of the variable that moves it   $2 directory in the checkout
#   $3 extra of setup.cfg, or nothing        $4 how long it may take
#   $5 the command that sets it up
hold_environment() {
  local override=$1 default=$2 extras=$3 minutes=$4 remedy=$5
  # The name is part of the contract between versions: an environment without it is not ours.
  local stamp=batchpredict-environment.txt pins lock='' python python_version
  unset PYTHONHOME PYTHONPATH # either may put other packages before the environment's own
  describe_pins "$extras"
  choose_place "$override" "$default"

  if [[ ! -e $venv.lock && -z ${BATCHPREDICT_NO_BOOTSTRAP:-} ]]; then
    { mkdir -p -- "${venv%/*}" && : >>"$venv.lock"; } 2>/dev/null || true
  fi
  if [[ -r $venv.lock ]]; then
    # Opened for reading, so that a user who may not write here holds it as well.
    exec {lock}<"$venv.lock"
  elif is_current; then
    return # a read-only place: nobody can replace it either
  elif [[ -z ${BATCHPREDICT_NO_BOOTSTRAP:-} ]]; then
    fail 78 "cannot write to ${venv%/*}, where the environment belongs; BATCHPREDICT_VENV moves it"
  fi

  while true; do
    if [[ -n $lock ]]; then
      take_lock -s "another call is setting up $venv; waiting for it"
    fi
    if is_current; then return; fi
    if [[ -n ${BATCHPREDICT_NO_BOOTSTRAP:-} ]]; then
      local state='has not been set up'
      if [[ -e $venv/$stamp ]]; then state='no longer fits its pins'; fi
      fail 78 "the environment $venv $state, and BATCHPREDICT_NO_BOOTSTRAP forbids it here;" \
        "run this once: env -u BATCHPREDICT_NO_BOOTSTRAP $remedy"
    fi
    if [[ -n $override && -e $venv && ! -e $venv/$stamp ]] &&
      [[ ! -d $venv || -n $(ls -A -- "$venv") ]]; then
      fail 78 "$venv exists and was not made by this command, so it is not replaced;" \
        "remove it or name another place"
    fi
    if [[ -e $venv/$stamp ]]; then
      take_lock -x "$venv must be set up again; waiting for the runs that use it to end"
    else
      take_lock -x "another call is setting up $venv; waiting for it"
    fi
    if ! is_current; then
      build "$extras" "$minutes"
      is_current || fail 78 "$venv was made and still does not fit; this is a bug in bin/environment.sh"
    fi
    # Turning the lock into a shared one lets another builder in for a moment, so look again.
  done
}
