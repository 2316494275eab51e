#!/bin/sh
# Looks up agents' keys in a database, for muster-keypolld:
#
#     agent_key_pull.sh id 001
#     agent_key_pull.sh ip 192.168.1.100
#
# The database is described in agent_key_pull.conf beside this file. It needs the database's own client: mariadb,
# mysql, psql or sqlite3. The answer is one JSON object on standard output; see agent_key_pull.py for its form. Whatever
# goes wrong is told on standard error as well, which ends up in the manager's log. The manager ends a look-up that takes
# longer than its <timeout>.

set -u

case ${1-} in
    -h | --help)
        echo "usage: $0 id NUMBER | ip ADDRESS"
        echo "Prints the agent with this id or address as JSON. Reads agent_key_pull.conf beside it."
        exit 0
        ;;
esac

fail() {
    printf '{"error": %s, "message": "%s"}\n' "$1" "$2"
    exit 0
}

[ $# -eq 2 ] || fail 1 'Too few arguments'
lookup=$1
value=$2

# What comes from the network ends here if it is anything but digits or an address; the database gets it as a parameter
# all the same.
case $lookup in
    id) case $value in *[!0-9]* | '' | ?????????*) fail 3 'Bad arguments given' ;; esac ;;
    ip) case $value in *[!0-9A-Fa-f.:]* | '') fail 3 'Bad arguments given' ;; esac ;;
    *) fail 3 'Bad arguments given' ;;
esac

case $0 in
    */*) config=${0%/*}/agent_key_pull.conf ;;
    *) config=./agent_key_pull.conf ;;
esac
if ! [ -r "$config" ]; then
    echo "$config: cannot be read" >&2
    fail 2 'The configuration of the script cannot be read'
fi
# Sets type, database, table, and what the client needs to find the server.
type='' database='' table=agent client=mariadb client_config=/etc/muster/keypoll/client.cnf
# shellcheck source=/dev/null
. "$config"
# A name in a statement cannot be a parameter.
case $table in
    *[!A-Za-z0-9_]* | '' | [0-9]*)
        echo "$config: table should be a plain name" >&2
        fail 2 'The configuration of the script is bad'
        ;;
esac

from_sqlite() {
    sqlite3 -batch -bail "file:$database?mode=ro" <<SQL
.timeout 5000
.parameter init
.parameter set :value "'$value'"
SELECT json_object('error', 0, 'data', json_object('id', id, 'name', name, 'ip', ip, 'key', "key"))
  FROM "$table" WHERE "$lookup" = :value LIMIT 2;
SQL
}

from_postgresql() {
    PGCONNECT_TIMEOUT=5 PGOPTIONS='-c statement_timeout=5000' psql --no-psqlrc --quiet --no-align --tuples-only --no-password \
        --set ON_ERROR_STOP=1 --set value="$value" --dbname "$database" <<SQL
PREPARE pull (text) AS
SELECT json_build_object('error', 0, 'data', json_build_object('id', id, 'name', name, 'ip', ip, 'key', "key"))
  FROM "$table" WHERE "$lookup" = \$1 LIMIT 2;
EXECUTE pull (:'value');
SQL
}

from_mysql() {
    # As hex digits, so that there is nothing to be quoted.
    hex=$(printf %s "$value" | od -A n -t x1 | tr -d ' \n')
    "$client" --defaults-extra-file="$client_config" --connect-timeout=5 --batch --raw --skip-column-names \
        "$database" <<SQL
SET @value = CONVERT(x'$hex' USING utf8mb4);
PREPARE pull FROM 'SELECT JSON_OBJECT("error", 0, "data", JSON_OBJECT("id", id, "name", name, "ip", ip, "key", \`key\`))
  FROM \`$table\` WHERE \`$lookup\` = ? LIMIT 2';
EXECUTE pull USING @value;
SQL
}

# Whatever the client says goes to standard error, and so to the manager's log.
case $type in
    sqlite) answer=$(from_sqlite) ;;
    postgresql) answer=$(from_postgresql) ;;
    mysql | mariadb) answer=$(from_mysql) ;;
    *)
        echo "$config: type should be sqlite, postgresql, mysql or mariadb" >&2
        fail 2 'The configuration of the script is bad'
        ;;
esac || fail 2 'The database cannot be asked'

[ -n "$answer" ] || fail 4 'No agent key found'
case $answer in
    *'
'*) fail 5 'More than one agent' ;;
esac
printf '%s\n' "$answer"
