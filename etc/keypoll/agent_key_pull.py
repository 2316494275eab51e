#!/usr/bin/env python3
"""Looks up agents' keys in a database, for muster-keypolld.

    agent_key_pull.py id 001                 one look-up, the answer on standard output   <exec_mode>once
    agent_key_pull.py ip 192.168.1.100       the same, by address
    agent_key_pull.py --persistent           a look-up a line, until standard input ends  <exec_mode>persistent
    agent_key_pull.py --listen PATH          a look-up a connection, on a Unix socket     <socket>

The database is described in agent_key_pull.ini beside this file, or in the file that --config names. MariaDB and MySQL
need python3-pymysql (or mysql.connector), PostgreSQL needs python3-psycopg2 (or psycopg), SQLite needs nothing.

Answers are one JSON object:

    {"error": 0, "data": {"id": "001", "name": "web-01", "ip": "any", "key": "..."}}
    {"error": 4, "message": "No agent key found"}

Error 4 alone says that there is no such agent; the manager remembers it. With any other number (2: the database cannot
be asked) it asks again when the agent comes again.

Needs Python 3.9 or later.
"""

import argparse
import configparser
import ipaddress
import json
import os
import pathlib
import re
import socket
import stat
import sys
import threading
import time

NO_AGENT = {"error": 4, "message": "No agent key found"}
# The name of the table comes from the configuration, and cannot be a parameter.
IDENTIFIER = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?$")
KINDS = ("mysql", "mariadb", "postgresql", "sqlite")
MAX_REQUEST = 127


class BadRequest(Exception):
    """Neither an id nor an address."""


def candidates(lookup, value):
    """The texts that the database may have for what is looked up."""
    if lookup == "id":
        if not re.fullmatch(r"[0-9]{1,8}", value):
            raise BadRequest("an id has 1 to 8 digits")
        return [value]
    if lookup == "ip":
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            raise BadRequest("not an address") from None
        texts = [value, address.compressed, address.exploded, address.exploded.upper()]
        return list(dict.fromkeys(texts))
    raise BadRequest("expected id or ip")


class Database:
    """One connection, opened when it is needed, and opened again when it has broken."""

    def __init__(self, settings):
        self.kind = settings["type"]
        if self.kind not in KINDS:
            raise ValueError("type: expected mysql, mariadb, postgresql or sqlite")
        self.settings = settings
        self.name = settings["database"]
        self.timeout = int(settings.get("timeout", "5"))
        self.port = int(settings.get("port", "0"))
        if self.timeout < 1:
            raise ValueError("timeout: expected seconds, at least 1")
        self.table = settings.get("table", "agent")
        if not IDENTIFIER.match(self.table):
            raise ValueError("table: expected a plain name")
        self.connection = None
        self.quote = "`" if self.kind in ("mysql", "mariadb") else '"'
        self.mark = "?" if self.kind == "sqlite" else "%s"

    def connect(self):
        if self.kind == "sqlite":
            import sqlite3

            # Read only, and never made when it is not there.
            path = pathlib.Path(self.name).absolute().as_uri()
            return sqlite3.connect(f"{path}?mode=ro", uri=True, timeout=self.timeout, check_same_thread=False)
        known = {name: self.settings.get(name) for name in ("host", "user", "password")}
        known["port"] = self.port or None
        known = {name: value for name, value in known.items() if value is not None}
        if self.kind == "postgresql":
            return self.connect_postgresql(known)
        if self.settings.get("unix_socket"):
            known["unix_socket"] = self.settings.get("unix_socket")
        return self.connect_mysql(known)

    def connect_mysql(self, known):
        try:
            import pymysql
        except ImportError:
            import mysql.connector

            return mysql.connector.connect(
                database=self.name, connection_timeout=self.timeout, autocommit=True, **known
            )
        return pymysql.connect(
            database=self.name, connect_timeout=self.timeout, read_timeout=self.timeout,
            write_timeout=self.timeout, charset="utf8mb4", autocommit=True, **known
        )

    def connect_postgresql(self, known):
        try:
            import psycopg2 as driver
        except ImportError:
            import psycopg as driver
        connection = driver.connect(
            dbname=self.name, connect_timeout=self.timeout,
            options=f"-c statement_timeout={self.timeout * 1000}",
            # A server that has gone without a word is found out, too.
            tcp_user_timeout=self.timeout * 1000, **known
        )
        connection.autocommit = True
        return connection

    def query(self, lookup, texts):
        if self.connection is None:
            self.connection = self.connect()
        q = self.quote
        marks = ", ".join([self.mark] * len(texts))
        columns = ", ".join(f"{q}{name}{q}" for name in ("id", "name", "ip", "key"))
        table = ".".join(f"{q}{part}{q}" for part in self.table.split("."))
        # The values are parameters; nothing of a request is ever part of the statement.
        statement = f"SELECT {columns} FROM {table} WHERE {q}{lookup}{q} IN ({marks}) LIMIT 2"
        cursor = self.connection.cursor()
        try:
            cursor.execute(statement, tuple(texts))
            return cursor.fetchall()
        finally:
            cursor.close()

    def close(self):
        connection, self.connection = self.connection, None
        if connection is not None:
            try:
                connection.close()
            except Exception:  # It is broken: that is why it is closed.
                pass

    def look_up(self, lookup, value):
        """The answer as an object."""
        try:
            texts = candidates(lookup, value)
        except BadRequest as error:
            return {"error": 3, "message": str(error)}
        # A connection that was idle may have been closed by the server: then a second attempt, on a new one.
        attempts = 1 if self.connection is None else 2
        for attempt in range(attempts):
            try:
                rows = self.query(lookup, texts)
                break
            except Exception as error:
                self.close()
                if attempt + 1 == attempts:
                    return {"error": 2, "message": f"Cannot ask the database: {type(error).__name__}: {error}"}
        if not rows:
            return NO_AGENT
        if len(rows) > 1:
            return {"error": 5, "message": "More than one agent"}
        names = ("id", "name", "ip", "key")
        return {"error": 0, "data": {name: text(value) for name, value in zip(names, rows[0])}}


def text(value):
    """A column as text; what is missing stays so, and is refused by the manager."""
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", "replace")
    return None if value is None else str(value)


def once(settings, lookup, value):
    print(json.dumps(Database(settings).look_up(lookup, value)))


def persistent(settings):
    database = Database(settings)
    for line in sys.stdin:
        try:
            request = json.loads(line)
            answer = database.look_up(str(request["lookup"]), str(request["value"]))
        except (ValueError, KeyError, TypeError):
            answer = {"error": 1, "message": "Bad request"}
        print(json.dumps(answer), flush=True)


def listen(settings, path):
    # Only a socket that nobody answers at is removed.
    if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
        probe = socket.socket(socket.AF_UNIX)
        try:
            probe.connect(path)
            sys.exit(f"{path}: somebody listens there")
        except ConnectionRefusedError:
            os.unlink(path)
        finally:
            probe.close()
    listener = socket.socket(socket.AF_UNIX)
    os.umask(0o117)
    listener.bind(path)
    listener.listen(128)
    workers = int(settings.get("workers", "4"))
    # Each has a database connection of its own; the kernel gives each connection to one of them.
    for _ in range(workers - 1):
        threading.Thread(target=serve, args=(listener, Database(settings)), daemon=True).start()
    serve(listener, Database(settings))


def serve(listener, database):
    while True:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            # No descriptors, for instance.
            print(f"cannot take a connection: {error}", file=sys.stderr, flush=True)
            time.sleep(1)
            continue
        with connection:
            try:
                connection.settimeout(5)
                request = connection.recv(MAX_REQUEST).decode("ascii")
                lookup, _, value = request.partition(":")
                answer = database.look_up(lookup, value)
                if answer["error"] == 2:
                    print(answer["message"], file=sys.stderr, flush=True)
                # One write: stock managers take what their first read gives.
                connection.sendall(json.dumps(answer).encode())
            except (OSError, UnicodeDecodeError):
                pass  # Whoever asked has gone, or is no manager.


def read_settings(path):
    parser = configparser.ConfigParser(interpolation=None)
    with open(path, encoding="utf-8") as file:
        parser.read_file(file)
    return parser["database"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "agent_key_pull.ini")
    parser.add_argument("--config", metavar="FILE", default=beside, help="the database; default: beside this file")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--persistent", action="store_true", help="answer a JSON request a line")
    mode.add_argument("--listen", metavar="PATH", help="answer on a Unix socket")
    parser.add_argument("lookup", nargs="?", help="id or ip")
    parser.add_argument("value", nargs="?", help="the id or address")
    arguments = parser.parse_args()
    asked = arguments.lookup is not None and arguments.value is not None
    if not (asked or arguments.persistent or arguments.listen):
        print(json.dumps({"error": 1, "message": "Too few arguments"}))
        return
    try:
        settings = read_settings(arguments.config)
        Database(settings)
        if int(settings.get("workers", "4")) < 1:
            raise ValueError("workers: expected at least 1")
    except (OSError, KeyError, ValueError, configparser.Error) as error:
        # Said where the operator looks, and in the answer without details.
        print(f"{arguments.config}: {error}", file=sys.stderr)
        print(json.dumps({"error": 2, "message": "The configuration of the script is bad"}))
        sys.exit(0 if asked else 1)
    try:
        if arguments.listen:
            listen(settings, arguments.listen)
        elif arguments.persistent:
            persistent(settings)
        else:
            once(settings, arguments.lookup, arguments.value)
    except (KeyboardInterrupt, BrokenPipeError):
        pass


if __name__ == "__main__":
    main()
