# Finds out which packages are missing, and installs them with apt. Sourced by ./run and ./test.

export DEBIAN_FRONTEND=noninteractive
missing=()

# Whether the machine has a program, also where only root looks for programs.
has() { command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

has_all() {
  local program
  for program in "$@"; do has "$program" || return 1; done
}

has_file() { [ -e "$1" ]; }

has_postgres() { command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; }

# need PACKAGES -- TEST...: the packages are missing unless the test passes.
need() {
  local packages=()
  while [ "$1" != -- ]; do
    packages+=("$1")
    shift
  done
  shift
  "$@" || missing+=("${packages[@]}")
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n --preserve-env=DEBIAN_FRONTEND "$@"; fi
}

may_install() { [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }; }

install_missing() {
  [ ${#missing[@]} -gt 0 ] || return 0
  if ! command -v apt-get >/dev/null; then
    printf 'Missing on this machine, which has no apt: %s. Install them in its own way, and run this again.\n' "${missing[*]}" >&2
    exit 1
  fi
  if ! may_install; then
    printf 'Missing, and only root can install it. Run this as root, then this command again:\n  apt-get update && apt-get install --no-install-recommends %s\n' "${missing[*]}" >&2
    exit 1
  fi
  printf 'Installing with apt: %s\n' "${missing[*]}"
  if ! has_postgres; then
    # Only the programs are wanted, not the server that Debian would start for everybody.
    as_root mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] ||
      echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
  fi
  as_root apt-get update -q
  as_root apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# Rust is not installed by us: the one from rustup.rs belongs to the person, and Debian's is too old.
need_rust() {
  local wanted found
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  if ! command -v cargo >/dev/null || ! command -v rustc >/dev/null; then
    printf 'A Rust toolchain is missing. Install Rust %s or newer from https://rustup.rs and run this again.\n' "$wanted" >&2
    exit 1
  fi
  found=$(rustc --version | cut -d ' ' -f 2)
  if [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]; then
    printf 'Rust %s is too old; Chitin needs %s or newer. Run: rustup update stable\n' "$found" "$wanted" >&2
    exit 1
  fi
}
