//! What to do about what a probe has met.

pub(super) const SILENT: &str = "look whether nats-server is stopped or overloaded, and what is between it and us";
pub(super) const NO_JETSTREAM: &str =
    "switch JetStream on in the server's configuration: jetstream { store_dir: \"…\" }";
pub(super) const PROVISION: &str = "make the streams: muster-natsd provision";
pub(super) const BACKLOG: &str = "wait for the backlog, or try again; `muster-control nats status` says how much waits";
pub(super) const TAKEN: &str =
    "give each manager a <node_name> of its own; a machine that was copied has the name of its original";
pub(super) const NO_DIRECT: &str = "bring the streams up to date: muster-natsd provision --update";
pub(super) const LAGS: &str = "look at the stream's limits and at the cluster: what was acknowledged is not there";
pub(super) const CHANGED: &str =
    "look whether something between us and the stream changes messages, and whether the seed file is the one in use";

/// Words of an error that tell what is wrong, and what helps. The first that fits counts.
const LOGIN: [(&str, &str); 13] = [
    (
        "UnknownIssuer",
        "set <tls_ca> to the certificate of the authority that signed the server's",
    ),
    (
        "NotValidForName",
        "name the server in <server_url> as its certificate does",
    ),
    ("Expired", "renew the server's certificate"),
    ("NotValidYet", "look at the clocks of both machines"),
    (
        "CertificateRequired",
        "set <tls_cert> and <tls_key>: the server wants a client certificate",
    ),
    (
        "BadCertificate",
        "set <tls_cert> and <tls_key> to a certificate that the server's ca_file has signed",
    ),
    (
        "UnknownCA",
        "set <tls_cert> and <tls_key> to a certificate that the server's ca_file has signed",
    ),
    (
        "authorization violation",
        "look at <credentials_file>, <nkey_file>, <user> or <token>: the server does not know them, or they have expired",
    ),
    (
        "signing nonce",
        "look at the seed in <credentials_file> or <nkey_file>: it cannot sign",
    ),
    (
        "cannot read the",
        "let natsd's user read the file, and look whether it is where <nats> says",
    ),
    (
        "TLS",
        "look whether the server has a tls block; <encrypt_messages>yes</encrypt_messages> never does without",
    ),
    ("refused", "start nats-server, or set <server_url> to where it listens"),
    (
        "DNS",
        "look at the name in <server_url>, and whether this host can resolve it",
    ),
];

/// About a connection that was not made.
pub(super) fn of_login(why: &str) -> String {
    let fits = LOGIN.iter().find(|(words, _)| why.contains(words));
    fits.map_or(SILENT, |(_, cure)| cure).to_owned()
}

/// About an event that is not acknowledged.
pub(super) fn of_refusal(why: &str) -> String {
    let cure = if why.contains("no stream") || why.contains("no responders") {
        PROVISION
    } else if why.contains("ermissions") {
        "give the manager's user the rights of deploy/nats/nats-server.conf"
    } else if why.contains("insufficient") || why.contains("maximum") {
        "give JetStream more room on the server, or the stream higher limits"
    } else {
        SILENT
    };
    cure.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_errors_of_tls_and_credentials_have_their_cure() {
        for (why, part) in [
            ("TLS error: invalid peer certificate: UnknownIssuer", "<tls_ca>"),
            ("received fatal alert: CertificateRequired", "<tls_cert>"),
            ("cannot connect to x: authorization violation: y", "<credentials_file>"),
            ("cannot read the nkey file x: no such file", "where <nats> says"),
            ("Connection refused (os error 111)", "start nats-server"),
            ("something else", "nats-server is stopped"),
        ] {
            assert!(of_login(why).contains(part), "{why}: {}", of_login(why));
        }
        assert!(of_refusal("the broker has no stream that takes its subjects").contains("provision"));
    }
}
