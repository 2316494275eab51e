-- The table that the scripts read, for MariaDB/MySQL. PostgreSQL and SQLite: "key" instead of `key`.
CREATE TABLE agent (
    id    VARCHAR(8)   NOT NULL PRIMARY KEY,
    name  VARCHAR(128) NOT NULL UNIQUE,
    ip    VARCHAR(43)  NOT NULL DEFAULT 'any',
    `key` VARCHAR(128) NOT NULL
);
CREATE INDEX agent_ip ON agent (ip);
