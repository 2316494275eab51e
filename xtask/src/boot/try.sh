# Run inside the booted system, as root. Each line of output that matters is "ok: ..." or "FAILED: ...".

control="muster-control --home /var/lib/muster"
daemons="muster-natsd muster-authd muster-keypolld muster-remoted"

claim() {
    what=$1
    shift
    if "$@" > /tmp/said 2>&1; then
        echo "ok: $what"
    else
        echo "FAILED: $what"
        cat /tmp/said
    fi
}

# Some things take a moment.
soon() {
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        "$@" && return 0
        sleep 0.5
    done
    return 1
}

all_active() { systemctl is-active $daemons; }
all_down() { ! systemctl is-active $daemons | grep -qx active; }
active_agents() { test "$($control agent list | grep -c ' active ')" -eq "$1"; }
pid_of() { systemctl show --property=MainPID --value "$1"; }
another_pid() { test "$(pid_of muster-remoted)" != 0 && test "$(pid_of muster-remoted)" != "$1"; }
owned() { test "$(stat -c %U /proc/"$(pid_of "$1")")" = "$1"; }
no_capabilities() { grep -qx "CapEff:[[:space:]]*0000000000000000" /proc/"$(pid_of "$1")"/status; }

claim "users are made" systemd-sysusers muster.conf
claim "folders are made" systemd-tmpfiles --create muster.conf
claim "the home is filled" $control init --bind 127.0.0.1

cat > /usr/local/bin/keys <<'END'
#!/bin/sh
echo '{"error":0,"data":{"id":"700","name":"polled","ip":"any","key":"00112233445566778899aabbccddeeff"}}'
END
chmod 755 /usr/local/bin/keys
request="<key_request><enabled>yes</enabled><exec_path>/usr/local/bin/keys</exec_path></key_request>"
sed -i "s#</auth>#$request</auth>#" /etc/muster/ossec.conf

# Somebody asks the manager over NATS, where a server was found to be put in here.
muster-control nats request-key /run/operator.nk > /run/operator.pub
nats="<nats><enabled>yes</enabled><server_url>nats://127.0.0.1:14222</server_url><node_name>boot</node_name>"
nats="$nats<message_signing>yes</message_signing><audit_logging>yes</audit_logging><control enabled=\"yes\" destroy=\"yes\"/>"
nats="$nats<control_key id=\"operator\" roles=\"read,act,destroy\">$(cat /run/operator.pub)</control_key></nats>"
if command -v nats-server > /dev/null; then
    echo "<ossec_config>$nats</ossec_config>" >> /etc/muster/ossec.conf
    # natsd may not write there, inside its walls.
    claim "a signing key is made" $control nats key new
    claim "a broker starts" systemd-run --quiet --unit=broker nats-server -a 127.0.0.1 -p 14222 -js -sd /run/broker
    claim "streams are made" soon muster-natsd --home /var/lib/muster provision --share 1
fi

claim "the units start" systemctl enable --now $daemons muster.target
claim "the units are active" all_active
for daemon in $daemons; do
    claim "$daemon has its own user" owned $daemon
    claim "$daemon has no capabilities" no_capabilities $daemon
done

muster-swarm --enroll 127.0.0.1:1515 --connect 127.0.0.1:1514 --mix wazuh-aes-tcp=2,wazuh-aes-udp=1,ossec3=1 \
    --password-file /etc/muster/authd.pass --notify-time 2 --duration 300 < /dev/null > /tmp/swarm 2>&1 &
claim "agents enroll and are active" soon active_agents 4
claim "a group can be made and used" $control group create web
claim "an agent can be put into it" $control group assign web 001
claim "a script gives keys inside keypolld's walls" sh -c "$control keypoll try id 700 | grep -q polled"

for daemon in $daemons; do
    claim "$daemon reloads" systemctl reload $daemon
done
sed -i.good 's#<port>1514#<port>nonsense#' /etc/muster/ossec.conf
claim "a wrong configuration is refused" sh -c "! systemctl reload muster-remoted"
claim "and remoted goes on" active_agents 4
mv /etc/muster/ossec.conf.good /etc/muster/ossec.conf

before=$(pid_of muster-remoted)
kill -KILL "$before"
claim "remoted comes back when killed" soon another_pid "$before"
claim "and agents are active again" soon active_agents 4

# A request that may be older than natsd is refused, for some seconds.
asked() { $control nats request --key /run/operator.nk --node boot --timeout 5 "$@"; }
has_no_key() { ! grep -q "^$1 [^!]" /etc/muster/client.keys; }
if command -v nats-server > /dev/null; then
    claim "events go through natsd's walls and come back" soon $control nats test
    claim "a summary is told over NATS" soon asked agents.summary
    claim "an agent's status is told" asked agent.status 001
    claim "every daemon answers natsd" sh -c "$control --output json nats request --key /run/operator.nk node.status |
        grep -o '\"ready\": *true' | grep -c . | grep -qx 4"
    claim "remoted takes natsd's orders" asked agent.restart 001
    claim "remoted takes natsd's requests to agents" asked agent.reload 001
    claim "authd removes an agent for natsd" asked agent.remove 002
    claim "its key is gone" soon has_no_key 002
    claim "authd takes a key for natsd, so that the agent enrolls" asked agent.rekey 001
fi

claim "muster-control restarts through systemd" sh -c "$control restart 2>&1 | grep -c 'started by systemd' | grep -qx 4"
claim "the units are active again" all_active
claim "the target stops them" systemctl stop muster.target
claim "nothing is left" soon all_down
echo "--- what the journal holds of it ---"
journalctl --no-pager --output=cat --priority=warning --boot --unit='muster-*' | sort | uniq -c | sort -rn | head -20
