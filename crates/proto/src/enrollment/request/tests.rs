use proptest::prelude::*;

use super::*;

fn open() -> Policy<'static> {
    Policy {
        password: None,
        newest_version: Some(Version::parse("v4.14.7")),
    }
}

fn parse(line: &str) -> Result<Request, Rejection> {
    Request::parse(line.as_bytes(), &open())
}

fn request(line: &str) -> Request {
    parse(line).unwrap_or_else(|rejection| panic!("{line}: {rejection}"))
}

fn refusal(line: &str) -> String {
    parse(line).expect_err(line).to_string()
}

fn with_password(line: &str) -> Result<Request, Rejection> {
    let secret = Secret::new("two words".to_owned());
    Request::parse(
        line.as_bytes(),
        &Policy {
            password: Some(&secret),
            newest_version: None,
        },
    )
}

#[test]
fn a_bare_name_is_a_whole_request() {
    let bare = request("OSSEC A:'web-06'");
    assert_eq!(bare.name, "web-06");
    assert_eq!((bare.version, bare.groups, bare.key_hash), (None, vec![], None));
    assert_eq!(bare.address, AddressWish::Unsaid);
}

#[test]
fn every_field_is_read() {
    let full = request(
        "OSSEC A:'web-01' V:'v4.14.7' G:'default,web' IP:'10.1.2.3' K:'0913d35d80f436a6677eaf18a83c5701d2c14a44'",
    );
    assert_eq!(full.version.as_deref(), Some("v4.14.7"));
    assert_eq!(full.groups, ["default", "web"]);
    assert!(matches!(full.address, AddressWish::Given(given) if given.answer == "10.1.2.3"));
    assert_eq!(
        full.key_hash.as_deref(),
        Some("0913d35d80f436a6677eaf18a83c5701d2c14a44")
    );
}

#[test]
fn carriage_return_behind_the_last_quote_is_ignored() {
    assert_eq!(request("OSSEC A:'web-01'\r"), request("OSSEC A:'web-01'"));
    assert_eq!(request("OSSEC A:'web-01' G:'g1'\r"), request("OSSEC A:'web-01' G:'g1'"));
}

#[test]
fn text_in_the_wrong_place_ends_the_reading_without_an_error() {
    for line in [
        "OSSEC A:'web-01'  V:'v9.9'",
        "OSSEC A:'web-01'V:'v9.9'",
        "OSSEC A:'web-01' X:'1' G:'nosuch'",
        "OSSEC A:'web-01' nonsense",
    ] {
        assert_eq!(request(line), request("OSSEC A:'web-01'"), "{line}");
    }
    let swapped = request("OSSEC A:'web-01' IP:'10.0.0.1' G:'g1'");
    assert_eq!(swapped.groups, Vec::<String>::new());
}

#[test]
fn source_address_is_asked_for_by_anything_that_begins_with_src() {
    for value in ["src", "srcxyz"] {
        assert_eq!(
            request(&format!("OSSEC A:'web-01' IP:'{value}'")).address,
            AddressWish::Source
        );
    }
}

#[test]
fn addresses_are_answered_as_they_were_given() {
    for (given, answer) in [
        ("::ffff:102:304/120", "1.2.3.4/24"),
        ("::ffff:1.2.3.4/24", "1.2.3.4/24"),
        ("10.3.0.0/255.255.0.0", "10.3.0.0/255.255.0.0"),
        ("10.6.6.6/32", "10.6.6.6/32"),
        ("!10.0.0.7", "10.0.0.7"),
        ("::1/64", "0000:0000:0000:0000:0000:0000:0000:0001/64"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("any", "any"),
    ] {
        let given = GivenAddress::parse(given).expect(given);
        assert_eq!(given.answer, answer);
        assert_eq!(RegisteredAddress::parse(answer).as_ref(), Ok(&given.address));
    }
}

#[test]
fn errors_of_the_fields_have_their_texts() {
    let prefix = "OSSEC A:'web-01'";
    for (line, text) in [
        ("".to_owned(), "ERROR: Invalid request for new agent"),
        ("garbage".to_owned(), "ERROR: Invalid request for new agent"),
        ("OSSEC A:'web-01".to_owned(), "ERROR: Invalid request for new agent"),
        (" OSSEC A:'web-01'".to_owned(), "ERROR: Invalid request for new agent"),
        (
            "OSSEC PASS: secret OSSEC A:'web-01'".to_owned(),
            "ERROR: Invalid request for new agent",
        ),
        ("OSSEC A:'x'".to_owned(), "ERROR: Invalid agent name: x"),
        ("OSSEC A:''".to_owned(), "ERROR: Invalid agent name: "),
        (format!("{prefix} V:'v4"), "ERROR: Unterminated version field"),
        (
            format!("{prefix} V:'{}'", "4".repeat(2049)),
            "ERROR: Unterminated version field",
        ),
        (
            format!("{prefix} V:'v9.9.9'"),
            "ERROR: Agent version must be lower or equal to manager version",
        ),
        (format!("{prefix} G:'g1"), "ERROR: Unterminated group field"),
        (
            format!("{prefix} G:'{}'", "g".repeat(65_537)),
            "ERROR: Unterminated group field",
        ),
        (format!("{prefix} G:''"), "ERROR: Invalid group name: Empty Group"),
        (format!("{prefix} IP:'10.0.0.1"), "ERROR: Unterminated IP field"),
        (
            format!("{prefix} IP:'{}'", "1".repeat(47)),
            "ERROR: Unterminated IP field",
        ),
        (format!("{prefix} IP:'10.0.0.1 '"), "ERROR: Unterminated IP field"),
        (format!("{prefix} IP:''"), "ERROR: Invalid IP: "),
        (format!("{prefix} IP:'010.1.1.1'"), "ERROR: Invalid IP: 010.1.1.1"),
        (format!("{prefix} K:'ab"), "ERROR: Unterminated key field"),
        (
            format!("{prefix} K:'{}'", "a".repeat(41)),
            "ERROR: Unterminated key field",
        ),
    ] {
        assert_eq!(refusal(&line), text, "{line:.80}");
    }
}

#[test]
fn errors_come_in_the_order_of_the_fields() {
    assert_eq!(refusal("OSSEC A:'x' V:'v9.9.9'"), "ERROR: Invalid agent name: x");
    assert_eq!(
        refusal("OSSEC A:'web-01' V:'v9.9.9' G:'' IP:'x'"),
        "ERROR: Agent version must be lower or equal to manager version"
    );
    assert_eq!(
        refusal("OSSEC A:'web-01' G:'' IP:'x'"),
        "ERROR: Invalid group name: Empty Group"
    );
    assert_eq!(refusal("OSSEC A:'web-01' G:'nosuch' IP:'x'"), "ERROR: Invalid IP: x");
}

#[test]
fn longest_version_passes() {
    assert!(parse(&format!("OSSEC A:'web-01' V:'{}'", "x".repeat(2048))).is_ok());
}

#[test]
fn newer_versions_pass_when_they_may() {
    let policy = Policy {
        password: None,
        newest_version: None,
    };
    assert!(Request::parse(b"OSSEC A:'web-01' V:'v9.9.9'", &policy).is_ok());
}

#[test]
fn password_must_be_the_whole_one_with_one_space_behind_it() {
    assert!(with_password("OSSEC PASS: two words OSSEC A:'web-01'").is_ok());
    for line in [
        "",
        "garbage",
        "OSSEC A:'web-01'",
        "OSSEC PASS: two",
        "OSSEC PASS: two words",
        "OSSEC PASS: two wordsOSSEC A:'web-01'",
        "OSSEC PASS: two wordz OSSEC A:'web-01'",
        "OSSEC PASS:  two words OSSEC A:'web-01'",
    ] {
        assert_eq!(with_password(line), Err(Rejection::InvalidPassword), "{line}");
    }
    for line in [
        "OSSEC PASS: two words  OSSEC A:'web-01'",
        "OSSEC PASS: two words nonsense",
    ] {
        assert_eq!(with_password(line), Err(Rejection::InvalidRequest), "{line}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::parse(&bytes, &open());
        let _ = Request::parse(&[b"OSSEC A:'web-01'", bytes.as_slice()].concat(), &open());
    }

    #[test]
    fn what_is_written_reads_back(
        name in "[A-Za-z0-9_-][A-Za-z0-9._-]{1,100}",
        version in prop::option::of("v4\\.[0-9]\\.[0-9]{1,3}"),
        groups in prop::collection::hash_set("[a-z0-9._-]{1,20}", 0..5),
        address in prop::sample::select(vec!["", "src", "any", "10.1.2.3", "10.0.0.0/255.0.0.0", "2001:db8::7/64"]),
        key_hash in prop::option::of("[0-9a-f]{40}"),
        password in prop::option::of("[!-~][ -~]{0,30}"),
    ) {
        let address = match address {
            "" => AddressWish::Unsaid,
            "src" => AddressWish::Source,
            text => AddressWish::Given(GivenAddress::parse(text).expect("an address")),
        };
        let request = Request { name, version, groups: groups.into_iter().collect(), address, key_hash };
        let password = password.map(Secret::new);
        let wire = request.to_wire(password.as_ref());
        let mut reader = super::super::line::LineReader::default();
        let super::super::line::Progress::Line(line) = reader.push(&wire) else { panic!("no line") };
        let policy = Policy { password: password.as_ref(), newest_version: None };
        prop_assert_eq!(Request::parse(line, &policy), Ok(request));
    }
}
