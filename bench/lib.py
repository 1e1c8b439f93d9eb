"""What every measurement shares: a cloud of its own, its peers, a small PostgreSQL client, figures as people read them.

Standard library only. Everything listens on loopback, lives in a directory under /tmp that is removed, and only
processes started here are ended.
"""

import argparse
import base64
import glob
import hashlib
import hmac
import json
import os
import pwd
import re
import resource
import secrets
import shutil
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS_MAX = 60
USER = "bench"
DATABASE = "defaultdb"
# The same for both engines; both peers and Chitin prove the same password the same way.
SCRAM_ITERATIONS = 4096


def fail(why):
    """Ends the measurement with what to do."""
    sys.exit(f"bench: {why}")


def find(program, package):
    """The path of a program, or the line that installs it."""
    extra = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]), reverse=True)
    path = shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), *extra, "/usr/sbin", "/sbin"]))
    return path or fail(f"{program} is missing; install it with: apt-get install {package}")


def chitin_program():
    path = Path(os.environ.get("CHITIN_BIN", ROOT / "target/release/chitin"))
    if not path.exists():
        fail(f"{path} does not exist; build it with: cargo build --release -p chitin (or set CHITIN_BIN)")
    return str(path)


def arguments(about, seconds=5, rounds=3):
    """The flags that every measurement has."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--seconds", type=float, default=seconds, help="length of one round of one peer (%(default)s)")
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds; the median counts (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="little of everything: shows that it runs, not how fast")
    parser.add_argument("--keep", action="store_true", help="leave the temporary directory for a look")
    return parser


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_until(what, check, seconds=START_SECONDS_MAX, pause=0.02):
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not happen within {seconds} s")
        time.sleep(pause)


def can_connect(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


class Workplace:
    """A temporary directory, and the processes started in it, ended in reverse order."""

    def __init__(self, keep=False):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else 65536, hard))
        # Short: a Unix socket's path ends at 107 bytes.
        self.path = Path(tempfile.mkdtemp(prefix="cb-", dir="/tmp"))
        self.path.chmod(0o755)
        self.keep = keep
        self.endings = []
        self.processes = []

    def spawn(self, command, name, **more):
        log = open(self.path / f"{name}.log", "ab")
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **more)
        self.processes.append(process)
        return process

    def log(self, name):
        return (self.path / f"{name}.log").read_text(errors="replace")[-4000:]

    def __enter__(self):
        # Being told to stop must still end what was started.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        return self

    def __exit__(self, *_):
        for ending in reversed(self.endings):
            try:
                ending()
            except Exception as cause:
                print(f"bench: while cleaning up: {cause}", file=sys.stderr)
        for process in reversed(self.processes):
            stop(process)
        if not self.keep:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            print(f"kept {self.path}")


def stop(process, how=signal.SIGTERM, seconds=60):
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Place:
    """Where a client connects: environment for libpq, and what our own client needs."""

    def __init__(self, name, port, database, ca, password, pid=None, binding="prefer", more=None,
                 source="127.0.0.1", header=b""):
        self.name, self.port, self.database, self.ca, self.password = name, port, database, ca, password
        self.pid, self.binding = pid, binding
        # Further environment for libpq, as a client certificate.
        self.more = more or {}
        # For our own client: the address to come from, and what a balancer would say before the first byte.
        self.source, self.header = source, header
        self._keys = {}

    def environment(self):
        plain = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        own = {"PGHOST": "localhost", "PGHOSTADDR": "127.0.0.1", "PGPORT": str(self.port), "PGSSLMODE": "verify-full",
               "PGSSLROOTCERT": str(self.ca), "PGCHANNELBINDING": self.binding, "PGPASSWORD": self.password,
               "PGSSLMINPROTOCOLVERSION": "TLSv1.3"}
        return {**plain, **own, **self.more, "PGUSER": USER, "PGDATABASE": self.database, "PGGSSENCMODE": "disable",
                "PGCONNECT_TIMEOUT": "60"}

    def run(self, *command, **more):
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, **more)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} at {self.name}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def cpu_seconds(self):
        """Processor time of the gateway's process so far; nothing where there is none."""
        return cpu_seconds(self.pid) if self.pid else 0.0

    def connect(self):
        return Client(self)

    def prove(self, salt, iterations, message):
        """SCRAM's proof. The slow part is remembered, so that the server is measured and not this client."""
        if (salt, iterations) not in self._keys:
            salted = hashlib.pbkdf2_hmac("sha256", self.password.encode(), salt, iterations)
            self._keys[salt, iterations] = hmac.digest(salted, b"Client Key", "sha256")
        key = self._keys[salt, iterations]
        signature = hmac.digest(hashlib.sha256(key).digest(), message, "sha256")
        return bytes(a ^ b for a, b in zip(key, signature))


class Client:
    """A PostgreSQL client that can sign in with SCRAM-SHA-256 over TLS 1.3 and ask simple questions."""

    _contexts = {}

    def __init__(self, place, timeout=60):
        raw = socket.create_connection(("127.0.0.1", place.port), timeout=timeout, source_address=(place.source, 0))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.sendall(place.header + struct.pack("!ii", 8, 80877103))
        if raw.recv(1) != b"S":
            raise RuntimeError(f"{place.name} does not speak TLS")
        context = self._contexts.get(place.ca)
        if context is None:
            context = ssl.create_default_context(cafile=place.ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            self._contexts[place.ca] = context
        self.stream = context.wrap_socket(raw, server_hostname="localhost")
        self.buffer = b""
        self._sign_in(place)

    def _sign_in(self, place):
        words = f"user\0{USER}\0database\0{place.database}\0\0".encode()
        self.stream.sendall(struct.pack("!ii", 8 + len(words), 196608) + words)
        nonce = secrets.token_urlsafe(18)
        bare = f"n=,r={nonce}"
        first = f"n,,{bare}".encode()
        while True:
            tag, body = self.read()
            if tag == b"E":
                raise RuntimeError(f"{place.name}: {body.decode(errors='replace')}")
            if tag == b"Z":
                return
            if tag != b"R":
                continue
            kind = struct.unpack("!i", body[:4])[0]
            if kind == 10:
                message = b"SCRAM-SHA-256\0" + struct.pack("!i", len(first)) + first
                self.stream.sendall(b"p" + struct.pack("!i", 4 + len(message)) + message)
            elif kind == 11:
                server = body[4:].decode()
                fields = dict(field.split("=", 1) for field in server.split(","))
                last = f"c=biws,r={fields['r']}"
                proof = place.prove(base64.b64decode(fields["s"]), int(fields["i"]), f"{bare},{server},{last}".encode())
                message = f"{last},p={base64.b64encode(proof).decode()}".encode()
                self.stream.sendall(b"p" + struct.pack("!i", 4 + len(message)) + message)
            elif kind not in (0, 12):
                raise RuntimeError(f"{place.name} asks for sign-in method {kind}")

    def read(self):
        while len(self.buffer) < 5 or len(self.buffer) < 1 + struct.unpack("!i", self.buffer[1:5])[0]:
            piece = self.stream.recv(65536)
            if not piece:
                raise RuntimeError("the server closed the connection")
            self.buffer += piece
        end = 1 + struct.unpack("!i", self.buffer[1:5])[0]
        tag, body, self.buffer = self.buffer[:1], self.buffer[5:end], self.buffer[end:]
        return tag, body

    def ask(self, sql):
        text = sql.encode() + b"\0"
        self.stream.sendall(b"Q" + struct.pack("!i", 4 + len(text)) + text)
        while True:
            tag, body = self.read()
            if tag == b"E":
                raise RuntimeError(body.decode(errors="replace"))
            if tag == b"Z":
                return

    def close(self):
        self.stream.close()


class Cloud:
    """A Chitin of its own with one cluster and one user."""

    def __init__(self, workplace, name="chitin", plan="dedicated", flags=(), program=None, connections=None):
        self.workplace, self.data = workplace, workplace.path / name
        self.program = program or chitin_program()
        sql, http = free_port(), free_port()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CHITIN_")}
        self.environment = {**environment, "CHITIN_DATA": str(self.data)}
        self.process = workplace.spawn(
            [self.program, "start", "--data", str(self.data), "--sql", f"127.0.0.1:{sql}", "--http", f"127.0.0.1:{http}",
             *flags], name, env={**self.environment, "RUST_LOG": "warn"})
        try:
            wait_until("chitin start", self._is_up)
        except RuntimeError:
            fail(f"chitin did not start:\n{workplace.log(name)}")
        self.cluster = "bench-cluster"
        allow = ["--allow", "127.0.0.0/8"] if plan == "dedicated" else []
        more = ["--connections", str(connections)] if connections else []
        self.command("cluster", "create", self.cluster, "--plan", plan, *allow, *more)
        made = json.loads(self.command("user", "create", self.cluster, USER, "--output", "json"))
        url = urllib.parse.urlsplit(self.command("cluster", "url", self.cluster, USER).strip())
        options = urllib.parse.parse_qs(url.query)["options"][0]
        handle = options.split("cluster=", 1)[1]
        self.socket_folder = self.data / "run" / handle.rsplit("-", 1)[1]
        self.place = Place("Chitin", sql, f"{handle}.{DATABASE}", str(self.data / "ca.pem"), made["password"],
                           self.process.pid)
        # The first session also makes the engine accept this user by `peer`, which the peers below rely on.
        self.place.connect().close()

    def _is_up(self):
        if self.process.poll() is not None:
            raise RuntimeError("it ended")
        try:
            if json.loads((self.data / "endpoint.json").read_text())["pid"] != self.process.pid:
                return False
        except (OSError, ValueError, KeyError):
            return False
        return subprocess.run([self.program, "status"], env=self.environment, capture_output=True).returncode == 0

    def command(self, *words):
        done = subprocess.run([self.program, *words], env=self.environment, capture_output=True, text=True, timeout=180)
        if done.returncode != 0:
            raise RuntimeError(f"chitin {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def stop(self):
        stop(self.process)


def unprivileged():
    """PostgreSQL and PgBouncer refuse to be root: an OS user for them, or nobody if we are not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return fail("there is neither a user postgres nor a user nobody")


def certificate(folder, owner):
    """A P-256 certificate for localhost, of the kind that Chitin's own authority issues."""
    key, chain = folder / "server.key", folder / "server.pem"
    subprocess.run(
        [find("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", key, "-out", chain, "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True)
    key.chmod(0o600)
    if owner:
        os.chown(key, owner.pw_uid, owner.pw_gid)
    return key, chain


def verifier(password):
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    text = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{text[0]}${text[1]}:{text[2]}"


class Direct:
    """PostgreSQL alone, on TCP with its own TLS 1.3, with the settings of Chitin's engine that matter for speed."""

    SETTINGS = ("shared_buffers", "work_mem", "maintenance_work_mem", "max_wal_size", "min_wal_size", "wal_level",
                "wal_compression", "fsync", "full_page_writes", "jit", "huge_pages", "max_connections",
                "max_prepared_transactions", "client_connection_check_interval")

    def __init__(self, workplace, cloud, name="direct"):
        self.workplace, self.folder = workplace, workplace.path / name
        self.folder.mkdir()
        self.owner = unprivileged()
        if self.owner:
            os.chown(self.folder, self.owner.pw_uid, self.owner.pw_gid)
        self.data = self.folder / "data"
        self.port = free_port()
        shown = [line.split("|", 1) for line in cloud.place.run(
            find("psql", "postgresql-client"), "-XAtc",
            f"select name, current_setting(name) from pg_settings where name in {self.SETTINGS}").splitlines()]
        version = cloud.place.run(find("psql", "postgresql-client"), "-XAtc", "show server_version_num")
        self.bin = Path(f"/usr/lib/postgresql/{int(version) // 10000}/bin")
        if not self.bin.exists():
            self.bin = Path(find("initdb", "postgresql")).parent
        self.run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "--data-checksums", "-E", "UTF8",
                 "--locale", "C.UTF-8", "--no-sync")
        key, chain = certificate(self.folder, self.owner)
        lines = [f"{setting} = '{value}'" for setting, value in shown]
        lines += ["listen_addresses = '127.0.0.1'", f"port = {self.port}", f"unix_socket_directories = '{self.folder}'",
                  "ssl = on", f"ssl_cert_file = '{chain}'", f"ssl_key_file = '{key}'", "ssl_min_protocol_version = 'TLSv1.3'",
                  "password_encryption = 'scram-sha-256'", "logging_collector = off"]
        with open(self.data / "postgresql.conf", "a") as conf:
            conf.write("\n".join(lines) + "\n")
        (self.data / "pg_hba.conf").write_text("local all all trust\nhostssl all all 127.0.0.0/8 scram-sha-256\n")
        self.start()
        workplace.endings.append(self.stop)
        self.psql("postgres", f"create role {USER} login password '{verifier(cloud.place.password)}'")
        self.psql("postgres", f"create database {DATABASE} owner {USER}")
        self.place = Place("PostgreSQL", self.port, DATABASE, str(chain), cloud.place.password)

    def run(self, program, *words, check=True):
        command = [str(self.bin / program), *words]
        more = {"user": self.owner.pw_uid, "group": self.owner.pw_gid, "extra_groups": []} if self.owner else {}
        log = open(self.workplace.path / "direct.log", "ab")
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd="/", **more)
        if check and done.returncode != 0:
            raise RuntimeError(f"{program} failed:\n{self.workplace.log('direct')}")

    def start(self):
        self.run("pg_ctl", "-D", str(self.data), "-w", "-s", "-l", str(self.folder / "log"), "start")

    def stop(self):
        self.run("pg_ctl", "-D", str(self.data), "-w", "-s", "-m", "fast", "stop", check=False)

    def psql(self, database, sql):
        done = subprocess.run(
            [find("psql", "postgresql-client"), "-XqAt", "-h", str(self.folder), "-p", str(self.port), "-U", "postgres",
             "-d", database, "-c", sql], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return done.stdout


class PgBouncer:
    """PgBouncer with TLS 1.3 and SCRAM in front of the very engine that Chitin's gateway uses; session pooling."""

    def __init__(self, workplace, cloud, client_ca=None, client_environment=None):
        # With a client authority, clients sign in with its certificates.
        self.folder = workplace.path / ("pgbouncer-cert" if client_ca else "pgbouncer")
        self.folder.mkdir(mode=0o755)
        tls_mode = f"verify-full\nclient_tls_ca_file = {client_ca}" if client_ca else "require"
        auth_type = "cert" if client_ca else "scram-sha-256"
        key, chain = certificate(self.folder, None)
        users = self.folder / "users.txt"
        users.write_text(f'"{USER}" "{verifier(cloud.place.password)}"\n')
        port = free_port()
        ini = self.folder / "pgbouncer.ini"
        ini.write_text(f"""[databases]
{DATABASE} = host={cloud.socket_folder} port=5432 dbname={DATABASE}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = {auth_type}
auth_file = {users}
admin_users = {USER}
pool_mode = session
max_client_conn = 3000
default_pool_size = 1900
server_reset_query = DISCARD ALL
ignore_startup_parameters = extra_float_digits
client_tls_sslmode = {tls_mode}
client_tls_protocols = tlsv1.3
client_tls_cert_file = {chain}
client_tls_key_file = {key}
log_connections = 0
log_disconnections = 0
log_stats = 0
""")
        program = find("pgbouncer", "pgbouncer")
        command = [program, "-q", str(ini)]
        if os.geteuid() == 0:
            # The engine admits the node by `peer`, which is root here, and PgBouncer refuses to be root. In a user
            # namespace it sees another number while the kernel still tells the engine who it is. It has no more
            # rights than that, so this cloud's socket is opened to it for the length of the measurement.
            command = [find("unshare", "util-linux"), "--user", "--map-user=1000", "--map-group=1000", "--", *command]
            cloud.socket_folder.chmod(0o755)
            (cloud.socket_folder / ".s.PGSQL.5432").chmod(0o777)
            for path in [cloud.data, cloud.data / "run"]:
                path.chmod(path.stat().st_mode | 0o011)
        version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.split("\n")[0]
        process = workplace.spawn(command, self.folder.name)
        try:
            wait_until("PgBouncer's start", lambda: process.poll() is not None or can_connect(port), 15)
        except RuntimeError as cause:
            fail(f"{cause}:\n{workplace.log(self.folder.name)}")
        # PgBouncer 1.18 offers no channel binding.
        self.place = Place("PgBouncer", port, DATABASE, str(chain), cloud.place.password, process.pid,
                           more=client_environment)
        self.version = version
        try:
            self.place.run(find("psql", "postgresql-client"), "-XAtc", "select 1")
        except (RuntimeError, OSError) as cause:
            fail(f"PgBouncer cannot reach the engine: {cause}\n{workplace.log(self.folder.name)}")


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid):
    """What the process would give back if it ended: its private memory."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = re.findall(r"^Private_(?:Clean|Dirty): +(\d+) kB", text, re.MULTILINE)
    except PermissionError:
        # Chitin lets nobody but root look at its memory; what is resident is told to everybody.
        found = re.findall(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return 1024 * sum(map(int, found))


def pgbench(place, *flags, script=None, seconds=5, clients=1, log=None):
    """One run of pgbench: its rate, its mean latency, and the gateway's processor time a transaction."""
    cores = os.cpu_count() or 1
    command = [find("pgbench", "postgresql-contrib"), "-n", "-T", str(max(1, round(seconds))), "-c", str(clients),
               "-j", str(min(clients, cores)), *flags]
    if script:
        command += ["-f", str(script)]
    if log:
        command += ["-l", "--log-prefix", str(log)]
    before = place.cpu_seconds()
    text = place.run(*command, timeout=seconds * 4 + 120)
    used = place.cpu_seconds() - before
    rates = re.findall(r"^tps = ([\d.]+)", text, re.MULTILINE)
    done = int(re.search(r"transactions actually processed: (\d+)", text).group(1))
    failed = re.search(r"number of failed transactions: (\d+)", text)
    if failed and int(failed.group(1)):
        raise RuntimeError(f"{failed.group(1)} transactions failed at {place.name}")
    return {"rate": float(rates[-1]), "count": done, "cpu_us": used * 1e6 / max(done, 1),
            "latency_ms": float(re.search(r"latency average = ([\d.]+)", text).group(1))}


def latencies_us(prefix):
    """Every transaction's latency from pgbench's own log, sorted."""
    found = []
    for path in glob.glob(f"{prefix}.*"):
        with open(path) as lines:
            found += [int(line.split()[2]) for line in lines]
        os.unlink(path)
    return sorted(found)


def percentile(ordered, share):
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def median(values):
    return statistics.median(values)


def median_of(runs, key):
    return median([run[key] for run in runs])


def median_ratio(runs, others, key="rate"):
    """The median of the rounds' own ratios: what disturbs a round disturbs both of its sides."""
    return median([one[key] / other[key] for one, other in zip(runs, others) if other[key]])


def alternate(places, rounds, measure):
    """Measures every place in every round, each round beginning with another one, so that noise meets all alike."""
    results = {place.name: [] for place in places}
    for number in range(rounds):
        shift = number % len(places)
        for place in places[shift:] + places[:shift]:
            results[place.name].append(measure(place))
    return results


def table(head, rows):
    cells = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]

    def line(row):
        return "| " + " | ".join(cell.rjust(width) if column else cell.ljust(width)
                                 for column, (cell, width) in enumerate(zip(row, widths))) + " |"
    print(line(cells[0]))
    print("|" + "|".join("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths)) + "|")
    for row in cells[1:]:
        print(line(row), flush=True)
    print()


def machine(program):
    """The machine in one line, with how the program was built; figures mean little without it."""
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    # The release profile strips what a debugger reads.
    is_debug = b"\0.debug_line\0" in Path(program).read_bytes()
    build = "debug build, figures mean nothing" if is_debug else "release build"
    return f"{os.cpu_count()} x {model}, {gib:.0f} GiB, Linux {os.uname().release}, {build}"


def begin(title, goal, program=None):
    print(f"# {title}\n\n{time.strftime('%Y-%m-%d %H:%M')}, {machine(program or chitin_program())}\nGoal: {goal}\n", flush=True)
